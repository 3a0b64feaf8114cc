"""Elementwise operations on rows of float32: sums, products, copies.

Rows are padded (``ROW_ALIGN``), so vectors of 16 may run past a row's end; the padding is never part of a sum. The unit of work
is (row, block of 32 columns), the same as for quantization: consecutive operations with the same rows and width give every
thread the same units, and need no barrier between them.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import OUTPUT_ROWS, Kernel, f4, first_unit, kernel, next_unit, share
from gumba.simd.memory import load_f32, load_i32, load_i64, store_f32
from gumba.simd.value import F32, Simd, Value, simd_function


@simd_function("void(i8, i8, i8)")
def _add_block(s: Simd, x: Value, y: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16) + s.load(y + 64 * i, F32, 16))


@simd_function("void(i8, i8, i8)")
def _multiply_block(s: Simd, x: Value, y: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16) * s.load(y + 64 * i, F32, 16))


@simd_function("void(i8, f4, i8)")
def _scale_block(s: Simd, x: Value, factor: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16) * s.splat(factor, 16))


@simd_function("void(i8, i8)")
def _copy_block(s: Simd, x: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16))


@functools.cache
def combine(kind: str) -> Kernel:
    """out = x + y ("add") or x * y ("multiply"), number by number.

    x, out: float32 [n, width], rows ``stride`` bytes apart; y: rows ``y_stride`` apart, 0 to use one (padded) row for all.
    """
    block = {"add": _add_block, "multiply": _multiply_block}[kind]

    @kernel(variant=kind, stealable=True)
    def combine(batch, thread, n_threads, count, x, y, y_stride, out, stride, n_blocks):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(x + at, y + row * y_stride + b * 128, out + at)
            row, b = next_unit(row, b, n_blocks)

    return combine


@kernel(stealable=True)
def scale(batch, thread, n_threads, count, x, out, stride, n_blocks, factor: f4):
    """out = x * factor."""
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    for _ in range(n_units):
        at = row * stride + block * 128
        _scale_block(x + at, factor, out + at)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def scale_rows(batch, thread, n_threads, count, x, factors, factors_stride, out, stride, n_blocks):
    """out = x times one number for each row: the first of each row of ``factors``, ``factors_stride`` bytes apart."""
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    for _ in range(n_units):
        at = row * stride + block * 128
        _scale_block(x + at, load_f32(factors + row * factors_stride), out + at)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def add_table(batch, thread, n_threads, count, index, divisor, x, table, table_stride, out, stride, n_blocks):
    """out = x + a row of a table for each token. table: float32 [n, width], rows ``table_stride`` bytes apart.

    The row's number is the token's ``index`` (POSITIONS, or TOKENS), divided by ``divisor``.
    """
    row, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    indices = load_i64(batch + index)
    for _ in range(n_units):
        at = row * stride + block * 128
        added = table + load_i32(indices + 4 * row) // divisor * table_stride + block * 128
        _add_block(x + at, added, out + at)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def select_rows(batch, thread, n_threads, count, x, out, stride, n_blocks):
    """Copy the rows whose logits are needed: x [n_tokens, ...] -> out [n_outputs, ...]."""
    n = load_i64(batch + count) * n_blocks
    rows = load_i64(batch + OUTPUT_ROWS)
    for unit in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        row = unit // n_blocks
        column = unit % n_blocks * 128
        _copy_block(x + load_i32(rows + 4 * row) * stride + column, out + row * stride + column)


@kernel(stealable=True)
def copy_columns(batch, thread, n_threads, count, x, x_stride, first, out, stride, width, n_blocks):
    """out = ``width`` columns of x from column ``first`` on, rows of x ``x_stride`` bytes apart; nothing behind them is read."""
    n = load_i64(batch + count) * n_blocks
    for unit in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        row = unit // n_blocks
        column = unit % n_blocks * 32
        source, target = x + row * x_stride + 4 * (first + column), out + row * stride + 4 * column
        if column + 32 <= width:
            _copy_block(source, target)
        else:
            for i in range(width - column):
                store_f32(target + 4 * i, load_f32(source + 4 * i))


@kernel(stealable=True)
def copy_heads(
    batch, thread, n_threads, count, x, x_first, x_stride, x_head, out, out_first, stride, out_head, n_heads, width
):
    """Copy ``width`` numbers of each head. x, out: float32; in bytes: ``x_first``, ``out_first``: where the first head's begin;
    ``x_stride``, ``stride``: from row to row; ``x_head``, ``out_head``: from head to head (``x_head`` 0: all get the same).
    Nothing beside them is read or written."""
    n = load_i64(batch + count)
    for row in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        for head in range(n_heads):
            source = x + x_first + row * x_stride + head * x_head
            target = out + out_first + row * stride + head * out_head
            whole = width // 32 * 32
            for i in range(0, whole, 32):
                _copy_block(source + 4 * i, target + 4 * i)
            for i in range(whole, width):
                store_f32(target + 4 * i, load_f32(source + 4 * i))
