"""Parts of a decoder layer that several architectures share, written as operations of a program.

Activations are float32 [n_tokens, width]. ``residual`` is added to a part's result. The configuration and the tensors that these
parts need come from ``gumba.loading.config`` and ``gumba.loading.decoder_tensors``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from gumba.backends.base import Buffer, Program, RopeTable
from gumba.elementary import powers
from gumba.loading.config import Config
from gumba.loading.rope import Rope, frequencies
from gumba.loading.weights import LayerWeights, Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AttentionOptions(TypedDict, total=False):
    """Options of ``Operations.attention``."""

    window: int
    softcap: float
    sinks: np.ndarray | None
    slopes: np.ndarray | None
    causal: bool
    chunk: int
    bias: np.ndarray | None
    part: Literal["all", "source", "answer"]


def rope_table(p: Program, rope: Rope, factors: np.ndarray | None = None) -> RopeTable:
    """Cosines and sines of all positions. ``factors``: float32 [rope.dim / 2], divisors of the frequencies."""
    inverse_frequencies, magnitude = frequencies(rope, factors)
    return p.rope_table(inverse_frequencies, magnitude, neox=rope.neox)


def apply_rope(
    p: Program, c: Config, q: Buffer, k: Buffer, table: RopeTable, rope: Rope | None = None
) -> tuple[Buffer, Buffer]:
    """Apply rotary embeddings to q and k. ``rope``: the constants of ``table``, by default the configuration's."""
    rope = rope or c.rope
    return (
        p.rope(q, c.n_heads, c.head_dim, rope.dim, table, neox=rope.neox),
        p.rope(k, c.n_kv_heads, c.head_dim, rope.dim, table, neox=rope.neox),
    )


def project_qkv(p: Program, layer: LayerWeights, h: Buffer) -> tuple[Buffer, Buffer, Buffer]:
    """Queries [n_tokens, n_heads * head_dim]; keys and values [n_tokens, n_kv_heads * head_dim]."""
    return (
        p.matmul(layer.attn_q, h, bias=layer.attn_q_bias),
        p.matmul(layer.attn_k, h, bias=layer.attn_k_bias),
        p.matmul(layer.attn_v, h, bias=layer.attn_v_bias),
    )


