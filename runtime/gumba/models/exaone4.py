"""exaone4: EXAONE 4.0 (LG AI Research 2025): norms after each half of a layer, and on every head of queries and keys.

The larger model's layers see a window and turn queries and keys, but for every fourth, which sees everything and has no
positions; in the smaller one all layers see everything and turn.
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

NAME = "exaone4"
FAMILIES = "EXAONE 4.0"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Exaone4Config(Config):
    window: int
    windowed: tuple[bool, ...]


def read_config(gguf: GGUFFile) -> Exaone4Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be({key: values for key, values in WITHOUT.items() if key != "attention.sliding_window"})
    common = decoder.read_common(keys, neox=True)
    config: Exaone4Config = common.extended(
        Exaone4Config,
        window=keys.size("attention.sliding_window", 1 << 30),
        windowed=decoder.windowed_layers(keys, common.n_layers, 4),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: Config) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "post_attention_norm", "post_ffw_norm")
        decoder.add_attention(t, c, i)
        t.add("attn_q_norm", "attn_q_norm.weight", c.head_dim, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", c.head_dim, layer=i)
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: Exaone4Config, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        local = c.window > 0 and c.windowed[i]
        q, k, v = decoder.queries_keys_values(p, layer, x)
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim)
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim)
        if local or not c.window:
            q, k = decoder.turned(p, c, q, k, table)
        a = p.attention(q, k, v, kv, layer=i, scale=1.0 / math.sqrt(c.head_dim), window=c.window if local else 0)
        h = p.matmul(layer.attn_output, a, bias=layer.attn_output_bias)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        x = p.add(x, p.rms_norm(decoder.swiglu(p, layer, x), layer.post_ffw_norm, c.norm_eps))
    return decoder.outputs(p, c, w, x)
