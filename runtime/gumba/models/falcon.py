"""falcon: Falcon 7B and 40B (Almazrouei et al. 2023): attention and feed-forward network in parallel, LayerNorm, GELU.

The larger ones have a norm for each of the two.
"""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "falcon"
FAMILIES = "Falcon 7B, 40B, 180B"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME) as metadata:
        metadata.must_be({"tensor_data_layout": ("jploski",)})
        return read_common(metadata, neox=True, norm="layer_norm_epsilon")


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm",), norm_bias=True, feed_forward="plain")
    for i in range(c.n_layers):
        t.add("attn_norm_2", "attn_norm_2.weight", c.n_embd, layer=i, required=False)
        t.add("attn_norm_2_bias", "attn_norm_2.bias", c.n_embd, layer=i, required=False)
    return t.load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        own = h if layer.attn_norm_2 is None else p.layer_norm(x, layer.attn_norm_2, layer.attn_norm_2_bias, c.norm_eps)
        x = decoder.attention(p, c, layer, own, i, table, residual=x)
        x = decoder.plain_ffn(p, layer, h, "gelu", residual=x)
    return decoder.layer_norm_outputs(p, c, w, x)
