"""Operations that go over rows of float32: normalisation, activation function, addition, copies.

Rows are padded (``ROW_ALIGN``), so vectors of 16 may run past a row's end; what lies there is never part of a sum. The unit of
work is (row, block of 32 columns), the same as for quantization: operations that follow each other with the same rows and
width give every thread the same units, and need no barrier between them.
"""

from __future__ import annotations

import functools

from gumba.kernels.jit import inline
from gumba.kernels.op import OUTPUT_ROWS, Kernel, f4, kernel, next_unit, share
from gumba.simd.isa import Isa
from gumba.simd.maths import exp
from gumba.simd.memory import load_f32, load_i32, load_i64
from gumba.simd.value import F32, Simd, Value, simd_function


@simd_function("f4(i8, i8)")
def _sum_squares(s: Simd, x: Value, n_vectors: Value) -> Value:
    acc = s.variable(s.zero(F32, 16))
    with s.loop(n_vectors) as i:
        v = s.load(x + i * 64, F32, 16)
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


@inline
def _rms_scale(x, width, eps):
    total = _sum_squares(x, width // 16)
    for i in range(width // 16 * 16, width):
        v = load_f32(x + 4 * i)
        total += v * v
    return _inverse_sqrt(total / width + eps)


@kernel(divisible=True)
def rms_norm(batch, thread, n_threads, count, x, weight, out, stride, width, n_blocks, eps: f4):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row (Zhang and Sennrich 2019).

    x, out: float32 [n, width], rows ``stride`` bytes apart; weight: float32 [width], padded.
    """
    n = load_i64(batch + count) * n_blocks
    first = share(n, thread, n_threads)
    row = first // n_blocks
    block = first - row * n_blocks
    scale = eps
    for unit in range(first, share(n, thread + 1, n_threads)):
        at = row * stride
        if block == 0 or unit == first:
            scale = _rms_scale(x + at, width, eps)
        at += block * 128
        _scale_block(x + at, weight + block * 128, scale, out + at)
        row, block = next_unit(row, block, n_blocks)


@functools.cache
def swiglu(isa: Isa) -> Kernel:
    """out = gate / (1 + e^-gate) * up (Shazeer 2020)."""

    @simd_function("void(i8, i8, i8)")
    def block(s: Simd, gate: Value, up: Value, out: Value) -> None:
        for i in range(2):
            g = s.load(gate + 64 * i, F32, 16)
            silu = g / (exp(s, isa, s.zero(F32, 16) - g) + 1.0)
            s.store(out + 64 * i, silu * s.load(up + 64 * i, F32, 16))

    @kernel(variant=isa.name, divisible=True)
    def swiglu(batch, thread, n_threads, count, gate, up, out, stride, n_blocks):
        n = load_i64(batch + count) * n_blocks
        first = share(n, thread, n_threads)
        row = first // n_blocks
        b = first - row * n_blocks
        for _ in range(first, share(n, thread + 1, n_threads)):
            at = row * stride + b * 128
            block(gate + at, up + at, out + at)
            row, b = next_unit(row, b, n_blocks)

    return swiglu


@simd_function("void(i8, i8, i8)")
def _add_block(s: Simd, x: Value, y: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16) + s.load(y + 64 * i, F32, 16))


@kernel(divisible=True)
def add_row(batch, thread, n_threads, count, x, row, out, stride, n_blocks):
    """out = x + row: the same row (a bias, padded) added to every row of x."""
    n = load_i64(batch + count) * n_blocks
    first = share(n, thread, n_threads)
    line = first // n_blocks
    block = first - line * n_blocks
    for _ in range(first, share(n, thread + 1, n_threads)):
        at = line * stride + block * 128
        _add_block(x + at, row + block * 128, out + at)
        line, block = next_unit(line, block, n_blocks)


@simd_function("void(i8, i8)")
def _copy_block(s: Simd, x: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16))


@kernel(divisible=True)
def select_rows(batch, thread, n_threads, count, x, out, stride, n_blocks):
    """Copy the rows whose logits are wanted: x [n_tokens, ...] -> out [n_outputs, ...]."""
    n = load_i64(batch + count) * n_blocks
    rows = load_i64(batch + OUTPUT_ROWS)
    for unit in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        row = unit // n_blocks
        column = unit % n_blocks * 128
        _copy_block(x + load_i32(rows + 4 * row) * stride + column, out + row * stride + column)
