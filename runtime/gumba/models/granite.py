"""granite: Granite 3 (IBM 2024): llama with four constant factors: of embeddings, scores, both halves of a layer, logits.

Its relative with experts (``granitemoe``) is computed here as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import MAX_WIDTH, Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "granite"
FAMILIES = "Granite 3.0-3.3 (dense)"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class GraniteConfig(Config):
    embedding_scale: float
    score_scale: float
    residual_scale: float
    logit_scale: float
    n_experts: int
    n_used: int
    n_ff_shared: int


def read_config(gguf: GGUFFile) -> GraniteConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    return read_named(Keys(gguf, NAME))


def read_named(keys: Keys) -> GraniteConfig:
    """As ``read_config``, for the architecture of ``keys``."""
    own = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale", "expert_count", "expert_used_count")
    keys.must_be({key: values for key, values in WITHOUT.items() if key not in own})
    common = decoder.read_common(keys, neox=False)
    n_experts, n_used = decoder.read_experts(keys)
    config: GraniteConfig = common.extended(
        GraniteConfig,
        embedding_scale=keys.number("embedding_scale", 0.0, zero=True) or 1.0,
        score_scale=keys.number("attention.scale", 0.0, zero=True) or 1.0 / math.sqrt(common.head_dim),
        residual_scale=keys.number("residual_scale", 0.0, zero=True) or 1.0,
        logit_scale=keys.number("logit_scale", 0.0, zero=True) or 1.0,
        n_experts=n_experts,
        n_used=n_used,
        n_ff_shared=keys.size("expert_shared_feed_forward_length", MAX_WIDTH),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: GraniteConfig) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "ffn_norm")
        decoder.add_attention(t, c, i)
        if c.n_experts:
            decoder.add_experts(t, c, i, c.n_experts, c.n_ff, n_shared=c.n_ff_shared)
        else:
            decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: GraniteConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    x = p.scale(p.embed(w.token_embd), c.embedding_scale)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q, k = decoder.turned(p, c, q, k, table)
        a = p.attention(q, k, v, kv, layer=i, scale=c.score_scale)
        h = p.matmul(layer.attn_output, a, bias=layer.attn_output_bias)
        x = p.add(x, p.scale(h, c.residual_scale))
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        if c.n_experts:
            chosen = decoder.experts(p, layer, h, c.n_used)
            h = p.add(chosen, decoder.shared_expert(p, layer, h)) if c.n_ff_shared else chosen
        else:
            h = decoder.swiglu(p, layer, h)
        x = p.add(x, p.scale(h, c.residual_scale))
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, p.scale(logits, 1.0 / c.logit_scale)
