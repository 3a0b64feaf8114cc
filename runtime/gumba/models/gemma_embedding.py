"""gemma-embedding: EmbeddingGemma (Vera et al. 2025): gemma3 as an encoder, whose windows reach as far to either side.

Two projections without a bias follow in some files. They are linear, so that they may come before the mean over all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gumba.gguf import GGUFFile
from gumba.models import decoder, encoder
from gumba.models.encoder import ENCODERS_WITHOUT, EncoderConfig
from gumba.models.keys import Keys
from gumba.models.loader import MAX_WIDTH, Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "gemma-embedding"
FAMILIES = "EmbeddingGemma"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class GemmaEmbeddingConfig(EncoderConfig):
    """``window``: tokens that a token sees in the layers that are ``windowed``, half on either side; ``n_dense``: width
    between the two projections, 0 without them."""

    window: int
    windowed: tuple[bool, ...]
    local_freq_base: float
    query_scale: float
    n_dense: int


def read_config(gguf: GGUFFile) -> GemmaEmbeddingConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    own = ("attention.sliding_window", "attention.scale")
    keys.must_be({key: values for key, values in ENCODERS_WITHOUT.items() if key not in own})
    common = decoder.read_common(keys, neox=True, freq_base=1000000.0)
    keys.must_be({"dense_2_feat_in": (common.n_embd,), "dense_3_feat_out": (common.n_embd,)})
    n_dense = keys.size("dense_2_feat_out", MAX_WIDTH)
    keys.must_be({"dense_3_feat_in": (n_dense,)})
    config: GemmaEmbeddingConfig = encoder.read_encoder(
        keys,
        common,
        GemmaEmbeddingConfig,
        window=keys.count("attention.sliding_window", 1 << 30),
        windowed=decoder.windowed_layers(keys, common.n_layers, 6),
        local_freq_base=keys.number("rope.freq_base_swa", 10000.0, least=1.001),
        query_scale=keys.number("attention.scale", 1.0 / math.sqrt(common.head_dim)),
        n_dense=n_dense,
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: GemmaEmbeddingConfig) -> Group:
    """Read and weave everything."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    if c.n_dense:
        t.add("dense_2", "dense_2.weight", c.n_dense, c.n_embd)
        t.add("dense_3", "dense_3.weight", c.n_embd, c.n_dense)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        decoder.add_attention(t, c, i)
        t.add("attn_q_norm", "attn_q_norm.weight", c.head_dim, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", c.head_dim, layer=i)
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: GemmaEmbeddingConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], twice: there are no logits."""
    everywhere = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    local = decoder.rotation(p, replace(c.rope, freq_base=c.local_freq_base, scaling="none"), n_ctx)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim)
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim)
        q, k = decoder.turned(p, c, q, k, local if c.windowed[i] else everywhere)
        seen = c.window // 2 + 1 if c.windowed[i] else 0
        a = p.attention(q, k, v, kv, layer=i, scale=c.query_scale, window=seen, causal=False)
        h = p.matmul(layer.attn_output, a, bias=layer.attn_output_bias)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        h = decoder.gated(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), "gelu_tanh")
        x = p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    if c.n_dense:
        hidden = p.matmul(w.dense_3, p.matmul(w.dense_2, hidden))
    return hidden, hidden
