"""Rotary position embeddings (Su et al. 2021): the constants in a file, and the frequency of each rotary pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gumba.elementary import ln, powers
from gumba.errors import ModelError
from gumba.loading.metadata import MetadataReader


@dataclass(frozen=True)
class Rope:
    """Constants of ``NAME.rope.*``. ``dim``: elements of a head that are rotated; ``neox``: the two elements of a rotary pair
    are ``dim / 2`` apart, not neighbours; ``whole_pairs``: YaRN's ramp begins and ends at a pair, not between two."""

    dim: int
    neox: bool
    freq_base: float
    scaling: str
    factor: float
    original_ctx: int
    beta_fast: float
    beta_slow: float
    ext_factor: float
    attn_factor: float
    whole_pairs: bool = True


def read_rope(
    metadata: MetadataReader, head_dim: int, n_ctx_train: int, *, neox: bool, freq_base: float = 10000.0
) -> Rope:
    """The rotary constants of a file; ``freq_base``: the default."""
    dim = metadata.count("rope.dimension_count", head_dim, head_dim)
    if dim % 2:
        raise metadata.error("rope.dimension_count", f"is {dim}, expected an even number")
    scaling = metadata.text("rope.scaling.type", "", ("", "none", "linear", "yarn", "longrope"))
    legacy = metadata.number(
        "rope.scale_linear", 0.0, or_zero=True
    )  # linear scaling, before files had a type of scaling
    if not scaling:
        scaling = "linear" if legacy not in (0.0, 1.0) else "none"
    return Rope(
        dim=dim,
        neox=neox,
        freq_base=metadata.number("rope.freq_base", freq_base, minimum=1.001),
        scaling=scaling,
        factor=metadata.number("rope.scaling.factor", legacy or 1.0),
        original_ctx=metadata.count("rope.scaling.original_context_length", 1 << 30, n_ctx_train),
        beta_fast=metadata.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=metadata.number("rope.scaling.yarn_beta_slow", 1.0),
        ext_factor=metadata.number("rope.scaling.yarn_ext_factor", 1.0),
        attn_factor=metadata.number("rope.scaling.attn_factor", 1.0)
        * metadata.number("rope.scaling.yarn_attn_factor", 1.0),
    )


def frequencies(rope: Rope, factors: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Radians per position of each rotary pair, float64 [dim / 2], and the factor of cosines and sines.

    Linear scaling divides all frequencies (Chen et al. 2023). YaRN divides those of slow pairs only, with a ramp between the
    pairs that rotate ``beta_fast`` and ``beta_slow`` times in the original context (Peng et al. 2023). ``factors``: float32
    [dim / 2], divisors of the frequencies that the file holds (Llama 3, LongRoPE). Raises ModelError for factors that are not
    above 0.
    """
    pair = np.arange(0, rope.dim, 2, dtype=np.float64)
    frequency = powers(rope.freq_base, (-pair / rope.dim).tolist())
    if factors is not None:
        if not (factors > 0).all():
            raise ModelError("tensors rope_freqs and rope_factors: expected numbers above 0")
        frequency = frequency / factors.astype(np.float64)
    if rope.scaling == "linear":
        return frequency / rope.factor, 1.0
    if rope.scaling == "longrope":
        return frequency, rope.attn_factor
    if rope.scaling == "yarn":

        def pair_of(rotations: float) -> float:
            """Index of the rotary pair that makes this number of rotations in the original context."""
            ratio = rope.original_ctx / (rotations * 2 * math.pi)
            return rope.dim * ln(ratio) / (2 * ln(rope.freq_base))

        low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
        if rope.whole_pairs:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(0.0, low), min(rope.dim - 1.0, high)
        ramp = np.clip((pair / 2 - low) / max(0.001, high - low), 0.0, 1.0)
        kept = (1.0 - ramp) * rope.ext_factor  # how much of its original frequency a pair keeps
        scale = rope.attn_factor * (1.0 + 0.1 * ln(rope.factor))
        return frequency / rope.factor * (1.0 - kept) + frequency * kept, scale
    return frequency, 1.0
