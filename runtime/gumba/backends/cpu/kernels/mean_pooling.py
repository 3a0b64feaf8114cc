"""Means over the tokens of a text, all of which are in the step: the input of some encoders' classifier heads."""

from __future__ import annotations

from gumba.backends.cpu.kernels.elementwise import _add_block, _copy_block, _scale_block
from gumba.backends.cpu.kernels.record import POSITIONS, kernel, next_unit, share
from gumba.simd.memory import load_i32, load_i64


@kernel(stealable=True)
def text_means(batch, thread, n_threads, count, x, out, stride, n_blocks):
    """out = x, but where a text begins (position 0) the mean of its rows, summed from the first to the last.

    x, out: float32 [n_tokens, width], rows ``stride`` bytes apart. A text ends where the next one begins.
    """
    n_rows = load_i64(batch + count)
    positions = load_i64(batch + POSITIONS)
    n = n_rows * n_blocks
    first = share(n, thread, n_threads)
    row = first // n_blocks
    block = first - row * n_blocks
    for _ in range(first, share(n, thread + 1, n_threads)):
        at = row * stride + block * 128
        _copy_block(x + at, out + at)
        if load_i32(positions + 4 * row) == 0:
            length = 1
            while row + length < n_rows and load_i32(positions + 4 * (row + length)) != 0:
                _add_block(out + at, x + at + length * stride, out + at)
                length += 1
            _scale_block(out + at, 1.0 / length, out + at)
        row, block = next_unit(row, block, n_blocks)
