"""What decoders have in common: sizes, tensors and the two halves of a layer, for architectures to put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from gumba.errors import ModelError, UnsupportedError
from gumba.kernels.rope import rope_table
from gumba.models.keys import Keys
from gumba.models.loader import MAX_LAYERS, MAX_WIDTH
from gumba.models.rotary import Rope, frequencies, read_rope
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program
from gumba.program.experts import moe

#: GGUF's ``pooling_type``, by number. "rank": a head judges the text.
POOLINGS = ("none", "mean", "first", "last", "rank")


@dataclass(frozen=True)
class Config:
    """Sizes and constants, from metadata ``NAME.*``."""

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    #: Which hidden states the model was trained to be judged by, one of ``POOLINGS``; "" where the file says nothing.
    pooling: str = field(default="", kw_only=True)

    #: Whether a token sees only those before it, and the model has logits.
    causal = True
    #: Types of tokens that are told apart (the first and the second text of a pair).
    n_types = 1

    @property
    def n_q(self) -> int:
        """Width of all queries."""
        return self.n_heads * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of all keys."""
        return self.n_kv_heads * self.head_dim

    def extended(self, cls: type, **more: Any) -> Any:
        """The same as a ``cls`` (a Config with more fields)."""
        return cls(**{each.name: getattr(self, each.name) for each in fields(Config)}, **more)


#: Largest number of experts, and of those that a token chooses.
MAX_EXPERTS, MAX_CHOSEN = 1024, 64
#: Keys with the only values that have no effect, for architectures without what they ask for.
WITHOUT: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}


