"""llama: Llama 1 to 3.x, Mistral, SmolLM2, TinyLlama and others of the same shape (Touvron et al. 2023).

Before attention and before the feed-forward part, an RMS norm; rotary positions on queries and keys; grouped KV heads;
SwiGLU; no biases, unless the file has them. Files hold queries and keys so that rotary pairs are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gumba.errors import ModelError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.kernels.packed import PackedMatrix
from gumba.kernels.rope import rope_table
from gumba.models.loader import (
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    Loader,
    TensorRule,
    check_tensors,
    require_float,
    require_positive,
)
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "llama"
FAMILIES = "Llama 1-3.x, Mistral, SmolLM2, TinyLlama, Yi, Vicuna"


# Configuration ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Sizes and constants, from metadata ``llama.*``."""

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    norm_eps: float
    rope_freq_base: float
    rope_scaling: str
    rope_factor: float
    rope_original_ctx: int
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_ext_factor: float
    yarn_attn_factor: float


#: Keys that may have these values only: any other changes the computation in ways this file does not have.
_MUST_EQUAL: dict[str, tuple[object, ...]] = {
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
#: Keys that are read below, or that say nothing about the computation.
_KNOWN = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "vocab_size",
}


def _check_keys(gguf: GGUFFile) -> None:
    """UnsupportedError for a ``llama.`` key that is unknown or asks for something else than is computed here."""
    for key in gguf.metadata:
        name = key.removeprefix(f"{NAME}.")
        if name == key or name in _KNOWN:
            continue
        if name not in _MUST_EQUAL:
            raise UnsupportedError(
                f"{gguf.path}: metadata {key} is not known to this version, which cannot tell what it changes"
            )
        if gguf.metadata[key] not in _MUST_EQUAL[name]:
            raise UnsupportedError(
                f"{gguf.path}: metadata {key} is {gguf.metadata[key]}, which this version cannot run"
            )


