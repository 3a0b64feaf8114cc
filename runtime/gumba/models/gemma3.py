"""gemma3: Gemma 3's text (Kamath et al. 2025): gemma2 with norms on queries and keys in place of soft caps.

Of every six layers five see only the last ``sliding_window`` tokens, and turn queries and keys at a rate of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "gemma3"
FAMILIES = "Gemma 3 (text)"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Gemma3Config(Config):
    window: int
    windowed: tuple[bool, ...]
    local_freq_base: float
    logit_cap: float
    query_scale: float


def read_config(gguf: GGUFFile) -> Gemma3Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    own = ("attention.sliding_window", "final_logit_softcapping", "attention.scale")
    keys.must_be({key: values for key, values in WITHOUT.items() if key not in own})
    common = decoder.read_common(keys, neox=True, freq_base=1000000.0)
    # The largest of the family scales by the width over the number of heads, which is not the size of its heads.
    usual = common.n_embd // common.n_heads if common.n_layers == 62 else common.head_dim
    config: Gemma3Config = common.extended(
        Gemma3Config,
        window=keys.count("attention.sliding_window", 1 << 30),
        windowed=decoder.windowed_layers(keys, common.n_layers, 6),
        local_freq_base=keys.number("rope.freq_base_swa", 10000.0, least=1.001),
        logit_cap=keys.number("final_logit_softcapping", 0.0, zero=True),
        query_scale=keys.number("attention.scale", 1.0 / math.sqrt(usual)),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: Config) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        decoder.add_attention(t, c, i)
        t.add("attn_q_norm", "attn_q_norm.weight", c.head_dim, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", c.head_dim, layer=i)
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: Gemma3Config, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    everywhere = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    local = decoder.rotation(p, replace(c.rope, freq_base=c.local_freq_base, scaling="none"), n_ctx)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim)
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim)
        q, k = decoder.turned(p, c, q, k, local if c.windowed[i] else everywhere)
        a = p.attention(q, k, v, kv, layer=i, scale=c.query_scale, window=c.window if c.windowed[i] else 0)
        h = p.matmul(layer.attn_output, a, bias=layer.attn_output_bias)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        h = decoder.gated(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), "gelu_tanh")
        x = p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, p.softcap(logits, c.logit_cap) if c.logit_cap else logits
