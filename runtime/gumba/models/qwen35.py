"""qwen35: Qwen3.5 (Qwen 2026): three of four layers are recurrent (gated delta rule), the fourth is attention with a gate.

``qwen35moe`` uses this file, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gumba.backends.base import Buffer, Matrix, Program, RopeTable
from gumba.backends.cache_shapes import (
    DELTA_DIM_MULTIPLE,
    MAX_CONV_TAPS,
    NOTHING,
    ConvState,
    DeltaState,
    KVShape,
    StateShape,
)
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata
from gumba.loading.decoder_tensors import add_embeddings, add_experts, add_feed_forward, add_norms, add_qk_norms
from gumba.loading.metadata import MetadataReader
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH, Loader
from gumba.loading.weights import Array, LayerWeights, Weights

NAME = "qwen35"
FAMILIES = "Qwen3.5 (0.8B, 2B, 4B, 9B, 27B)"
VERIFIED = ("transformers", "llama.cpp")

#: Added to the squared length by which queries and keys are normalized.
LENGTH_EPS = 1e-6
#: Parts of a layer's state: past inputs of the convolution of q and k, of that of v, and the matrices of the delta rule.
CONV_QK, CONV_V, MATRICES = range(3)


class Qwen35Layer(LayerWeights):
    """The tensors of recurrent layers. ``attn_q`` of attention layers holds queries and their gates."""

    attn_qk: Matrix
    attn_gate: Matrix
    ssm_conv1d_qk: Array
    ssm_conv1d_v: Array
    ssm_alpha: Matrix
    ssm_beta: Matrix
    ssm_dt_bias: Array
    ssm_a: Array
    ssm_norm: Array
    ssm_out: Matrix


class Qwen35Weights(Weights):
    layers: Sequence[Qwen35Layer]


@dataclass(frozen=True)
class Qwen35Config(Config):
    n_blocks: int  # layers in the file: the last ones may be for multi-token prediction, which is not used
    recurrent: tuple[bool, ...]  # whether each layer is recurrent, or else attention
    n_taps: int  # tokens that a convolution spans
    n_key_heads: int
    n_value_heads: int
    state_dim: int  # elements of a head of keys, and of values
    n_ff_shared: int

    @property
    def n_state_qk(self) -> int:
        """Width of queries and keys together in recurrent layers."""
        return 2 * self.n_key_heads * self.state_dim

    @property
    def n_state_v(self) -> int:
        """Width of values in recurrent layers."""
        return self.n_value_heads * self.state_dim

    @property
    def kv_shapes(self) -> list[KVShape]:
        """Only attention layers have keys and values in the cache."""
        attention = KVShape(self.n_kv_heads, self.head_dim, self.head_dim)
        return [NOTHING if recurrent else attention for recurrent in self.recurrent]

    @property
    def state_parts(self) -> list[tuple[StateShape, ...]]:
        """float32 of the parts of each layer's state."""
        convolutions = ConvState(self.n_state_qk, self.n_taps), ConvState(self.n_state_v, self.n_taps)
        parts = (*convolutions, DeltaState(self.n_value_heads, self.state_dim))
        return [parts if recurrent else () for recurrent in self.recurrent]


def read_config(gguf: GGUFFile) -> Qwen35Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_named(gguf, NAME)


def read_named(gguf: GGUFFile, name: str, *, sparse: bool = False) -> Qwen35Config:
    """``read_config`` for the architecture ``name``; ``sparse``: with experts."""
    with read_metadata(gguf, name, *(EXPERT_KEYS if sparse else ()), multimodal=True) as metadata:
        n_ff_expert = metadata.count("expert_feed_forward_length", MAX_WIDTH) if sparse else 0
        common = read_common(metadata, neox=True, freq_base=10000000.0, n_ff=n_ff_expert or None)
        n_ff_shared = 0
        if sparse:
            common = read_experts(metadata, common)
            n_ff_shared = metadata.count("expert_shared_feed_forward_length", MAX_WIDTH)
        n_blocks = common.n_layers
        common = replace(common, n_layers=n_blocks - metadata.size("nextn_predict_layers", n_blocks - 1))
        recurrent = _recurrent_layers(metadata, n_blocks, common.n_layers)
        n_taps, n_key_heads, n_value_heads, state_dim = _read_delta_net(metadata)
        return Qwen35Config(
            **vars(common),
            n_blocks=n_blocks,
            recurrent=recurrent,
            n_taps=n_taps,
            n_key_heads=n_key_heads,
            n_value_heads=n_value_heads,
            state_dim=state_dim,
            n_ff_shared=n_ff_shared,
        )


