"""Normalisation: of whole rows (RMS norm, layer norm), and of each head of a row.

As in ``kernels.elementwise``, rows are padded, and the padding is never part of a sum. A row's statistics are summed in one
order, by each thread that needs them: that is cheaper than waiting for one another.
"""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels.record import f4, first_unit, kernel, next_unit
from gumba.jit.jit import inline
from gumba.simd.memory import load_f32, load_i64
from gumba.simd.value import F32, Simd, Value, simd_function


@simd_function("f4(i8, i8)")
def _sum(s: Simd, x: Value, n_vectors: Value) -> Value:
    acc = s.variable(s.zero(F32, 16))
    with s.loop(n_vectors) as i:
        acc.set(acc.get() + s.load(x + i * 64, F32, 16))
    return s.reduce(acc.get(), lambda a, b: a + b)


@simd_function("f4(i8, i8)")
def _sum_squares(s: Simd, x: Value, n_vectors: Value) -> Value:
    acc = s.variable(s.zero(F32, 16))
    with s.loop(n_vectors) as i:
        v = s.load(x + i * 64, F32, 16)
        acc.set(acc.get() + v * v)
    return s.reduce(acc.get(), lambda a, b: a + b)


@simd_function("f4(i8, i8, f4)")
def _sum_squares_around(s: Simd, x: Value, n_vectors: Value, mean: Value) -> Value:
    acc = s.variable(s.zero(F32, 16))
    with s.loop(n_vectors) as i:
        v = s.load(x + i * 64, F32, 16) - s.splat(mean, 16)
        acc.set(acc.get() + v * v)
    return s.reduce(acc.get(), lambda a, b: a + b)


@simd_function("f4(f4)")
def _inverse_sqrt(s: Simd, x: Value) -> Value:
    return s.constant(1.0, F32) / s.sqrt(x)


@simd_function("void(i8, i8, f4, i8)")
def _scale_block(s: Simd, x: Value, weight: Value, scale: Value, out: Value) -> None:
    for i in range(2):
        v = s.load(x + 64 * i, F32, 16) * s.splat(scale, 16)
        s.store(out + 64 * i, v * s.load(weight + 64 * i, F32, 16))


@simd_function("void(i8, i8, i8, f4, f4, i8)")
def _normalize_block(s: Simd, x: Value, weight: Value, bias: Value, mean: Value, scale: Value, out: Value) -> None:
    for i in range(2):
        v = (s.load(x + 64 * i, F32, 16) - s.splat(mean, 16)) * s.splat(scale, 16)
        s.store(out + 64 * i, v * s.load(weight + 64 * i, F32, 16) + s.load(bias + 64 * i, F32, 16))


@simd_function("void(i8, i8, f4, f4, i8, i8)")
def _normalize_head(s: Simd, x: Value, weight: Value, mean: Value, scale: Value, out: Value, n: Value) -> None:
    """``n`` numbers; nothing after them is read or written."""
    whole = n >> 4
    with s.loop(whole) as i:
        v = (s.load(x + i * 64, F32, 16) - s.splat(mean, 16)) * s.splat(scale, 16)
        s.store(out + i * 64, v * s.load(weight + i * 64, F32, 16))
    done = whole * 64
    with s.loop(n & 15) as i:
        at = done + i * 4
        s.store(out + at, (s.load(x + at, F32) - mean) * scale * s.load(weight + at, F32))


@inline
def mean_square(x, width):
    """Of ``width`` float32 numbers."""
    total = _sum_squares(x, width // 16)
    for i in range(width // 16 * 16, width):
        v = load_f32(x + 4 * i)
        total += v * v
    return total / width


@inline
def _rms_scale(x, width, eps):
    return _inverse_sqrt(mean_square(x, width) + eps)


@inline
def mean_of(x, width):
    """Of ``width`` float32 numbers."""
    total = _sum(x, width // 16)
    for i in range(width // 16 * 16, width):
        total += load_f32(x + 4 * i)
    return total / width


@inline
def variance(x, width, mean):
    """Of ``width`` float32 numbers, around their ``mean``."""
    total = _sum_squares_around(x, width // 16, mean)
    for i in range(width // 16 * 16, width):
        v = load_f32(x + 4 * i) - mean
        total += v * v
    return total / width


@inline
def _layer_scale(x, width, mean, eps):
    return _inverse_sqrt(variance(x, width, mean) + eps)


@kernel(stealable=True)
def rms_norm(batch, thread, n_threads, count, x, weight, out, stride, width, n_blocks, eps: f4):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang and Sennrich 2019).

    x, out: float32 [n, width], rows ``stride`` bytes apart; weight: float32 [width], padded.
    """
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    scale = eps
    for unit in range(n_units):
        at = row * stride
        if block == 0 or unit == 0:
            scale = _rms_scale(x + at, width, eps)
        at += block * 128
        _scale_block(x + at, weight + block * 128, scale, out + at)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def layer_norm(batch, thread, n_threads, count, x, weight, bias, out, stride, width, n_blocks, eps: f4):
    """out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, row by row (Ba et al. 2016).

    x, out: float32 [n, width], rows ``stride`` bytes apart; weight, bias: float32 [width], padded.
    """
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    mean, scale = eps, eps
    for unit in range(n_units):
        at = row * stride
        if block == 0 or unit == 0:
            mean = mean_of(x + at, width)
            scale = _layer_scale(x + at, width, mean, eps)
        at += block * 128
        _normalize_block(x + at, weight + block * 128, bias + block * 128, mean, scale, out + at)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def head_norm(
    batch, thread, n_threads, count, x, weight, weight_step, out, stride, n_heads, head_dim, centred, eps: f4
):
    """The RMS norm of each head, or its layer norm (without bias) where ``centred`` is not 0.

    x, out: float32 [n, n_heads, head_dim], rows ``stride`` bytes apart; weight: float32 [head_dim] of each head, from
    head to head ``weight_step`` bytes on.
    """
    n = load_i64(batch + count)
    t, h, n_units = first_unit(n, n_heads, thread, n_threads)
    for _ in range(n_units):
        at = t * stride + h * head_dim * 4
        mean = np.float32(0)
        if centred != 0:
            mean = mean_of(x + at, head_dim)
            scale = _layer_scale(x + at, head_dim, mean, eps)
        else:
            scale = _rms_scale(x + at, head_dim, eps)
        _normalize_head(x + at, weight + h * weight_step, mean, scale, out + at, head_dim)
        t, h = next_unit(t, h, n_heads)
