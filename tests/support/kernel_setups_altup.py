"""Builders and oracles for the kernels of ``gumba.backends.cpu.kernels.altup``; see setups.py."""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels import altup
from gumba.backends.cpu.kernels.record import N_TOKENS
from gumba.simd.isa import Isa
from support.kernel_harness import EPS32, Batch, Setup, address, n_blocks, rows


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng([31, seed])


def mix_streams(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """x: [n, streams, width]; coefficients: [n, streams, streams]."""
    return x + np.einsum("tij,tjw->tiw", coefficients.astype(np.float64), x.astype(np.float64))


def add_to_streams(x: np.ndarray, y: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """x: [n, streams, width]; y: [n, width]; factors: [n or 1, streams]."""
    return x.astype(np.float64) + factors[:, :, None].astype(np.float64) * y[:, None]


def match_magnitude(x: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
    of_x, of_y = (np.square(rows.astype(np.float64)).mean(axis=1, keepdims=True) for rows in (x, y))
    return x * np.sqrt(of_y) / np.sqrt(np.maximum(of_x, least))


def keep_greatest(x: np.ndarray, factor: float) -> np.ndarray:
    wide = x.astype(np.float64)
    return np.maximum(0, wide - wide.mean(axis=1, keepdims=True) - factor * wide.std(axis=1, keepdims=True))


def streams_of(values: np.ndarray) -> np.ndarray:
    """float32 [n, n_streams, width] as rows of padded parts, [n, n_streams * padded]."""
    n, _, width = values.shape
    return rows(values.reshape(-1, width)).reshape(n, -1)


def setup_mix_streams(isa: Isa, n_streams: int = 4, width: int = 100, n: int = 5) -> Setup:
    rng = rng_of(1)
    x = rng.standard_normal((n, n_streams, width)).astype(np.float32)
    coefficients = rng.standard_normal((n, n_streams, n_streams)).astype(np.float32)
    held, held_coefficients = streams_of(x), rows(coefficients.reshape(n, -1))
    out = np.zeros_like(held)
    arguments = {"count": N_TOKENS, "x": address(held), "coefficients": address(held_coefficients),
                 "coefficients_stride": held_coefficients.strides[0], "out": address(out), "stride": held.strides[0],
                 "part": held.strides[0] // n_streams, "n_blocks": n_blocks(width)}  # fmt: skip
    expected = mix_streams(x, coefficients)
    size = mix_streams(np.abs(x), np.abs(coefficients))
    return Setup(altup.mix_streams(n_streams), arguments, Batch(n), out,
                 lambda a: a.reshape(n, n_streams, -1)[:, :, :width], expected, 8 * EPS32 * size,
                 keep=[held, held_coefficients])  # fmt: skip


def setup_add_to_streams(isa: Isa, n_streams: int = 4, width: int = 100, n: int = 5, row: bool = False) -> Setup:
    rng = rng_of(2)
    x = rng.standard_normal((n, n_streams, width)).astype(np.float32)
    y = rng.standard_normal((n, width)).astype(np.float32)
    factors = rng.standard_normal((1 if row else n, n_streams)).astype(np.float32)
    held, held_y, held_factors = streams_of(x), rows(y), rows(factors)
    out = np.zeros_like(held)
    arguments = {"count": N_TOKENS, "x": address(held), "y": address(held_y), "y_stride": held_y.strides[0],
                 "factors": address(held_factors), "factors_stride": 0 if row else held_factors.strides[0],
                 "out": address(out), "stride": held.strides[0], "part": held.strides[0] // n_streams,
                 "n_blocks": n_blocks(width)}  # fmt: skip
    expected = add_to_streams(x, y, factors)
    size = add_to_streams(np.abs(x), np.abs(y), np.abs(factors))
    return Setup(altup.add_to_streams(n_streams), arguments, Batch(n), out,
                 lambda a: a.reshape(n, n_streams, -1)[:, :, :width], expected, 2 * EPS32 * size,
                 keep=[held, held_y, held_factors])  # fmt: skip


def setup_match_magnitude(isa: Isa, width: int = 100, n: int = 5, scale: float = 3.0, least: float = 1e-5) -> Setup:
    rng = rng_of(3)
    x = (rng.standard_normal((n, width)) * scale).astype(np.float32)
    y = rng.standard_normal((n, width)).astype(np.float32)
    held, held_y, out = rows(x), rows(y), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "y": address(held_y), "out": address(out),
                 "stride": out.strides[0], "width": width, "n_blocks": n_blocks(width), "least": least}  # fmt: skip
    expected = match_magnitude(x, y, least)
    return Setup(altup.match_magnitude, arguments, Batch(n), out, lambda a: a[:, :width], expected,
                 12 * EPS32 * np.abs(expected) + 1e-30, keep=[held, held_y])  # fmt: skip


def setup_keep_greatest(isa: Isa, width: int = 100, n: int = 5, factor: float = 0.8, around: float = 0.0) -> Setup:
    rng = rng_of(4)
    x = (rng.standard_normal((n, width)) + around).astype(np.float32)
    held, out = rows(x), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "out": address(out), "stride": out.strides[0], "width": width,
                 "n_blocks": n_blocks(width), "factor": factor}  # fmt: skip
    return Setup(altup.keep_greatest, arguments, Batch(n), out, lambda a: a[:, :width],
                 keep_greatest(x, factor), 16 * EPS32 * (np.abs(x).max() + abs(around)), keep=[held])  # fmt: skip
