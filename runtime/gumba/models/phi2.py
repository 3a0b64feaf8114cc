"""phi2: Phi-1, Phi-1.5, Phi-2 (Li et al. 2023): attention and feed-forward network in parallel after one LayerNorm.

Biases everywhere, a part of each head is rotary, GELU without a gate.
"""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "phi2"
FAMILIES = "Phi-1, Phi-1.5, Phi-2"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "use_parallel_residual") as metadata:
        metadata.must_be({"use_parallel_residual": (True,)})
        return read_common(metadata, neox=True, norm="layer_norm_epsilon")


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm",), norm_bias=True, feed_forward="plain")
    t.add("output_bias", "output.bias", c.n_vocab, required=False)
    return t.load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x)
        x = decoder.plain_ffn(p, layer, h, "gelu_tanh", residual=x)
    return decoder.layer_norm_outputs(p, c, w, x)