def read_common(
    keys: Keys,
    *,
    neox: bool,
    norm: str = "layer_norm_rms_epsilon",
    freq_base: float = 10000.0,
    own_values: bool = False,
    n_kv_heads: int | None = None,
) -> Config:
    """What all decoders say of themselves.

    ``norm``: the key of the norms' epsilon; ``neox``: see ``Rope``; ``own_values``: values may have another size than keys;
    ``n_kv_heads``: None for a number that is the same in all layers.
    """
    path, name = keys.gguf.path, keys.name
    n_embd = keys.count("embedding_length", MAX_WIDTH)
    n_heads = keys.count("attention.head_count", MAX_WIDTH)
    if n_kv_heads is None:
        n_kv_heads = keys.count("attention.head_count_kv", MAX_WIDTH, n_heads)
    if n_heads % n_kv_heads:
        raise ModelError(
            f"{path}: metadata {name}.attention.head_count {n_heads} is no multiple of head_count_kv {n_kv_heads}"
        )
    if not keys.has("attention.key_length") and n_embd % n_heads:
        raise ModelError(
            f"{path}: metadata {name}.embedding_length {n_embd} is no multiple of attention.head_count {n_heads}"
        )
    head_dim = keys.count("attention.key_length", 4096, max(1, n_embd // n_heads))
    value_dim = keys.count("attention.value_length", 4096, head_dim)
    if value_dim != head_dim and not own_values:
        raise UnsupportedError(
            f"{path}: metadata {name}.attention.value_length {value_dim} differs from key_length {head_dim}"
        )
    n_ctx_train = keys.count("context_length", 1 << 30)
    pooled = keys.has("pooling_type")
    return Config(
        architecture=name,
        pooling=POOLINGS[keys.size("pooling_type", len(POOLINGS) - 1)] if pooled else "",
        n_vocab=keys.vocabulary_size(),
        n_ctx_train=n_ctx_train,
        n_layers=keys.count("block_count", MAX_LAYERS),
        n_embd=n_embd,
        n_ff=keys.count("feed_forward_length", MAX_WIDTH),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number(f"attention.{norm}", least=1e-30, most=1.0),
        rope=read_rope(keys, head_dim, n_ctx_train, neox=neox, freq_base=freq_base),
    )


def read_experts(keys: Keys) -> tuple[int, int]:
    """Experts of a layer, and those that a token chooses; 0 and 0 where there are none."""
    n_experts = keys.size("expert_count", MAX_EXPERTS)
    n_used = keys.size("expert_used_count", min(MAX_CHOSEN, n_experts) if n_experts else MAX_CHOSEN)
    if n_experts and not n_used:
        raise ModelError(f"{keys.gguf.path}: metadata {keys.name}.expert_used_count is 0, expected 1 to {n_experts}")
    return (n_experts, n_used) if n_experts else (0, 0)


def add_outer(
    t: Tensors, c: Config, *, norm: str = "output_norm", norm_bias: bool = False, output_bias: bool = False
) -> None:
    """Embedding, last norm (``norm``: its name), output matrix (absent: the embedding), frequency factors."""
    t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    t.add("output_norm", f"{norm}.weight", c.n_embd)
    t.add("output", "output.weight", c.n_vocab, c.n_embd, required=False)
    t.add("rope_freqs", "rope_freqs.weight", c.rope.dim // 2, required=False)
    if norm_bias:
        t.add("output_norm_bias", "output_norm.bias", c.n_embd)
    if output_bias:
        t.add("output_bias", "output.bias", c.n_vocab, required=False)


def add_norms(t: Tensors, c: Config, i: int, *names: str, bias: bool = False) -> None:
    """Norms over the whole width, of layer ``i``."""
    for name in names:
        t.add(name, f"{name}.weight", c.n_embd, layer=i)
        if bias:
            t.add(f"{name}_bias", f"{name}.bias", c.n_embd, layer=i)


def add_attention(t: Tensors, c: Config, i: int) -> None:
    """Queries, keys, values and output of layer ``i``: one tensor each, or the first three in one; with biases or without."""
    parts = {"attn_q": c.n_q, "attn_k": c.n_kv, "attn_v": c.n_kv}
    if t.has(f"blk.{i}.attn_qkv.weight"):
        t.split("attn_qkv.weight", parts, c.n_embd, layer=i)
        t.split("attn_qkv.bias", {f"{name}_bias": rows for name, rows in parts.items()}, layer=i, required=False)
    else:
        for name, rows in parts.items():
            t.add(name, f"{name}.weight", rows, c.n_embd, layer=i)
            t.add(f"{name}_bias", f"{name}.bias", rows, layer=i, required=False)
    t.add("attn_output", "attn_output.weight", c.n_embd, c.n_q, layer=i)
    t.add("attn_output_bias", "attn_output.bias", c.n_embd, layer=i, required=False)


def add_head_norms(t: Tensors, c: Config, i: int) -> None:
    """LayerNorms of queries and keys in layer ``i``, with weights of its own for each head; absent in some files."""
    t.add("attn_q_norm", "attn_q_norm.weight", c.n_heads, c.head_dim, layer=i, required=False)
    t.add("attn_k_norm", "attn_k_norm.weight", c.n_kv_heads, c.head_dim, layer=i, required=False)


def add_feed_forward(t: Tensors, c: Config, i: int, *, gate: bool = True, fused: bool = False) -> None:
    """The feed-forward part of layer ``i``; ``fused``: gate and up in one tensor, in this order."""
    parts = {"ffn_gate": c.n_ff, "ffn_up": c.n_ff} if gate else {"ffn_up": c.n_ff}
    if fused:
        t.split("ffn_up.weight", parts, c.n_embd, layer=i)
        t.add("ffn_gate_bias", "ffn_gate.bias", c.n_ff, layer=i, required=False)
        t.add("ffn_up_bias", "ffn_up.bias", c.n_ff, layer=i, required=False)
    else:
        for name, rows in parts.items():
            t.add(name, f"{name}.weight", rows, c.n_embd, layer=i)
            t.add(f"{name}_bias", f"{name}.bias", rows, layer=i, required=False)
    t.add("ffn_down", "ffn_down.weight", c.n_embd, c.n_ff, layer=i)
    t.add("ffn_down_bias", "ffn_down.bias", c.n_embd, layer=i, required=False)


def add_experts(
    t: Tensors, c: Config, i: int, n_experts: int, n_ff: int, *, n_shared: int = 0, bias: bool = False
) -> None:
    """The experts of layer ``i``, each of width ``n_ff``.

    ``n_shared``: width of the one that every token takes as well; ``bias``: router and experts have biases.
    """
    t.add("ffn_gate_inp", "ffn_gate_inp.weight", n_experts, c.n_embd, layer=i)
    t.add("ffn_gate_exps", "ffn_gate_exps.weight", n_experts, n_ff, c.n_embd, layer=i)
    t.add("ffn_up_exps", "ffn_up_exps.weight", n_experts, n_ff, c.n_embd, layer=i)
    t.add("ffn_down_exps", "ffn_down_exps.weight", n_experts, c.n_embd, n_ff, layer=i)
    if bias:
        t.add("ffn_gate_inp_bias", "ffn_gate_inp.bias", n_experts, layer=i)
        t.add_bias("ffn_gate_exps", "ffn_gate_exps.bias", n_experts, n_ff, layer=i)
        t.add_bias("ffn_up_exps", "ffn_up_exps.bias", n_experts, n_ff, layer=i)
        t.add_bias("ffn_down_exps", "ffn_down_exps.bias", n_experts, c.n_embd, layer=i)
    if n_shared:
        t.add("ffn_gate_shexp", "ffn_gate_shexp.weight", n_shared, c.n_embd, layer=i)
        t.add("ffn_up_shexp", "ffn_up_shexp.weight", n_shared, c.n_embd, layer=i)
        t.add("ffn_down_shexp", "ffn_down_shexp.weight", c.n_embd, n_shared, layer=i)


def rotation(p: Program, rope: Rope, n_ctx: int, factors: np.ndarray | None = None) -> int:
    """The constant that ``Program.rope`` turns by."""
    turning, magnitude = frequencies(rope, factors)
    return p.constant(rope_table(turning, n_ctx, magnitude, neox=rope.neox), pad=False)


def queries_keys_values(p: Program, layer: Group, h: Buffer) -> tuple[Buffer, Buffer, Buffer]:
    """The three products that attention begins with."""
    return (
        p.matmul(layer.attn_q, h, bias=layer.attn_q_bias),
        p.matmul(layer.attn_k, h, bias=layer.attn_k_bias),
        p.matmul(layer.attn_v, h, bias=layer.attn_v_bias),
    )


def layer_normed_heads(p: Program, c: Config, layer: Group, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Queries and keys, each head behind its LayerNorm where the layer has one (``add_head_norms``)."""
    if layer.attn_q_norm is not None:
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim, centred=True)
    if layer.attn_k_norm is not None:
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim, centred=True)
    return q, k


def turned(p: Program, c: Config, q: Buffer, k: Buffer, table: int, rope: Rope | None = None) -> tuple[Buffer, Buffer]:
    """Queries and keys at their positions."""
    rope = rope or c.rope
    return (
        p.rope(q, c.n_heads, c.head_dim, rope.dim, table, neox=rope.neox),
        p.rope(k, c.n_kv_heads, c.head_dim, rope.dim, table, neox=rope.neox),
    )


def attention(
    p: Program,
    c: Config,
    layer: Group,
    h: Buffer,
    kv: Sequence[KVLayout],
    i: int,
    table: int | None,
    residual: Buffer | None = None,
    window: int = 0,
) -> Buffer:
    """The usual attention, scaled by the root of the head's size, with the output's product. ``table``: None without rotation."""
    q, k, v = queries_keys_values(p, layer, h)
    if table is not None:
        q, k = turned(p, c, q, k, table)
    a = p.attention(q, k, v, kv, layer=i, scale=1.0 / math.sqrt(c.head_dim), window=window)
    return p.matmul(layer.attn_output, a, residual=residual, bias=layer.attn_output_bias)


def head_normed_attention(
    p: Program,
    c: Config,
    layer: Group,
    h: Buffer,
    kv: Sequence[KVLayout],
    i: int,
    table: int,
    residual: Buffer | None = None,
) -> Buffer:
    """As ``attention``, with an RMS norm on every head of queries and keys."""
    q, k, v = queries_keys_values(p, layer, h)
    q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim)
    k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim)
    q, k = turned(p, c, q, k, table)
    a = p.attention(q, k, v, kv, layer=i, scale=1.0 / math.sqrt(c.head_dim))
    return p.matmul(layer.attn_output, a, residual=residual, bias=layer.attn_output_bias)


def swiglu(p: Program, layer: Group, h: Buffer, residual: Buffer | None = None) -> Buffer:
    """The usual feed-forward part (Shazeer 2020)."""
    gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
    up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
    return p.matmul(layer.ffn_down, p.swiglu(gate, up), residual=residual, bias=layer.ffn_down_bias)


def experts(p: Program, layer: Group, h: Buffer, n_used: int, *, normalized: bool = True) -> Buffer:
    """A mixture of experts with SwiGLU."""
    logits = p.matmul(layer.ffn_gate_inp, h)
    parts = layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps
    return moe(p, h, logits, *parts, n_used, "silu", normalized=normalized)


def shared_expert(p: Program, layer: Group, h: Buffer) -> Buffer:
    """The expert that every token takes."""
    return p.matmul(layer.ffn_down_shexp, p.swiglu(p.matmul(layer.ffn_gate_shexp, h), p.matmul(layer.ffn_up_shexp, h)))


def alibi_slopes(n_heads: int, bias: float) -> np.ndarray:
    """What a head's scores lose per token of distance (Press et al. 2022), float32 [n_heads]."""
    whole = 1 << (n_heads.bit_length() - 1)
    powers = [
        bias * (h + 1) / whole if h < whole else bias * (2 * (h - whole) + 1) / (2 * whole) for h in range(n_heads)
    ]
    return np.array([2.0**-power for power in powers], np.float32)


def gated(p: Program, layer: Group, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """As ``swiglu``, with another activation."""
    gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
    up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
    return p.matmul(layer.ffn_down, p.gated(gate, up, kind), residual=residual, bias=layer.ffn_down_bias)


def plain(p: Program, layer: Group, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """A feed-forward part without a gate."""
    up = p.activation(p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias), kind)
    return p.matmul(layer.ffn_down, up, residual=residual, bias=layer.ffn_down_bias)


def outputs(p: Program, c: Config, w: Group, x: Buffer) -> tuple[Buffer, Buffer]:
    """The last hidden states and the logits of the rows that are wanted."""
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    return hidden, p.matmul(w.output or w.token_embd, hidden)


def layer_norm_outputs(p: Program, c: Config, w: Group, x: Buffer) -> tuple[Buffer, Buffer]:
    """As ``outputs``, of an architecture with LayerNorm."""
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, w.output_norm_bias, c.norm_eps)
    return hidden, p.matmul(w.output or w.token_embd, hidden, bias=getattr(w, "output_bias", None))


def windowed_layers(keys: Keys, n_layers: int, period: int) -> tuple[bool, ...]:
    """Which layers see a window only: all but the last of each ``period``, unless the file says otherwise."""
    key = "attention.sliding_window_pattern"
    if keys.is_array(key):
        return keys.flags(key, n_layers) or ()
    period = keys.count(key, MAX_LAYERS, period)
    return tuple((i + 1) % period != 0 for i in range(n_layers))
