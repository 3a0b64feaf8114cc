"""gemma2: Gemma 2 (Riviere et al. 2024): norms before and after each half of a layer, soft caps, and windows.

Scores and logits are capped by a tangent; the first, third, ... layers see only the last ``sliding_window`` tokens. Queries are
scaled by their own constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "gemma2"
FAMILIES = "Gemma 2"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Gemma2Config(Config):
    window: int
    score_cap: float
    logit_cap: float
    query_scale: float


def read_config(gguf: GGUFFile) -> Gemma2Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    own = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "attention.scale")
    keys.must_be({key: values for key, values in WITHOUT.items() if key not in own})
    common = decoder.read_common(keys, neox=True)
    # The largest of the family scales by the width over the number of heads, which is not the size of its heads.
    usual = common.n_embd // common.n_heads if common.n_layers == 46 else common.head_dim
    config: Gemma2Config = common.extended(
        Gemma2Config,
        window=keys.count("attention.sliding_window", 1 << 30, 4096),
        score_cap=keys.number("attn_logit_softcapping", 50.0),
        logit_cap=keys.number("final_logit_softcapping", 30.0),
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
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: Gemma2Config, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q, k = decoder.turned(p, c, q, k, table)
        window = c.window if i % 2 == 0 else 0
        a = p.attention(q, k, v, kv, layer=i, scale=c.query_scale, window=window, softcap=c.score_cap)
        h = p.matmul(layer.attn_output, a, bias=layer.attn_output_bias)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        h = decoder.gated(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), "gelu_tanh")
        x = p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, p.softcap(logits, c.logit_cap)
