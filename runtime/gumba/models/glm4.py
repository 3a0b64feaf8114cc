"""glm4: GLM-4-0414, GLM-Z1 (Zhipu 2025): chatglm with a second norm after attention and after the feed-forward network."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_plain_config
from gumba.loading.decoder_tensors import PRE_POST_NORMS, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "glm4"
FAMILIES = "GLM-4-0414, GLM-Z1"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=False)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norms=PRE_POST_NORMS, feed_forward="fused").load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        h = decoder.attention(p, c, layer, h, i, table)
        x = decoder.post_norm_block(p, c, layer, x, h, "silu")
    return decoder.outputs(p, c, w, x)
