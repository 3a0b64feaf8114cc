"""Gemma 3n's operations: several streams of one width side by side in a row, and statistics of whole rows.

Alternating updates (Baykal et al. 2023): a layer computes one of the streams, the others are predicted from it and each other.
``n_streams`` parts of a row begin ``part`` bytes apart; the unit of work is (row, block of 32 columns of every stream).
"""

from __future__ import annotations

import functools

import numpy as np

from gumba.backends.cpu.kernels.norms import mean_of, mean_square, variance
from gumba.backends.cpu.kernels.record import Kernel, f4, first_unit, kernel, next_unit
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, Simd, Value, simd_function


@functools.cache
def mix_streams(n_streams: int) -> Kernel:
    """out[i] = x[i] + the sum over streams j of coefficients[i, j] * x[j].

    x, out: float32 [n, n_streams, width], rows ``stride`` bytes apart; coefficients: float32 [n, n_streams, n_streams], rows
    ``coefficients_stride`` bytes apart.
    """

    @simd_function("void(i8, i8, i8, i8)")
    def block(s: Simd, x: Value, part: Value, coefficients: Value, out: Value) -> None:
        for half in (0, 64):
            streams = [s.load(x + part * j + half, F32, 16) for j in range(n_streams)]
            for i in range(n_streams):
                total = streams[i]
                for j in range(n_streams):
                    factor = s.load(coefficients + 4 * (i * n_streams + j), F32)
                    total = total + streams[j] * s.splat(factor, 16)
                s.store(out + part * i + half, total)

    @kernel(variant=str(n_streams), stealable=True)
    def mix_streams(batch, thread, n_threads, count, x, coefficients, coefficients_stride, out, stride, part, n_blocks):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(x + at, part, coefficients + row * coefficients_stride, out + at)
            row, b = next_unit(row, b, n_blocks)

    return mix_streams


@functools.cache
def add_to_streams(n_streams: int) -> Kernel:
    """out[i] = x[i] + factors[i] * y.

    x, out: float32 [n, n_streams, width], rows ``stride`` bytes apart; y: float32 [n, width], rows ``y_stride`` apart; factors:
    float32 [n, n_streams], rows ``factors_stride`` apart, 0 to use one row for all.
    """

    @simd_function("void(i8, i8, i8, i8, i8)")
    def block(s: Simd, x: Value, part: Value, y: Value, factors: Value, out: Value) -> None:
        for half in (0, 64):
            added = s.load(y + half, F32, 16)
            for i in range(n_streams):
                factor = s.splat(s.load(factors + 4 * i, F32), 16)
                s.store(out + part * i + half, s.load(x + part * i + half, F32, 16) + added * factor)

    @kernel(variant=str(n_streams), stealable=True)
    def add_to_streams(
        batch, thread, n_threads, count, x, y, y_stride, factors, factors_stride, out, stride, part, n_blocks
    ):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at, y_at = row * stride + b * 128, row * y_stride + b * 128
            block(x + at, part, y + y_at, factors + row * factors_stride, out + at)
            row, b = next_unit(row, b, n_blocks)

    return add_to_streams


@simd_function("f4(f4, f4)")
def _root_of_ratio(s: Simd, x: Value, y: Value) -> Value:
    return s.sqrt(x / y)


@simd_function("f4(f4, f4, f4)")
def _cutoff(s: Simd, mean: Value, variance: Value, factor: Value) -> Value:
    return mean + s.sqrt(variance) * factor


@simd_function("void(i8, f4, i8)")
def _scale_block(s: Simd, x: Value, factor: Value, out: Value) -> None:
    for half in (0, 64):
        s.store(out + half, s.load(x + half, F32, 16) * s.splat(factor, 16))


@simd_function("void(i8, f4, i8)")
def _threshold_block(s: Simd, x: Value, cutoff: Value, out: Value) -> None:
    for half in (0, 64):
        v = s.load(x + half, F32, 16) - s.splat(cutoff, 16)
        s.store(out + half, s.select(v.compare("<", 0.0), s.zero(F32, 16), v))  # NaN stays NaN


@kernel(stealable=True)
def match_magnitude(batch, thread, n_threads, count, x, y, out, stride, width, n_blocks, least: f4):
    """out = x * sqrt(mean(y^2) / max(mean(x^2), least)), row by row: x gets y's magnitude.

    x, y, out: float32 [n, width], rows ``stride`` bytes apart.
    """
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    factor = np.float32(0)
    for unit in range(n_units):
        at = row * stride
        if block == 0 or unit == 0:
            factor = _root_of_ratio(mean_square(y + at, width), max(mean_square(x + at, width), least))
        _scale_block(x + at + block * 128, factor, out + at + block * 128)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def keep_greatest(batch, thread, n_threads, count, x, out, stride, width, n_blocks, factor: f4):
    """out = max(0, x - (mean(x) + factor * deviation(x))), row by row: of normally distributed numbers, the few greatest.

    x, out: float32 [n, width], rows ``stride`` bytes apart (Gaussian top-k, You et al. 2025).
    """
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    cutoff = np.float32(0)
    for unit in range(n_units):
        at = row * stride
        if block == 0 or unit == 0:
            mean = mean_of(x + at, width)
            cutoff = _cutoff(mean, variance(x + at, width, mean), factor)
        _threshold_block(x + at + block * 128, cutoff, out + at + block * 128)
        row, block = next_unit(row, block, n_blocks)