def _recurrent_layers(metadata: MetadataReader, n_blocks: int, n_layers: int) -> tuple[bool, ...]:
    """Which layers are recurrent: a flag per layer in the file, or all but the last of each period."""
    period = metadata.count("full_attention_interval", MAX_LAYERS, 4)
    usual = tuple((i + 1) % period != 0 for i in range(n_blocks))
    recurrent = (metadata.flags("attention.recurrent_layers", n_blocks) or usual)[:n_layers]
    if all(recurrent) or not any(recurrent):
        raise metadata.unsupported(
            "attention.recurrent_layers", "expected layers of both kinds, but all layers are of one kind"
        )
    return recurrent


def _read_delta_net(metadata: MetadataReader) -> tuple[int, int, int, int]:
    """Sizes of the recurrent layers: taps of the convolution, key heads, value heads, elements of a head."""
    dim, n_values, n_keys = (
        metadata.count(f"ssm.{key}", 1024) for key in ("state_size", "time_step_rank", "group_count")
    )
    if dim % DELTA_DIM_MULTIPLE:
        raise metadata.unsupported("ssm.state_size", f"is {dim}, expected a multiple of {DELTA_DIM_MULTIPLE}")
    if n_values % n_keys:
        raise metadata.error("ssm.time_step_rank", f"{n_values} is not a multiple of ssm.group_count {n_keys}")
    if metadata.count("ssm.inner_size", MAX_WIDTH) != n_values * dim:
        raise metadata.error("ssm.inner_size", f"expected {n_values} heads of {dim}")
    n_taps = metadata.count("ssm.conv_kernel", MAX_CONV_TAPS)
    return n_taps, n_keys, n_values, dim


def load_weights(loader: Loader, c: Qwen35Config) -> Qwen35Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c)
    for i, recurrent in enumerate(c.recurrent):
        add_norms(t, c, i, "attn_norm", "post_attention_norm")
        (_add_delta_net if recurrent else _add_gated_attention)(t, c, i)
        if c.n_experts:
            add_experts(t, c, i, c.n_experts, c.n_ff_expert, n_shared=c.n_ff_shared)
            t.add_row("ffn_gate_inp_shexp", "ffn_gate_inp_shexp.weight", c.n_embd, layer=i)
        else:
            add_feed_forward(t, c, i)
    further = tuple(f"blk.{i}." for i in range(c.n_layers, c.n_blocks))
    return t.load(loader, Qwen35Weights, lambda name: name.startswith(further))


def _add_delta_net(t: TensorTable, c: Qwen35Config, i: int) -> None:
    """A recurrent layer: Q, K and V in one tensor, convolutions, gates, norm and output."""
    t.split("attn_qkv.weight", {"attn_qk": c.n_state_qk, "attn_v": c.n_state_v}, c.n_embd, layer=i)
    t.split("ssm_conv1d.weight", {"ssm_conv1d_qk": c.n_state_qk, "ssm_conv1d_v": c.n_state_v}, c.n_taps, layer=i)
    t.add("attn_gate", "attn_gate.weight", c.n_state_v, c.n_embd, layer=i)
    t.add("ssm_alpha", "ssm_alpha.weight", c.n_value_heads, c.n_embd, layer=i)
    t.add("ssm_beta", "ssm_beta.weight", c.n_value_heads, c.n_embd, layer=i)
    t.add("ssm_dt_bias", "ssm_dt.bias", c.n_value_heads, layer=i)
    t.add("ssm_a", "ssm_a", c.n_value_heads, layer=i)
    t.add("ssm_norm", "ssm_norm.weight", c.state_dim, layer=i)
    t.add("ssm_out", "ssm_out.weight", c.n_embd, c.n_state_v, layer=i)


