"""phi3: Phi-3, Phi-3.5, Phi-4, Phi-4-mini (Abdin et al. 2024): llama with fused tensors, and LongRoPE for long contexts.

LongRoPE (Ding et al. 2024) divides the frequency of each rotary pair by a factor of its own: one set of factors for the
context of the first training, another for a longer one.
"""

from __future__ import annotations

from dataclasses import replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata, read_single_window
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array, Weights

NAME = "phi3"
FAMILIES = "Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini"
VERIFIED = ("transformers", "llama.cpp")


class Phi3Weights(Weights):
    """Divisors of the rotary frequencies for the context of the first training, and for a longer one."""

    rope_factors_short: Array | None = None
    rope_factors_long: Array | None = None


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window") as metadata:
        common = read_common(metadata, neox=True)
        if metadata.has("attention.sliding_window_pattern"):
            metadata.must_be({"attention.sliding_window_pattern": (1, True)})
        return read_single_window(metadata, common)


def load_weights(loader: Loader, c: Config) -> Phi3Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, feed_forward="fused")
    t.add("rope_factors_long", "rope_factors_long.weight", c.rope.dim // 2, required=False)
    t.add("rope_factors_short", "rope_factors_short.weight", c.rope.dim // 2, required=False)
    return t.load(loader, Phi3Weights)


def forward(p: Program, c: Config, w: Phi3Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    factors = w.rope_factors_long if p.max_context > c.rope.original_ctx else w.rope_factors_short
    rope = c.rope if factors is None else replace(c.rope, scaling="longrope")
    table = decoder.rope_table(p, rope, factors)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x, window=c.window)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)
