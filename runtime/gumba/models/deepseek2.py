"""deepseek2: DeepSeek V2 and V3 (DeepSeek-AI 2024): multi-head latent attention, and experts after a few dense layers.

The cache holds one latent vector per token, and a small rotary key, which all heads share. Files have the matrices that make
each head's keys and values of a latent vector apart (``attn_k_b``, ``attn_v_b``): queries are multiplied by the first, the
result of attention by the second, and attention itself works on latent vectors. Files made before 2025 have both in one matrix
(``attn_kv_b``), which computes the keys and values of every head; these are cached, as in other models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Experts, Matrix, Program, RopeTable
from gumba.backends.cache_shapes import KVShape
from gumba.elementary import ln
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_expert_counts, read_metadata
from gumba.loading.decoder_tensors import add_embeddings, add_experts, add_feed_forward, add_norms
from gumba.loading.metadata import MetadataReader
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH, Loader
from gumba.loading.weights import Array, LayerWeights, Weights

NAME = "deepseek2"
FAMILIES = "DeepSeek-V2, V2-Lite, Coder-V2, V2.5, V3, R1"
VERIFIED = ("transformers", "llama.cpp")
#: ``expert_gating_func``: how a router's scores become weights.
GATINGS = {1: "softmax", 2: "sigmoid"}


class Deepseek2Layer(LayerWeights):
    """The projections of latent attention; ``attn_kv_b`` in files made before 2025, else ``attn_k_b`` and ``attn_v_b``."""

    attn_q_a: Matrix
    attn_q_a_norm: Array
    attn_q_b: Matrix
    attn_kv_a_mqa: Matrix
    attn_kv_a_norm: Array
    attn_kv_b: Matrix
    attn_k_b: Experts
    attn_v_b: Experts
    exp_probs_b: Array | None = None


class Deepseek2Weights(Weights):
    layers: Sequence[Deepseek2Layer]


@dataclass(frozen=True)
class Deepseek2Config(Config):
    latent: bool  # attention works on latent vectors
    q_rank: int  # 0: queries are one matrix product
    kv_rank: int
    n_plain: int  # elements of a head of q and k without rotary embeddings
    v_dim: int
    score_scale: float
    n_dense: int
    n_ff_shared: int
    groups: tuple[int, int]
    gating: str
    normalized: bool
    weight_scale: float

    @property
    def kv_shapes(self) -> list[KVShape]:
        """What each layer keeps of a token."""
        own = KVShape(self.n_heads, self.n_plain + self.rope.dim, self.v_dim)
        return [KVShape(1, self.kv_rank + self.rope.dim, self.kv_rank) if self.latent else own] * self.n_layers


def read_config(gguf: GGUFFile) -> Deepseek2Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "rope.scaling.yarn_log_multiplier", *EXPERT_KEYS) as metadata:
        return _read(metadata)


def _read(metadata: MetadataReader) -> Deepseek2Config:
    """``read_config`` without the check for unread keys."""
    common = read_common(metadata, neox=False, own_values=True)
    n_dense = metadata.size("leading_dense_block_count", MAX_LAYERS)
    n_experts, n_used = read_expert_counts(metadata)
    if n_dense < common.n_layers and not n_experts:
        raise metadata.error("expert_count", "is 0, expected at least 1")
    latent = metadata.has("attention.key_length_mla")
    head_dim = metadata.count("attention.key_length_mla", MAX_WIDTH, common.head_dim)
    kv_rank = metadata.count("attention.kv_lora_rank", MAX_WIDTH)
    if head_dim <= common.rope.dim or (latent and common.head_dim != kv_rank + common.rope.dim):
        raise metadata.error(
            "attention.key_length",
            f"{common.head_dim} and key_length_mla {head_dim} do "
            f"not fit kv_lora_rank {kv_rank} and rope.dimension_count {common.rope.dim}",
        )
    n_ff_expert = metadata.count("expert_feed_forward_length", MAX_WIDTH, common.n_ff)
    log_multiplier = metadata.number("rope.scaling.yarn_log_multiplier", 0.0, or_zero=True)
    rope, magnitude = common.rope, 1.0
    if rope.scaling == "yarn":  # YaRN's factor of cosines and sines is a factor of the scores here
        magnitude = rope.attn_factor * (1.0 + log_multiplier * ln(rope.factor))
        rope = replace(rope, attn_factor=1.0 / (1.0 + 0.1 * ln(rope.factor)))
    value_dim = metadata.count("attention.value_length", MAX_WIDTH, kv_rank if latent else common.head_dim)
    return Deepseek2Config(
        **vars(replace(common, rope=rope, n_experts=n_experts, n_used=n_used, n_ff_expert=n_ff_expert)),
        latent=latent,
        q_rank=metadata.size("attention.q_lora_rank", MAX_WIDTH),
        kv_rank=kv_rank,
        n_plain=head_dim - rope.dim,
        v_dim=metadata.count("attention.value_length_mla", MAX_WIDTH) if latent else value_dim,
        score_scale=magnitude * magnitude / math.sqrt(head_dim),
        n_dense=n_dense,
        n_ff_shared=metadata.size("expert_shared_count", 1024) * n_ff_expert,
        groups=_groups(metadata, n_experts, n_used),
        gating=_gating(metadata),
        normalized=metadata.flag("expert_weights_norm", False),
        weight_scale=metadata.number("expert_weights_scale", 0.0, or_zero=True) or 1.0,
    )


def _groups(metadata: MetadataReader, n_experts: int, n_used: int) -> tuple[int, int]:
    """Number of groups of experts, and of groups that the experts of a token are chosen from."""
    n_groups = metadata.size("expert_group_count", max(1, n_experts)) or 1
    used = metadata.size("expert_group_used_count", n_groups) or n_groups
    if n_experts % n_groups or n_experts // n_groups * used < n_used:
        raise metadata.error(
            "expert_group_count",
            f"{n_groups} and expert_group_used_count {used} do "
            f"not fit expert_count {n_experts} and expert_used_count {n_used}",
        )
    return n_groups, used


def _gating(metadata: MetadataReader) -> str:
    number = metadata.size("expert_gating_func", 2, 1) or 1
    return GATINGS[number]


def load_weights(loader: Loader, c: Deepseek2Config) -> Deepseek2Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c)
    for i in range(c.n_layers):
        add_norms(t, c, i, "attn_norm", "ffn_norm")
        _add_attention(t, c, i)
        if i < c.n_dense:
            add_feed_forward(t, c, i)
        else:
            add_experts(t, c, i, c.n_experts, c.n_ff_expert, n_shared=c.n_ff_shared)
            t.add("exp_probs_b", "exp_probs_b.bias", c.n_experts, layer=i, required=False)
    return t.load(loader, Deepseek2Weights)


def _add_attention(t: TensorTable, c: Deepseek2Config, i: int) -> None:
    n_q = c.n_heads * (c.n_plain + c.rope.dim)
    if c.q_rank:
        t.add("attn_q_a", "attn_q_a.weight", c.q_rank, c.n_embd, layer=i)
        t.add("attn_q_a_norm", "attn_q_a_norm.weight", c.q_rank, layer=i)
        t.add("attn_q_b", "attn_q_b.weight", n_q, c.q_rank, layer=i)
    else:
        t.add("attn_q", "attn_q.weight", n_q, c.n_embd, layer=i)
    t.add("attn_kv_a_mqa", "attn_kv_a_mqa.weight", c.kv_rank + c.rope.dim, c.n_embd, layer=i)
    t.add("attn_kv_a_norm", "attn_kv_a_norm.weight", c.kv_rank, layer=i)
    if c.latent:
        t.add("attn_k_b", "attn_k_b.weight", c.n_heads, c.kv_rank, c.n_plain, layer=i)
        t.add("attn_v_b", "attn_v_b.weight", c.n_heads, c.v_dim, c.kv_rank, layer=i)
    else:
        t.add("attn_kv_b", "attn_kv_b.weight", c.n_heads * (c.n_plain + c.v_dim), c.kv_rank, layer=i)
    t.add("attn_output", "attn_output.weight", c.n_embd, c.n_heads * c.v_dim, layer=i)


def forward(p: Program, c: Deepseek2Config, w: Deepseek2Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        a = (_latent_attention if c.latent else _attention)(p, c, layer, h, i, table)
        x = p.matmul(layer.attn_output, a, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x) if i < c.n_dense else p.add(x, _experts(p, c, layer, h))
    return decoder.outputs(p, c, w, x)


def _queries(p: Program, c: Deepseek2Config, layer: Deepseek2Layer, h: Buffer) -> Buffer:
    """Queries: of each head the part without positions, then the rotary part."""
    if not c.q_rank:
        return p.matmul(layer.attn_q, h)
    return p.matmul(layer.attn_q_b, p.rms_norm(p.matmul(layer.attn_q_a, h), layer.attn_q_a_norm, c.norm_eps))


def _latent_attention(
    p: Program, c: Deepseek2Config, layer: Deepseek2Layer, h: Buffer, i: int, table: RopeTable
) -> Buffer:
    """Attention of all heads to the latent vectors; the rotary part comes first in queries and keys."""
    plain, rotary, rank = c.n_plain, c.rope.dim, c.kv_rank
    q, latent = _queries(p, c, layer, h), p.matmul(layer.attn_kv_a_mqa, h)
    v = p.rms_norm(p.slice(latent, 0, rank), layer.attn_kv_a_norm, c.norm_eps)
    k = p.join_heads(1, [(latent, rank, rotary, 0), (v, 0, rank, 0)])
    inner = p.head_matmul(layer.attn_k_b.matrices, p.join_heads(c.n_heads, [(q, 0, plain, plain + rotary)]))
    q = p.join_heads(c.n_heads, [(q, plain, rotary, plain + rotary), (inner, 0, rank, rank)])
    q = p.rope(q, c.n_heads, rotary + rank, rotary, table)
    k = p.rope(k, 1, rotary + rank, rotary, table)
    return p.head_matmul(layer.attn_v_b.matrices, p.attention(q, k, v, layer=i, scale=c.score_scale))


def _attention(p: Program, c: Deepseek2Config, layer: Deepseek2Layer, h: Buffer, i: int, table: RopeTable) -> Buffer:
    """Attention with keys and values per head; the rotary part comes first in queries and keys."""
    plain, rotary, of_head = c.n_plain, c.rope.dim, c.n_plain + c.v_dim
    q, latent = _queries(p, c, layer, h), p.matmul(layer.attn_kv_a_mqa, h)
    inner = p.rms_norm(p.slice(latent, 0, c.kv_rank), layer.attn_kv_a_norm, c.norm_eps)
    kv = p.matmul(layer.attn_kv_b, inner)
    k = p.join_heads(c.n_heads, [(latent, c.kv_rank, rotary, 0), (kv, 0, plain, of_head)])
    v = p.join_heads(c.n_heads, [(kv, plain, c.v_dim, of_head)])
    q = p.join_heads(c.n_heads, [(q, plain, rotary, plain + rotary), (q, 0, plain, plain + rotary)])
    q = p.rope(q, c.n_heads, rotary + plain, rotary, table)
    k = p.rope(k, c.n_heads, rotary + plain, rotary, table)
    return p.attention(q, k, v, layer=i, scale=c.score_scale)


def _experts(p: Program, c: Deepseek2Config, layer: Deepseek2Layer, h: Buffer) -> Buffer:
    """The routed experts, and the shared ones if there are any."""
    mixed = p.moe(
        h, p.matmul(layer.ffn_gate_inp, h), layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps, c.n_used, "silu",
        weights=c.gating, normalized=c.normalized, bias=layer.exp_probs_b, scale=c.weight_scale, groups=c.groups,
    )  # fmt: skip
    return p.add(mixed, decoder.shared_expert(p, layer, h)) if c.n_ff_shared else mixed