def qk_norm(p: Program, c: Config, layer: LayerWeights, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Apply an RMS norm to each head of q and k (``add_qk_norms``; Henry et al. 2020)."""
    return (
        p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim),
        p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim),
    )


def qk_layer_norm(p: Program, c: Config, layer: LayerWeights, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Apply a LayerNorm to each head of q and k, if the layer has them (``add_qk_layer_norms``)."""
    if layer.attn_q_norm is not None:
        q = p.head_norm(q, layer.attn_q_norm, c.norm_eps, c.n_heads, c.head_dim, centred=True)
    if layer.attn_k_norm is not None:
        k = p.head_norm(k, layer.attn_k_norm, c.norm_eps, c.n_kv_heads, c.head_dim, centred=True)
    return q, k


def attend(
    p: Program, c: Config, layer: LayerWeights, qkv: tuple[Buffer, Buffer, Buffer], i: int,
    table: RopeTable | None, residual: Buffer | None = None, *, scale: float | None = None,
    **options: Unpack[AttentionOptions],
) -> Buffer:  # fmt: skip
    """Attention of layer ``i`` with given queries, keys and values, and the output projection.

    ``table``: of the rotary embeddings to apply to q and k; None: they have no positions, or have them already.
    ``scale``: of the scores, by default 1 / sqrt(head_dim).
    """
    q, k, v = qkv
    if table is not None:
        q, k = apply_rope(p, c, q, k, table)
    scale = 1.0 / math.sqrt(c.head_dim) if scale is None else scale
    a = p.attention(q, k, v, layer=i, scale=scale, **options)
    return p.matmul(layer.attn_output, a, residual=residual, bias=layer.attn_output_bias)


def attention(
    p: Program, c: Config, layer: LayerWeights, h: Buffer, i: int, table: RopeTable | None,
    residual: Buffer | None = None, *, scale: float | None = None,
    **options: Unpack[AttentionOptions],
) -> Buffer:  # fmt: skip
    """Attention of layer ``i`` to ``h``, as in ``models/llama.py``; arguments as in ``attend``."""
    return attend(p, c, layer, project_qkv(p, layer, h), i, table, residual, scale=scale, **options)


def qk_norm_attention(
    p: Program, c: Config, layer: LayerWeights, h: Buffer, i: int, table: RopeTable | None,
    residual: Buffer | None = None, *, scale: float | None = None,
    **options: Unpack[AttentionOptions],
) -> Buffer:  # fmt: skip
    """``attention`` with an RMS norm on each head of queries and keys."""
    q, k, v = project_qkv(p, layer, h)
    return attend(p, c, layer, (*qk_norm(p, c, layer, q, k), v), i, table, residual, scale=scale, **options)


def alibi_slopes(n_heads: int, bias: float) -> np.ndarray:
    """ALiBi (Press et al. 2022): what each head subtracts from its scores per token of distance, float32 [n_heads]."""
    n = 1 << (n_heads.bit_length() - 1)  # heads beyond a power of two take slopes between those of the first n
    exponents = [bias * (h + 1) / n if h < n else bias * (2 * (h - n) + 1) / (2 * n) for h in range(n_heads)]
    return powers(2.0, [-exponent for exponent in exponents]).astype(np.float32)


def gated_ffn(p: Program, layer: LayerWeights, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """Feed-forward network with a gate (Shazeer 2020): down(kind(gate(h)) * up(h)); ``kind``: an activation."""
    gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
    up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
    return p.matmul(layer.ffn_down, p.gated(gate, up, kind), residual=residual, bias=layer.ffn_down_bias)


def swiglu(p: Program, layer: LayerWeights, h: Buffer, residual: Buffer | None = None) -> Buffer:
    """Feed-forward network with SwiGLU: ``gated_ffn`` with SiLU."""
    return gated_ffn(p, layer, h, "silu", residual)


def plain_ffn(p: Program, layer: LayerWeights, h: Buffer, kind: str, residual: Buffer | None = None) -> Buffer:
    """Feed-forward network without a gate: down(kind(up(h)))."""
    up = p.activation(p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias), kind)
    return p.matmul(layer.ffn_down, up, residual=residual, bias=layer.ffn_down_bias)


def post_norm_block(p: Program, c: Config, layer: LayerWeights, x: Buffer, attended: Buffer, kind: str) -> Buffer:
    """The rest of a layer with norms before and after attention and feed-forward network; ``attended``: attention's result."""
    x = p.add(x, p.rms_norm(attended, layer.post_attention_norm, c.norm_eps))
    h = gated_ffn(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), kind)
    return p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))


def moe_ffn(p: Program, layer: LayerWeights, h: Buffer, n_used: int, *, normalized: bool = True) -> Buffer:
    """Mixture of experts with SwiGLU; ``normalized``: the weights of a token's ``n_used`` experts sum to 1."""
    logits = p.matmul(layer.ffn_gate_inp, h)
    parts = layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps
    return p.moe(h, logits, *parts, n_used, "silu", normalized=normalized)


def shared_expert(p: Program, layer: LayerWeights, h: Buffer) -> Buffer:
    """The shared expert, which every token takes."""
    return p.matmul(layer.ffn_down_shexp, p.swiglu(p.matmul(layer.ffn_gate_shexp, h), p.matmul(layer.ffn_up_shexp, h)))


def gated_shared_expert(p: Program, layer: LayerWeights, h: Buffer) -> Buffer:
    """The shared expert, weighted by a sigmoid gate."""
    gate = p.activation(p.matmul(layer.ffn_gate_inp_shexp, h), "sigmoid")
    return p.scale_rows(shared_expert(p, layer, h), gate)


def outputs(p: Program, c: Config, w: Weights, x: Buffer) -> tuple[Buffer, Buffer]:
    """The last hidden states, and the logits or a classifier head's outputs, of the tokens whose outputs are wanted."""
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    if c.n_labels:
        return hidden, p.matmul(w.cls_output, hidden, bias=w.cls_output_bias)
    return hidden, p.matmul(w.output or w.token_embd, hidden)


def layer_norm_outputs(p: Program, c: Config, w: Weights, x: Buffer) -> tuple[Buffer, Buffer]:
    """``outputs`` of an architecture with LayerNorm."""
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, w.output_norm_bias, c.norm_eps)
    return hidden, p.matmul(w.output or w.token_embd, hidden, bias=w.output_bias)