def _add_gated_attention(t: TensorTable, c: Qwen35Config, i: int) -> None:
    """An attention layer; in the tensor of queries each head is followed by its gate."""
    t.add("attn_q", "attn_q.weight", 2 * c.n_q, c.n_embd, layer=i)
    t.add("attn_k", "attn_k.weight", c.n_kv, c.n_embd, layer=i)
    t.add("attn_v", "attn_v.weight", c.n_kv, c.n_embd, layer=i)
    t.add("attn_output", "attn_output.weight", c.n_embd, c.n_q, layer=i)
    add_qk_norms(t, c, i)


def forward(p: Program, c: Qwen35Config, w: Qwen35Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        if c.recurrent[i]:
            x = _delta_net(p, c, layer, h, i, residual=x)
        else:
            x = _gated_attention(p, c, layer, h, i, table, residual=x)
        h = p.rms_norm(x, layer.post_attention_norm, c.norm_eps)
        if c.n_experts:
            x = p.add(x, decoder.moe_ffn(p, layer, h, c.n_used))
            x = p.add(x, decoder.gated_shared_expert(p, layer, h))
        else:
            x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)


def _delta_net(p: Program, c: Qwen35Config, layer: Qwen35Layer, h: Buffer, i: int, residual: Buffer) -> Buffer:
    """Convolutions of q, k and v over neighbouring tokens, the gated delta rule (Yang et al. 2024), a norm per head, a gate."""
    qk = p.causal_conv(p.matmul(layer.attn_qk, h), layer.ssm_conv1d_qk, i, CONV_QK, silu=True)
    v = p.causal_conv(p.matmul(layer.attn_v, h), layer.ssm_conv1d_v, i, CONV_V, silu=True)
    decays = p.decay(p.matmul(layer.ssm_alpha, h), layer.ssm_dt_bias, layer.ssm_a)
    betas = p.activation(p.matmul(layer.ssm_beta, h), "sigmoid")
    # Normalize queries and keys to length 1, and divide queries by sqrt(state_dim): an RMS norm with these weights.
    unit = np.repeat([1 / c.state_dim, 1 / math.sqrt(c.state_dim)], c.n_state_qk // 2)
    qk = p.head_norm(qk, unit, LENGTH_EPS / c.state_dim, 2 * c.n_key_heads, c.state_dim)
    out = p.delta_rule(qk, v, decays, betas, c.state_dim, i, MATRICES)
    out = p.head_norm(out, layer.ssm_norm, c.norm_eps, c.n_value_heads, c.state_dim)
    return p.matmul(layer.ssm_out, p.gated(p.matmul(layer.attn_gate, h), out, "silu"), residual=residual)


def _gated_attention(
    p: Program,
    c: Qwen35Config,
    layer: Qwen35Layer,
    h: Buffer,
    i: int,
    table: RopeTable,
    residual: Buffer,
) -> Buffer:
    """Attention whose result is multiplied by a sigmoid gate."""
    q_gate = p.matmul(layer.attn_q, h)
    q = p.join_heads(c.n_heads, [(q_gate, 0, c.head_dim, 2 * c.head_dim)])
    gate = p.join_heads(c.n_heads, [(q_gate, c.head_dim, c.head_dim, 2 * c.head_dim)])
    q, k = decoder.qk_norm(p, c, layer, q, p.matmul(layer.attn_k, h))
    q, k = decoder.apply_rope(p, c, q, k, table)
    a = p.attention(q, k, p.matmul(layer.attn_v, h), layer=i, scale=1.0 / math.sqrt(c.head_dim))
    return p.matmul(layer.attn_output, p.gated(gate, a, "sigmoid"), residual=residual)
