"""Llama and Mistral checkpoints as GGUF architecture `llama`, and back.

Hugging Face stores the rows of each Q and K head as two halves (x of all pairs, then y of all pairs, as RoPE
rotates halves there); GGUF's llama wants the pairs side by side. Row `i` of either half of a head becomes row `2 i` or
`2 i + 1`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint import Checkpoint
from gumba_convert.gguf_writer import Value, f32, string, u32
from gumba_convert.plan import ConfigReader, Plan, Source

ARCHITECTURE = "llama"
HF_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")

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
# Written by old versions of transformers; computed from the configuration everywhere today.
IGNORED = re.compile(r".*(rotary_emb\.inv_freq|self_attn\.(masked_)?bias)")
MAX_LAYERS = 4096


@dataclass(frozen=True)
class Config:
    """What config.json says, with transformers' defaults."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    has_head_dim: bool
    n_vocab: int
    n_ctx: int
    norm_eps: float
    rope_theta: float
    rope_type: str
    rope: ConfigReader
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def read_config(checkpoint: Checkpoint) -> Config:
    """Read and check config.json.

    Raises:
        ConvertError: a key is missing or wrong, or asks for something that GGUF's llama does not have.
    """
    reader = ConfigReader(checkpoint.config, f"{checkpoint.folder / 'config.json'}")
    mistral = checkpoint.config.get("architectures") == ["MistralForCausalLM"]
    reader.must_be("quantization_config")
    reader.must_be("hidden_act", "silu", "swish")
    reader.must_be("partial_rotary_factor", 1, 1.0)
    n_embd, n_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if not reader.has("head_dim") and n_embd % n_heads:
        raise reader.fail("num_attention_heads", f"is {n_heads}, which does not divide hidden_size {n_embd}")
    head_dim = reader.integer("head_dim", n_embd // n_heads)
    if head_dim % 2:
        raise reader.fail("head_dim", f"is {head_dim}; rotary positions need an even one")
    n_kv_heads = reader.integer("num_key_value_heads", 8 if mistral else n_heads)
    if n_heads % n_kv_heads:
        raise reader.fail("num_key_value_heads", f"is {n_kv_heads}, which does not divide the {n_heads} heads")
    n_layers = reader.integer("num_hidden_layers")
    if n_layers > MAX_LAYERS:
        raise reader.fail("num_hidden_layers", f"is {n_layers}; at most {MAX_LAYERS} are supported")
    n_ctx = reader.integer("max_position_embeddings", 131072 if mistral else 2048)
    _check_window(reader, n_ctx, mistral)
    rope = reader.section("rope_parameters") or reader.section("rope_scaling") or ConfigReader({}, reader.where)
    rope_type = rope.config.get("rope_type", rope.config.get("type", "default"))
    theta = rope.number("rope_theta") if rope.has("rope_theta") else reader.number("rope_theta", 10000.0)
    return Config(
        n_layers=n_layers,
        n_embd=n_embd,
        n_ff=reader.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        has_head_dim=reader.has("head_dim"),
        n_vocab=reader.integer("vocab_size"),
        n_ctx=n_ctx,
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_type=rope_type if isinstance(rope_type, str) else repr(rope_type),
        rope=rope,
        tied=reader.flag("tie_word_embeddings", False),
        attention_bias=reader.flag("attention_bias", False),
        mlp_bias=reader.flag("mlp_bias", False),
    )


def _check_window(reader: ConfigReader, n_ctx: int, mistral: bool) -> None:
    """A sliding window that a full context never leaves is no window."""
    window = reader.config.get("sliding_window", 4096 if mistral else None)
    if window is not None and (type(window) is not int or window < n_ctx):
        raise reader.fail(
            "sliding_window",
            f"is {window!r}, smaller than max_position_embeddings {n_ctx}: sliding attention is not supported. "
            f"With max_position_embeddings set to {window!r} the model converts exactly, for contexts up to there",
        )
    layer_types = reader.config.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise reader.fail("layer_types", "asks for other than full attention, which is not supported")


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Llama or Mistral checkpoint.

    Raises:
        ConvertError: an unsupported configuration; missing, unexpected or mis-shaped tensors, all named together.
    """
    config = read_config(checkpoint)
    metadata = {
        "llama.block_count": u32(config.n_layers),
        "llama.context_length": u32(config.n_ctx),
        "llama.embedding_length": u32(config.n_embd),
        "llama.feed_forward_length": u32(config.n_ff),
        "llama.attention.head_count": u32(config.n_heads),
        "llama.attention.head_count_kv": u32(config.n_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        "llama.vocab_size": u32(config.n_vocab),
        "llama.rope.dimension_count": u32(config.head_dim),
        "llama.rope.freq_base": f32(config.rope_theta),
    }
    if config.has_head_dim:
        metadata["llama.attention.key_length"] = u32(config.head_dim)
        metadata["llama.attention.value_length"] = u32(config.head_dim)
    scaling, factors = _rope_scaling(config)
    metadata |= scaling
    tensors = _tensors(config, checkpoint)
    if factors is not None:
        tensors.append(Source("rope_freqs.weight", factors))
    return Plan(ARCHITECTURE, metadata, tensors, config.n_vocab, config.tied)


def _rope_scaling(config: Config) -> tuple[dict[str, Value], np.ndarray | None]:
    """Metadata of the context extension, and llama3's frequency factors."""
    rope, kind = config.rope, config.rope_type.lower()
    rope.must_be("partial_rotary_factor", 1, 1.0)
    if kind == "default":
        return {}, None
    key = "llama.rope.scaling."
    if kind == "linear":
        return {key + "type": string("linear"), key + "factor": f32(rope.number("factor"))}, None
    if kind == "yarn":
        factor = rope.number("factor")
        metadata = {
            key + "type": string("yarn"),
            key + "factor": f32(factor),
            key + "original_context_length": u32(rope.integer("original_max_position_embeddings", config.n_ctx)),
        }
        rope.must_be("truncate", True)
        rope.must_be("mscale")
        rope.must_be("mscale_all_dim")
        if rope.has("attention_factor"):
            # GGUF readers multiply by 0.1 ln(factor) + 1 themselves; transformers takes attention_factor for the whole.
            whole = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
            metadata[key + "attn_factor"] = f32(rope.number("attention_factor") / whole)
        for name in ("beta_fast", "beta_slow"):
            if rope.has(name):
                metadata[key + "yarn_" + name] = f32(rope.number(name))
        return metadata, None
    if kind == "llama3":
        return {}, llama3_factors(
            head_dim=config.head_dim,
            theta=config.rope_theta,
            factor=rope.number("factor", 8.0),
            low=rope.number("low_freq_factor", 1.0),
            high=rope.number("high_freq_factor", 4.0),
            n_ctx_original=rope.integer("original_max_position_embeddings", 8192),
        )
    raise rope.fail("rope_type", f"is {config.rope_type!r}; supported are default, linear, yarn and llama3")


def llama3_factors(
    *, head_dim: int, theta: float, factor: float, low: float, high: float, n_ctx_original: int
) -> np.ndarray:
    """Llama 3.1's divisors of the RoPE frequencies, float32 [head_dim / 2].

    Short wavelengths stay, long ones are divided by `factor`, those between get a mean of both.
    """
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = n_ctx_original * frequency / (2 * math.pi)  # full turns over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0) if high != low else (turns > low).astype(np.float64)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def names(n_layers: int) -> dict[str, str]:
    """GGUF names of all weights, and their Hugging Face names, in file order."""
    result = {"token_embd.weight": "model.embed_tokens.weight"}
    for i in range(n_layers):
        for ours, theirs in LAYER.items():
            result[f"blk.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
            if not ours.endswith("norm"):
                result[f"blk.{i}.{ours}.bias"] = f"model.layers.{i}.{theirs}.bias"
    result["output_norm.weight"] = "model.norm.weight"
    result["output.weight"] = "lm_head.weight"
    return result


def _tensors(config: Config, checkpoint: Checkpoint) -> list[Source]:
    wanted = {name: hf for name, hf in names(config.n_layers).items() if _exists(name, config)}
    found = checkpoint.tensors
    # The output matrix of a tied checkpoint is the embedding, whatever a copy of it in the file says.
    spare = {"lm_head.weight"} if config.tied else set()
    problems = [f"{hf} is missing" for hf in wanted.values() if hf not in found]
    known = set(wanted.values()) | spare
    problems += [f"{name} is unexpected" for name in found if name not in known and not IGNORED.fullmatch(name)]
    sources = []
    for name, hf in wanted.items():
        if hf not in found:
            continue
        tensor, shape = found[hf], _shape(name, config)
        if tensor.shape != shape:
            problems.append(f"{hf} is {list(tensor.shape)}, expected {list(shape)}")
        rotated = name.split(".")[-2] in ("attn_q", "attn_k")
        sources.append(Source(name, tensor, config.head_dim if rotated else 0))
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ConvertError(f"{checkpoint.folder}: tensor {'; '.join(problems[:8])}{more}")
    return sources


def _exists(name: str, config: Config) -> bool:
    if name.endswith(".bias"):
        return config.attention_bias if ".attn_" in name else config.mlp_bias
    return not (config.tied and name == "output.weight")


def _shape(name: str, config: Config) -> tuple[int, ...]:
    n_q, n_kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    kind = name.split(".")[-2]
    shape: tuple[int, ...] = {
        "token_embd": (config.n_vocab, config.n_embd),
        "output": (config.n_vocab, config.n_embd),
        "attn_q": (n_q, config.n_embd),
        "attn_k": (n_kv, config.n_embd),
        "attn_v": (n_kv, config.n_embd),
        "attn_output": (config.n_embd, n_q),
        "ffn_gate": (config.n_ff, config.n_embd),
        "ffn_up": (config.n_ff, config.n_embd),
        "ffn_down": (config.n_embd, config.n_ff),
    }.get(kind, (config.n_embd,))
    return shape[:1] if name.endswith(".bias") else shape


def interleave_rows(rows: np.ndarray, head_rows: int) -> np.ndarray:
    """Rows [n, ...] of whole heads from two halves to pairs side by side."""
    halves: np.ndarray = rows.reshape(-1, 2, head_rows // 2, *rows.shape[1:])
    mixed: np.ndarray = halves.swapaxes(1, 2).reshape(rows.shape)
    return mixed


def separate_rows(rows: np.ndarray, head_rows: int) -> np.ndarray:
    """The way back from `interleave_rows`."""
    pairs: np.ndarray = rows.reshape(-1, head_rows // 2, 2, *rows.shape[1:])
    apart: np.ndarray = pairs.swapaxes(1, 2).reshape(rows.shape)
    return apart
