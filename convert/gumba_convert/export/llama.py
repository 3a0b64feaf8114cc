"""Exports GGUF architecture `llama` as Hugging Face's LlamaForCausalLM: configuration, tensor names, order of rows."""

from __future__ import annotations

import math

import numpy as np

from gumba import quants
from gumba.errors import ConvertError
from gumba.gguf import GGUFFile
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.common.decoder import MAX_LAYERS
from gumba_convert.common.rope import llama3_factors

ROPE_FREQS = "rope_freqs.weight"

# GGUF name -> Hugging Face name, inside a layer. Biases have the same names.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config(file: GGUFFile) -> JsonObject:
    """config.json of a llama file, without the tokenizer's keys.

    Raises:
        ConvertError: the file has an option that LlamaForCausalLM does not support.
        ModelError: a key that every llama file has is missing or of the wrong type.
    """
    n_heads = file.require("llama.attention.head_count", int)
    n_embd = file.require("llama.embedding_length", int)
    if not 0 < n_heads <= n_embd:
        raise ConvertError(f"{file.path}: llama.attention.head_count is {n_heads}, embedding_length {n_embd}")
    head_dim = file.get("llama.attention.key_length", int, n_embd // n_heads)
    for key, value in (
        ("llama.attention.value_length", head_dim),
        ("llama.rope.dimension_count", head_dim),
        ("llama.expert_count", 0),
    ):
        if file.get(key, int, value) != value:
            raise ConvertError(f"{file.path}: {key} is {file.metadata[key]}; LlamaForCausalLM needs {value}")
    if head_dim <= 0 or head_dim % 2:
        raise ConvertError(f"{file.path}: a head of {head_dim} values; expected a positive, even number")
    rope = _rope(file, head_dim)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": n_embd,
        "intermediate_size": file.require("llama.feed_forward_length", int),
        "num_hidden_layers": file.require("llama.block_count", int),
        "num_attention_heads": n_heads,
        "num_key_value_heads": file.get("llama.attention.head_count_kv", int, n_heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.require("llama.context_length", int),
        "rms_norm_eps": _short(file.require("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _short(file.get("llama.rope.freq_base", float, 10000.0)),
        "rope_scaling": rope,
        "vocab_size": _n_vocab(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }


def head_rows(name: str, head_dim: int) -> int:
    """Rows per head of a tensor whose rows must be reordered, 0 for other tensors."""
    return head_dim if name.split(".")[-2] in ("attn_q", "attn_k") else 0


def names(file: GGUFFile) -> dict[str, str]:
    """GGUF names of the file's tensors in order, and their Hugging Face names.

    Raises:
        ConvertError: tensors are missing, or LlamaForCausalLM does not have them.
    """
    n_layers = file.require("llama.block_count", int)
    if not 0 < n_layers <= MAX_LAYERS:
        raise ConvertError(f"{file.path}: llama.block_count is {n_layers}")
    known = _names(n_layers)
    unexpected = [name for name in file.tensors if name not in known and name != ROPE_FREQS]
    missing = [
        name for name in known if name not in file.tensors and name.endswith(".weight") and name != "output.weight"
    ]
    # All layers and projections of a kind have biases, or none has.
    for kind in ("attn_", "ffn_"):
        biases = [name for name in known if name.endswith(".bias") and f".{kind}" in name]
        present = [name for name in biases if name in file.tensors]
        missing += [name for name in biases if name not in file.tensors] if present else []
    if unexpected or missing:
        what = [f"{name} is unexpected" for name in unexpected[:5]] + [f"{name} is missing" for name in missing[:5]]
        raise ConvertError(f"{file.path}: not a plain Llama: tensor {'; '.join(what)}")
    return {name: hf for name, hf in known.items() if name in file.tensors}


def _names(n_layers: int) -> dict[str, str]:
    """GGUF names of all weights that a llama file may have, and their Hugging Face names, in file order."""
    result = {"token_embd.weight": "model.embed_tokens.weight"}
    for i in range(n_layers):
        for ours, theirs in LAYER.items():
            result[f"blk.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
            if not ours.endswith("norm"):
                result[f"blk.{i}.{ours}.bias"] = f"model.layers.{i}.{theirs}.bias"
    result["output_norm.weight"] = "model.norm.weight"
    result["output.weight"] = "lm_head.weight"
    return result


def _n_vocab(file: GGUFFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConvertError(f"{file.path}: no token_embd.weight matrix")
    return embedding.shape[0]


def _short(value: float) -> float:
    """A float32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(file: GGUFFile, head_dim: int) -> JsonObject | None:
    key = "llama.rope.scaling."
    kind = file.get(key + "type", str, "none")
    factor = _short(file.get(key + "factor", float, 1.0))
    if ROPE_FREQS in file.tensors:
        return _llama3(file, head_dim)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        n_ctx = file.require("llama.context_length", int)
        rope: JsonObject = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": file.get(key + "original_context_length", int, n_ctx),
        }
        scale = file.get(key + "attn_factor", float)
        if scale is not None:
            rope["attention_factor"] = scale * (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        for name in ("beta_fast", "beta_slow"):
            value = file.get(f"{key}yarn_{name}", float)
            if value is not None:
                rope[name] = _short(value)
        return rope
    raise ConvertError(f"{file.path}: {key}type is {kind!r}; known are none, linear and yarn")


def _llama3(file: GGUFFile, head_dim: int) -> JsonObject:
    """The llama3 parameters that reproduce the file's frequency factors."""
    tensor = file.tensors[ROPE_FREQS]
    if tensor.shape != (head_dim // 2,) or tensor.type.name != "f32":
        raise ConvertError(f"{file.path}: {ROPE_FREQS} is {list(tensor.shape)}, expected [{head_dim // 2}] of F32")
    factors = np.asarray(quants.dequantize("f32", tensor.data), np.float64)
    theta = file.get("llama.rope.freq_base", float, 10000.0)
    for low, high, n_ctx in ((1.0, 4.0, 8192), _fit(factors, head_dim, theta)):
        parameters: JsonObject = {"factor": _short(float(factors.max()))}
        computed = llama3_factors(
            head_dim=head_dim, theta=theta, factor=parameters["factor"], low=low, high=high, n_ctx_original=n_ctx
        )
        if np.allclose(computed, factors, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                **parameters,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": n_ctx,
            }
    raise ConvertError(f"{file.path}: {ROPE_FREQS} has other factors than llama3's, which cannot be exported")


def _fit(factors: np.ndarray, head_dim: int, theta: float) -> tuple[float, float, int]:
    """(low, high, original context) with low = 1: between the ends, smoothing is linear in the frequency."""
    top = factors.max()
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
    between = (factors > 1.001) & (factors < top * 0.999)
    if between.sum() < 2:
        return 1.0, 4.0, 8192
    smooth = (1 / factors[between] - 1 / top) / (1 - 1 / top)
    slope, offset = np.polyfit(frequency[between], smooth, 1)
    if not offset < 0 < slope:
        return 1.0, 4.0, 8192
    high = round(1 - 1 / offset, 3)
    return 1.0, high, max(1, round(slope * (high - 1)))
