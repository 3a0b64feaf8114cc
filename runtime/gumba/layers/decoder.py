"""What decoders have in common, for architectures to put together: the halves of a layer and what is around the layers.

Beside these parts of a program stand those of a file: what it says (``gumba.loading.config``), and the tensors that it has
(``gumba.loading.decoder_tensors``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gumba.backends.base import Buffer, Program, RopeTable
from gumba.loading.config import Config
from gumba.loading.rope import Rope, frequencies
from gumba.loading.weights import LayerWeights, Weights


def rope_table(p: Program, rope: Rope, factors: np.ndarray | None = None) -> RopeTable:
    """Cosines and sines of all positions. ``factors``: float32 [rope.dim / 2], divisors of the frequencies."""
    inverse_frequencies, magnitude = frequencies(rope, factors)
    return p.rope_table(inverse_frequencies, magnitude, neox=rope.neox)


def project_qkv(p: Program, layer: LayerWeights, h: Buffer) -> tuple[Buffer, Buffer, Buffer]:
    """The three products that attention begins with."""
    return (
        p.matmul(layer.attn_q, h, bias=layer.attn_q_bias),
        p.matmul(layer.attn_k, h, bias=layer.attn_k_bias),
        p.matmul(layer.attn_v, h, bias=layer.attn_v_bias),
    )


def qk_norm(p: Program, c: Config, layer: LayerWeights, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Queries and keys, each head behind its RMS norm (``add_qk_norms``)."""
    return (
        p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim),
        p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim),
    )


def qk_layer_norm(p: Program, c: Config, layer: LayerWeights, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Queries and keys, each head behind its LayerNorm where the layer has one (``add_qk_layer_norms``)."""
    if layer.attn_q_norm is not None:
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim, centred=True)
    if layer.attn_k_norm is not None:
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim, centred=True)
    return q, k


def apply_rope(
    p: Program, c: Config, q: Buffer, k: Buffer, table: RopeTable, rope: Rope | None = None
) -> tuple[Buffer, Buffer]:
    """Queries and keys at their positions."""
    rope = rope or c.rope
    return (
        p.rope(q, c.n_heads, c.head_dim, rope.dim, table, neox=rope.neox),
        p.rope(k, c.n_kv_heads, c.head_dim, rope.dim, table, neox=rope.neox),
    )


def attend(
    p: Program, c: Config, layer: LayerWeights, qkv: tuple[Buffer, Buffer, Buffer], i: int,
    table: RopeTable | None, residual: Buffer | None = None, *, scale: float | None = None, **options: Any,
) -> Buffer:  # fmt: skip
    """Attention from queries, keys and values on, with the output's product.

    ``table``: None without rotation; ``scale``: of scores, by default one over the root of a head's size; ``options``: as of
    ``Program.attention``.
    """
    q, k, v = qkv
    if table is not None:
        q, k = apply_rope(p, c, q, k, table)
    scale = 1.0 / math.sqrt(c.head_dim) if scale is None else scale
    a = p.attention(q, k, v, layer=i, scale=scale, **options)
    return p.matmul(layer.attn_output, a, residual=residual, bias=layer.attn_output_bias)


def attention(
    p: Program, c: Config, layer: LayerWeights, h: Buffer, i: int, table: RopeTable | None,
    residual: Buffer | None = None, **options: Any,
) -> Buffer:  # fmt: skip
    """The usual attention to ``h``; ``table`` and what follows as of ``attend``."""
    return attend(p, c, layer, project_qkv(p, layer, h), i, table, residual, **options)


def qk_norm_attention(
    p: Program, c: Config, layer: LayerWeights, h: Buffer, i: int, table: RopeTable | None,
    residual: Buffer | None = None, **options: Any,
) -> Buffer:  # fmt: skip
    """As ``attention``, with an RMS norm on every head of queries and keys."""
    q, k, v = project_qkv(p, layer, h)
    return attend(p, c, layer, (*qk_norm(p, c, layer, q, k), v), i, table, residual, **options)


def alibi_slopes(n_heads: int, bias: float) -> np.ndarray:
    """What a head's scores lose per token of distance (Press et al. 2022), float32 [n_heads]."""
    whole = 1 << (n_heads.bit_length() - 1)
    powers = [
        bias * (h + 1) / whole if h < whole else bias * (2 * (h - whole) + 1) / (2 * whole) for h in range(n_heads)
    ]
    return np.array([2.0**-power for power in powers], np.float32)


def gated_ffn(p: Program, layer: LayerWeights, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """A feed-forward part with a gate (Shazeer 2020)."""
    gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
    up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
    return p.matmul(layer.ffn_down, p.gated(gate, up, kind), residual=residual, bias=layer.ffn_down_bias)


def swiglu(p: Program, layer: LayerWeights, h: Buffer, residual: Buffer | None = None) -> Buffer:
    """The usual feed-forward part."""
    return gated_ffn(p, layer, h, "silu", residual)


def plain_ffn(p: Program, layer: LayerWeights, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """A feed-forward part without a gate."""
    up = p.activation(p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias), kind)
    return p.matmul(layer.ffn_down, up, residual=residual, bias=layer.ffn_down_bias)


def post_norm_block(p: Program, c: Config, layer: LayerWeights, x: Buffer, attended: Buffer, kind: str) -> Buffer:
    """The rest of a layer with a norm before and after each half, from what its attention gives."""
    x = p.add(x, p.rms_norm(attended, layer.post_attention_norm, c.norm_eps))
    h = gated_ffn(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), kind)
    return p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))


def moe_ffn(p: Program, layer: LayerWeights, h: Buffer, n_used: int, *, normalized: bool = True) -> Buffer:
    """A mixture of experts with SwiGLU."""
    logits = p.matmul(layer.ffn_gate_inp, h)
    parts = layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps
    return p.moe(h, logits, *parts, n_used, "silu", normalized=normalized)


def shared_expert(p: Program, layer: LayerWeights, h: Buffer) -> Buffer:
    """The expert that every token takes."""
    return p.matmul(layer.ffn_down_shexp, p.swiglu(p.matmul(layer.ffn_gate_shexp, h), p.matmul(layer.ffn_up_shexp, h)))


def gated_shared_expert(p: Program, layer: LayerWeights, h: Buffer) -> Buffer:
    """As ``shared_expert``, which counts by a gate of its own, a sigmoid."""
    gate = p.activation(p.matmul(layer.ffn_gate_inp_shexp, h), "sigmoid")
    return p.scale_rows(shared_expert(p, layer, h), gate)


def outputs(p: Program, c: Config, w: Weights, x: Buffer) -> tuple[Buffer, Buffer]:
    """The last hidden states and the logits of the rows that are wanted, or what the head makes of them."""
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    if c.n_labels:
        return hidden, p.matmul(w.cls_output, hidden, bias=w.cls_output_bias)
    return hidden, p.matmul(w.output or w.token_embd, hidden)


def layer_norm_outputs(p: Program, c: Config, w: Weights, x: Buffer) -> tuple[Buffer, Buffer]:
    """As ``outputs``, of an architecture with LayerNorm."""
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, w.output_norm_bias, c.norm_eps)
    return hidden, p.matmul(w.output or w.token_embd, hidden, bias=w.output_bias)