def read_config(gguf: GGUFFile) -> Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    _check_keys(gguf)
    n_embd = require_positive(gguf, "llama.embedding_length", MAX_WIDTH)
    n_heads = require_positive(gguf, "llama.attention.head_count", MAX_WIDTH)
    n_kv_heads = require_positive(gguf, "llama.attention.head_count_kv", MAX_WIDTH, default=n_heads)
    if n_heads % n_kv_heads:
        raise ModelError(
            f"{gguf.path}: metadata llama.attention.head_count {n_heads} is no multiple of head_count_kv {n_kv_heads}"
        )
    if "llama.attention.key_length" not in gguf.metadata and n_embd % n_heads:
        raise ModelError(
            f"{gguf.path}: metadata llama.embedding_length {n_embd} is no multiple of attention.head_count {n_heads}"
        )
    head_dim = require_positive(gguf, "llama.attention.key_length", 4096, default=max(1, n_embd // n_heads))
    value_dim = require_positive(gguf, "llama.attention.value_length", 4096, default=head_dim)
    if value_dim != head_dim:
        raise UnsupportedError(
            f"{gguf.path}: metadata llama.attention.value_length {value_dim} differs from key_length {head_dim}"
        )
    rope_dim = require_positive(gguf, "llama.rope.dimension_count", head_dim, default=head_dim)
    if rope_dim % 2:
        raise ModelError(f"{gguf.path}: metadata llama.rope.dimension_count is {rope_dim}, expected an even number")
    n_ctx_train = require_positive(gguf, "llama.context_length", 1 << 30)
    scaling = gguf.get("llama.rope.scaling.type", str, "")
    legacy = gguf.get("llama.rope.scale_linear", float, 0.0)  # what linear scaling was called before it had a type
    if not scaling:
        scaling = "linear" if legacy not in (0.0, 1.0) else "none"
    if scaling not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{gguf.path}: metadata llama.rope.scaling.type is {scaling!r}, expected none, linear or yarn"
        )
    factor = require_float(gguf, "llama.rope.scaling.factor", default=legacy or 1.0)
    return Config(
        architecture=NAME,
        n_vocab=_vocabulary_size(gguf),
        n_ctx_train=n_ctx_train,
        n_layers=require_positive(gguf, "llama.block_count", MAX_LAYERS),
        n_embd=n_embd,
        n_ff=require_positive(gguf, "llama.feed_forward_length", MAX_WIDTH),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope_dim=rope_dim,
        norm_eps=require_float(gguf, "llama.attention.layer_norm_rms_epsilon", most=1.0),
        rope_freq_base=require_float(gguf, "llama.rope.freq_base", default=10000.0, least=1.001),
        rope_scaling=scaling,
        rope_factor=factor,
        rope_original_ctx=require_positive(
            gguf, "llama.rope.scaling.original_context_length", 1 << 30, default=n_ctx_train
        ),
        yarn_beta_fast=require_float(gguf, "llama.rope.scaling.yarn_beta_fast", default=32.0),
        yarn_beta_slow=require_float(gguf, "llama.rope.scaling.yarn_beta_slow", default=1.0),
        yarn_ext_factor=require_float(gguf, "llama.rope.scaling.yarn_ext_factor", default=1.0),
        yarn_attn_factor=require_float(gguf, "llama.rope.scaling.attn_factor", default=1.0)
        * require_float(gguf, "llama.rope.scaling.yarn_attn_factor", default=1.0),
    )


def _vocabulary_size(gguf: GGUFFile) -> int:
    """Rows of the embedding; the file's vocabulary, if it has one, must be as long."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{gguf.path}: tensor token_embd.weight is missing or is no matrix")
    n_vocab = embedding.shape[0]
    if not 1 <= n_vocab <= MAX_VOCABULARY:
        raise ModelError(f"{gguf.path}: tensor token_embd.weight has {n_vocab} rows, expected 1 to {MAX_VOCABULARY}")
    tokens: Any = gguf.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and hasattr(tokens, "__len__") and len(tokens) != n_vocab:
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, but tensor token_embd.weight has {n_vocab} rows"
        )
    return n_vocab


# Tensors ---------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    attn_norm: np.ndarray
    attn_q: PackedMatrix
    attn_k: PackedMatrix
    attn_v: PackedMatrix
    attn_output: PackedMatrix
    ffn_norm: np.ndarray
    ffn_gate: PackedMatrix
    ffn_up: PackedMatrix
    ffn_down: PackedMatrix
    attn_q_bias: np.ndarray | None
    attn_k_bias: np.ndarray | None
    attn_v_bias: np.ndarray | None
    attn_output_bias: np.ndarray | None
    ffn_gate_bias: np.ndarray | None
    ffn_up_bias: np.ndarray | None
    ffn_down_bias: np.ndarray | None


@dataclass
class Weights:
    token_embd: PackedMatrix
    output_norm: np.ndarray
    output: PackedMatrix
    rope_freqs: np.ndarray | None
    layers: list[Layer]


def tensor_table(c: Config) -> dict[str, TensorRule]:
    """Field -> tensor: GGUF's name and the shape it must have."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    rules = {
        "token_embd": TensorRule("token_embd.weight", (c.n_vocab, c.n_embd)),
        "output_norm": TensorRule("output_norm.weight", (c.n_embd,)),
        "output": TensorRule("output.weight", (c.n_vocab, c.n_embd), required=False),
        "rope_freqs": TensorRule("rope_freqs.weight", (c.rope_dim // 2,), required=False),
    }
    matrices = {
        "attn_q": (q, c.n_embd), "attn_k": (kv, c.n_embd), "attn_v": (kv, c.n_embd), "attn_output": (c.n_embd, q),
        "ffn_gate": (c.n_ff, c.n_embd), "ffn_up": (c.n_ff, c.n_embd), "ffn_down": (c.n_embd, c.n_ff),
    }  # fmt: skip
    for i in range(c.n_layers):
        for name, shape in matrices.items():
            rules[f"{i}.{name}"] = TensorRule(f"blk.{i}.{name}.weight", shape)
            rules[f"{i}.{name}_bias"] = TensorRule(f"blk.{i}.{name}.bias", shape[:1], required=False)
        for name in ("attn_norm", "ffn_norm"):
            rules[f"{i}.{name}"] = TensorRule(f"blk.{i}.{name}.weight", (c.n_embd,))
    return rules


def _ignored(name: str) -> bool:
    """Tensors of old files that nothing needs."""
    return name.endswith((".rotary_emb.inv_freq", ".attn_rot_embd.weight"))


def load_weights(loader: Loader, c: Config) -> Weights:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    rules = tensor_table(c)
    check_tensors(loader.gguf, rules, _ignored)

    def read(field: str) -> Any:
        rule = rules[field]
        return loader.matrix(rule.name) if len(rule.shape) == 2 else loader.vector(rule.name)

    layers = [Layer(**{name: read(f"{i}.{name}") for name in Layer.__annotations__}) for i in range(c.n_layers)]
    embedding = read("token_embd")
    return Weights(embedding, read("output_norm"), read("output") or embedding, read("rope_freqs"), layers)


# Forward ---------------------------------------------------------------------------------------------------------------


def rope_frequencies(c: Config, factors: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Radians per position of each rotary pair, float64 [rope_dim / 2], and the factor of cosines and sines.

    Linear scaling stretches positions (Chen et al. 2023). YaRN stretches only slow pairs, with a ramp between those that turn
    ``beta_fast`` and ``beta_slow`` times in the original context (Peng et al. 2023). Llama 3 stores its own stretch per pair.
    """
    pair = np.arange(0, c.rope_dim, 2, dtype=np.float64)
    frequency = c.rope_freq_base ** (-pair / c.rope_dim)
    if factors is not None:
        if not (factors > 0).all():
            raise ModelError("tensor rope_freqs.weight: expected numbers above 0")
        frequency = frequency / factors.astype(np.float64)
    if c.rope_scaling == "linear":
        return frequency / c.rope_factor, 1.0
    if c.rope_scaling == "yarn":

        def pair_of(turns: float) -> float:
            """The pair that turns so often in the original context."""
            ratio = c.rope_original_ctx / (turns * 2 * math.pi)
            return c.rope_dim * math.log(ratio) / (2 * math.log(c.rope_freq_base))

        low = max(0.0, math.floor(pair_of(c.yarn_beta_fast)))
        high = min(c.rope_dim - 1.0, math.ceil(pair_of(c.yarn_beta_slow)))
        ramp = np.clip((pair / 2 - low) / max(0.001, high - low), 0.0, 1.0)
        own = (1.0 - ramp) * c.yarn_ext_factor  # how much of its own frequency a pair keeps
        scale = c.yarn_attn_factor * (1.0 + 0.1 * math.log(c.rope_factor))
        return frequency / c.rope_factor * (1.0 - own) + frequency * own, scale
    return frequency, 1.0


def forward(p: Program, c: Config, w: Weights, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    frequencies, magnitude = rope_frequencies(c, w.rope_freqs)
    rope = p.constant(rope_table(frequencies, n_ctx, magnitude, neox=False), pad=False)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q = p.matmul(layer.attn_q, h, bias=layer.attn_q_bias)
        k = p.matmul(layer.attn_k, h, bias=layer.attn_k_bias)
        v = p.matmul(layer.attn_v, h, bias=layer.attn_v_bias)
        q = p.rope(q, c.n_heads, c.head_dim, c.rope_dim, rope)
        k = p.rope(k, c.n_kv_heads, c.head_dim, c.rope_dim, rope)
        a = p.attention(q, k, v, kv, layer=i, scale=1.0 / math.sqrt(c.head_dim))
        x = p.matmul(layer.attn_output, a, residual=x, bias=layer.attn_output_bias)

        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
        up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
        x = p.matmul(layer.ffn_down, p.swiglu(gate, up), residual=x, bias=layer.ffn_down_bias)
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    return hidden, p.matmul(w.output, hidden)
