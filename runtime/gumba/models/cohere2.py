"""cohere2: Command R7B, Command A (Cohere 2024): attention and feed-forward part side by side after a LayerNorm without bias.

Of every four layers three see a window and turn queries and keys; the fourth sees everything and has no positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "cohere2"
FAMILIES = "Command R7B, Command A"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Cohere2Config(Config):
    window: int
    windowed: tuple[bool, ...]
    logit_scale: float


def read_config(gguf: GGUFFile) -> Cohere2Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be({key: v for key, v in WITHOUT.items() if key not in ("attention.sliding_window", "logit_scale")})
    common = decoder.read_common(keys, neox=False, norm="layer_norm_epsilon")
    config: Cohere2Config = common.extended(
        Cohere2Config,
        window=keys.count("attention.sliding_window", 1 << 30),
        windowed=decoder.windowed_layers(keys, common.n_layers, 4),
        logit_scale=keys.number("logit_scale", 0.0, zero=True) or 1.0,
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: Config) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm")
        decoder.add_attention(t, c, i)
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)


def forward(p: Program, c: Cohere2Config, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, None, c.norm_eps)
        local = c.windowed[i]
        x = decoder.attention(
            p, c, layer, h, kv, i, table if local else None, residual=x, window=c.window if local else 0
        )
        x = decoder.swiglu(p, layer, h, residual=x)
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, None, c.norm_eps)
    return hidden, p.scale(p.matmul(w.output or w.token_embd, hidden), c.logit_scale)
