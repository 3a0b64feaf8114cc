"""RoPE settings of config.json, in all their forms, as GGUF metadata and factor tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.gguf_writer import Value, f32, string, u32

KINDS = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """Base frequency, kind of context extension ("default": none), and the fraction of a head that is rotated.

    `settings` reads the object that holds the extension's parameters.
    """

    theta: float
    kind: str
    partial: float
    settings: ConfigReader


def read_rope(
    reader: ConfigReader, *, theta: float = 10000.0, partial: float = 1.0, layer_type: str = "full_attention"
) -> Rope:
    """The RoPE settings; `theta` and `partial` are the family's defaults.

    transformers 5 writes one object `rope_parameters`, or one per type of layer; earlier versions wrote `rope_theta`,
    `partial_rotary_factor`, and `rope_scaling` for the extension.
    """
    settings = reader.section("rope_parameters") or reader.section("rope_scaling") or ConfigReader({}, reader.where)
    settings = settings.section(layer_type) or settings
    kind = settings.config.get("rope_type", settings.config.get("type", "default"))
    if kind == "mrope":  # image tokens have several coordinates; text has the same position in all of them
        kind = "default"
    theta = settings.number("rope_theta") if settings.has("rope_theta") else reader.number("rope_theta", theta)
    key = "partial_rotary_factor"
    partial = settings.number(key) if settings.has(key) else reader.number(key, partial)
    if partial > 1:
        raise reader.fail(key, f"is {partial}, expected at most 1")
    return Rope(theta, kind.lower() if isinstance(kind, str) else repr(kind), partial, settings)


def rope_metadata(
    rope: Rope,
    architecture: str,
    n_rotated: int,
    n_ctx: int,
    *,
    kinds: tuple[str, ...] = KINDS,
    log_multiplier: bool = False,
    truncates: bool = True,
) -> tuple[dict[str, Value], np.ndarray | None]:
    """`rope.dimension_count`, `rope.freq_base` and `rope.scaling.*`, and llama3's `rope_freqs.weight`.

    Args:
        n_rotated: number of values of a head that are rotated.
        kinds: context extensions that the architecture supports.
        log_multiplier: the architecture's attention is scaled by YaRN's `mscale_all_dim`, as DeepSeek's is.
        truncates: the architecture rounds the ends of YaRN's ramp to whole dimensions.

    Raises:
        ConvertError: another kind, or parameters that GGUF cannot express.
    """
    settings, key = rope.settings, f"{architecture}.rope.scaling."
    metadata = {
        f"{architecture}.rope.dimension_count": u32(n_rotated),
        f"{architecture}.rope.freq_base": f32(rope.theta),
    }
    if rope.kind not in kinds:
        raise settings.fail("rope_type", f"is {rope.kind!r}; supported are {', '.join(kinds)}")
    if rope.kind == "linear":
        metadata |= {key + "type": string("linear"), key + "factor": f32(settings.number("factor"))}
    if rope.kind == "yarn":
        metadata |= _yarn(settings, key, n_ctx, log_multiplier, truncates)
    if rope.kind == "llama3":
        return metadata, llama3_factors(
            head_dim=n_rotated,
            theta=rope.theta,
            factor=settings.number("factor", 8.0),
            low=settings.number("low_freq_factor", 1.0),
            high=settings.number("high_freq_factor", 4.0),
            n_ctx_original=settings.integer("original_max_position_embeddings", 8192),
        )
    return metadata, None


def _yarn(settings: ConfigReader, key: str, n_ctx: int, log_multiplier: bool, truncates: bool) -> dict[str, Value]:
    factor = settings.number("factor")
    metadata = {
        key + "type": string("yarn"),
        key + "factor": f32(factor),
        key + "original_context_length": u32(settings.integer("original_max_position_embeddings", n_ctx)),
    }
    if settings.flag("truncate", True) is not truncates:
        raise settings.fail("truncate", f"is {not truncates}; this family's models have {truncates} only")
    if log_multiplier and settings.has("mscale_all_dim"):
        scale = settings.number("mscale_all_dim")
        settings.must_be("mscale", scale)
        metadata[key + "yarn_log_multiplier"] = f32(0.1 * scale)
    else:
        settings.must_be("mscale")
        settings.must_be("mscale_all_dim")
    if settings.has("attention_factor"):
        # GGUF readers also multiply by 0.1 ln(factor) + 1; in transformers attention_factor is the product.
        reader_factor = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        metadata[key + "attn_factor"] = f32(settings.number("attention_factor") / reader_factor)
    for name in ("beta_fast", "beta_slow"):
        if settings.has(name):
            metadata[key + "yarn_" + name] = f32(settings.number(name))
    return metadata


def llama3_factors(
    *, head_dim: int, theta: float, factor: float, low: float, high: float, n_ctx_original: int
) -> np.ndarray:
    """Llama 3.1's divisors of the RoPE frequencies, float32 [head_dim / 2].

    Short wavelengths are kept, long ones divided by `factor`, those between get a weighted mean of both.
    """
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = n_ctx_original * frequency / (2 * math.pi)  # full turns over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0) if high != low else (turns > low).astype(np.float64)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
