"""llama4: Llama 4's text models (Meta 2025): chunked attention, layers without positions, routed experts and a shared one.

Three of four layers have rotary embeddings and attend only within their chunk; the fourth has full attention and no positions,
and scales its queries up with the position. Routing weights scale the input of experts, not their result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gumba.backends.base import Buffer, Program, RopeTable
from gumba.elementary import log
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata, read_windows
from gumba.loading.decoder_tensors import add_experts, add_feed_forward, decoder_table
from gumba.loading.weight_loader import MAX_LAYERS, Loader
from gumba.loading.weights import Weights

NAME = "llama4"
FAMILIES = "Llama 4 Scout and Maverick (text)"
VERIFIED = ("transformers", "llama.cpp")
#: Of each PERIOD layers the last has full attention.
PERIOD = 4
#: Constants that files of Scout and Maverick lack: tokens of a chunk; of the scale of queries, see ``temperatures``.
CHUNK, FLOOR, GROWTH = 8192, 8192, 0.1
#: Maverick, the model with this number of experts, has no norms of queries and keys.
PLAIN_EXPERTS = 128


@dataclass(frozen=True)
class Llama4Config(Config):
    """``window``: the size of a chunk; of each ``moe_step`` layers the last has experts; ``floor``, ``growth``: see
    ``temperatures``."""

    moe_step: int
    floor: int
    growth: float

    def has_experts(self, i: int) -> bool:
        """Whether layer ``i`` has experts."""
        return (i + 1) % self.moe_step == 0


def read_config(gguf: GGUFFile) -> Llama4Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window", *EXPERT_KEYS) as metadata:
        common = read_common(metadata, neox=False, freq_base=500000.0)
        return Llama4Config(
            **vars(read_windows(metadata, read_experts(metadata, common), PERIOD, default=CHUNK)),
            moe_step=metadata.count("interleave_moe_layer_step", MAX_LAYERS),
            floor=metadata.count("attention.temperature_length", 1 << 30, FLOOR),
            growth=metadata.number("attention.temperature_scale", GROWTH, or_zero=True),
        )


def load_weights(loader: Loader, c: Llama4Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, feed_forward="none")
    for i in range(c.n_layers):
        if c.has_experts(i):
            add_experts(t, c, i, c.n_experts, c.n_ff_expert, n_shared=c.n_ff_expert)
        else:
            add_feed_forward(t, c, i)
    return t.load(loader, Weights)


def forward(p: Program, c: Llama4Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table, growing = decoder.rope_table(p, c.rope, w.rope_freqs), temperatures(p, c)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.project_qkv(p, layer, h)
        if c.windowed[i]:
            q, k = decoder.apply_rope(p, c, q, k, table)
            if c.n_experts != PLAIN_EXPERTS:
                q = p.head_norm(q, None, c.norm_eps, c.n_heads, c.head_dim)
                k = p.head_norm(k, None, c.norm_eps, c.n_kv_heads, c.head_dim)
        else:
            q = p.rope(q, c.n_heads, c.head_dim, c.head_dim, growing)
        x = decoder.attend(p, c, layer, (q, k, v), i, None, residual=x, chunk=c.window_of(i))
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        if c.has_experts(i):
            scores, parts = (
                p.matmul(layer.ffn_gate_inp, h),
                (layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps),
            )
            mixed = p.moe(h, scores, *parts, c.n_used, "silu", weights="sigmoid", weigh_inputs=True)
            x = p.add(x, p.add(mixed, decoder.shared_expert(p, layer, h)))
        else:
            x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)


def temperatures(p: Program, c: Llama4Config) -> RopeTable:
    """The scale of queries at each position, as the table of a rotation by an angle of 0 (Nakanishi 2025).

    It is 1 + growth * log(1 + floor((position + 1) / floor)).
    """
    steps = np.floor((np.arange(p.max_context, dtype=np.float64) + 1) / c.floor)
    factors = (1 + c.growth * log(1 + steps)).astype(np.float32)
    return p.rope_table(np.zeros(c.head_dim // 2), 1.0, neox=False, factors=factors)
