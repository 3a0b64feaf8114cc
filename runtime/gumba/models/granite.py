"""granite: Granite 3 (IBM 2024): llama with four constant factors: of embeddings, scores, residuals, logits.

``granitemoe`` uses this file, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_expert_counts, read_metadata
from gumba.loading.decoder_tensors import add_experts, decoder_table
from gumba.loading.weight_loader import MAX_WIDTH, Loader
from gumba.loading.weights import Weights

NAME = "granite"
FAMILIES = "Granite 3.0-3.3 (dense)"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class GraniteConfig(Config):
    embedding_scale: float
    score_scale: float
    residual_scale: float
    logit_scale: float
    n_ff_shared: int


def read_config(gguf: GGUFFile) -> GraniteConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_named(gguf, NAME)


def read_named(gguf: GGUFFile, name: str) -> GraniteConfig:
    """``read_config`` for the architecture ``name``."""
    own = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale", *EXPERT_KEYS)
    with read_metadata(gguf, name, *own) as metadata:
        common = read_common(metadata, neox=False)
        n_experts, n_used = read_expert_counts(metadata)
        return GraniteConfig(
            **vars(replace(common, n_experts=n_experts, n_used=n_used)),
            embedding_scale=metadata.number("embedding_scale", 0.0, or_zero=True) or 1.0,
            score_scale=metadata.number("attention.scale", 0.0, or_zero=True) or 1.0 / math.sqrt(common.head_dim),
            residual_scale=metadata.number("residual_scale", 0.0, or_zero=True) or 1.0,
            logit_scale=metadata.number("logit_scale", 0.0, or_zero=True) or 1.0,
            n_ff_shared=metadata.size("expert_shared_feed_forward_length", MAX_WIDTH),
        )


def load_weights(loader: Loader, c: GraniteConfig) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, feed_forward="none" if c.n_experts else "gated")
    for i in range(c.n_layers if c.n_experts else 0):
        add_experts(t, c, i, c.n_experts, c.n_ff, n_shared=c.n_ff_shared)
    return t.load(loader, Weights)


def forward(p: Program, c: GraniteConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.scale(p.embed(w.token_embd), c.embedding_scale)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        h = decoder.attention(p, c, layer, h, i, table, scale=c.score_scale)
        x = p.add(x, p.scale(h, c.residual_scale))
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        if c.n_experts:
            chosen = decoder.moe_ffn(p, layer, h, c.n_used)
            h = p.add(chosen, decoder.shared_expert(p, layer, h)) if c.n_ff_shared else chosen
        else:
            h = decoder.swiglu(p, layer, h)
        x = p.add(x, p.scale(h, c.residual_scale))
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, p.scale(logits, 1.0 / c.logit_scale)
