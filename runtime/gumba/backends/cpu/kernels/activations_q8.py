"""Activations in int8, which every quantized weight format is multiplied by.

A row of n floats becomes n / 32 blocks of 64 bytes, one cache line each:

    byte 0..31   int8    q       x ~ q * scale, q = round to nearest even (x / scale)
    byte 32      float32 scale   (largest |x| of the block) / 127
    byte 36      float32 sum     scale * (q_0 + ... + q_31): for formats with a minimum
    byte 40      int32   -8 * (q_0 + ... + q_31): start of a dot product whose weights are stored with 8 added (offset 8)
    byte 44      int32   -128 * (...)
    byte 48      int32   -32 * (q_0 + ... + q_15), byte 52: -32 * (q_16 + ... + q_31)
    byte 56      float32 scale * (q_0 + ... + q_15), byte 60: scale * (q_16 + ... + q_31): for formats with a minimum per 16

Infinities and NaN become an infinite or NaN scale, so that they are not lost.
"""

from __future__ import annotations

from gumba.backends.cpu.kernels.record import kernel, next_unit, share
from gumba.jit.jit import inline
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, I8, I32, Simd, Value, simd_function

COLUMNS = 32
BYTES = 64
SCALE, SUM, HALF_SUMS = 32, 36, (56, 60)
#: Where the start values of dot products lie: for weights stored with this offset added, of a whole block, and of its halves.
WHOLE_STARTS = {8: 40, 128: 44}
HALF_STARTS = ({32: 48}, {32: 52})

_ROUND = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer, to nearest even


@simd_function("void(i8, i8)")
def quantize_block(s: Simd, x: Value, out: Value) -> None:
    """32 floats at ``x`` to one block at ``out``."""
    halves = [s.load(x + 64 * i, F32, 16) for i in range(2)]
    # As integers, magnitudes have the order of the numbers, with infinity and NaN on top: one maximum finds both.
    sizes = [half.bits(I32, 16) & 0x7FFFFFFF for half in halves]
    largest = s.reduce(s.maximum(sizes[0], sizes[1]), s.maximum).bits(F32, 1)
    # Outside this range (zeros, infinity, NaN; below it the quotient would be infinite) all q are 0, and the scale shows why.
    usable = largest.compare(">", 1e-36) & largest.compare("<", float("inf"))
    inverse = s.select(usable, s.constant(127.0, F32) / largest, s.zero(F32))
    keep = s.splat(s.select(usable, s.constant(-1, I32), s.zero(I32)), 16)
    scale = largest * (1 / 127)
    quantized = []
    for i, half in enumerate(halves):
        rounded = (half.bits(I32, 16) & keep).bits(F32, 16) * s.splat(inverse, 16) + _ROUND - _ROUND
        quantized.append(rounded.to(I32))
        s.store(out + 16 * i, quantized[i].to(I8))
    # Both halves' sums at once: fold each to 8 lanes, lay them side by side, fold on.
    folded = [s.shuffle(q, range(8)) + s.shuffle(q, range(8, 16)) for q in quantized]
    both = s.shuffle(folded[0], range(4)) + s.shuffle(folded[0], range(4, 8))
    other = s.shuffle(folded[1], range(4)) + s.shuffle(folded[1], range(4, 8))
    both = s.concatenate(both, other)
    both = both + s.shuffle(both, [2, 3, 0, 1, 6, 7, 4, 5])
    both = both + s.shuffle(both, [1, 0, 3, 2, 5, 4, 7, 6])
    sums = [s.lane(both, 0), s.lane(both, 4)]
    total = sums[0] + sums[1]
    s.store(out + SCALE, scale)
    s.store(out + SUM, scale * total.to(F32))
    for offset, at in WHOLE_STARTS.items():
        s.store(out + at, total * -offset)
    for total, starts, half_sum in zip(sums, HALF_STARTS, HALF_SUMS):
        s.store(out + half_sum, scale * total.to(F32))
        for offset, at in starts.items():
            s.store(out + at, total * -offset)


def load_start(s: Simd, x: Value, offset: int, half: int | None) -> Value:
    """-``offset`` times the sum of a block's integers, or of those of its first or second ``half``: the start of a dot product
    whose weights are stored with ``offset`` added. An offset for which the block has no such number costs a multiplication."""
    starts = WHOLE_STARTS if half is None else HALF_STARTS[half]
    if offset in starts:
        return s.load(x + starts[offset], I32)
    stored, at = next(iter(starts.items()))
    return (s.load(x + at, I32) * offset).shift_right_signed(stored.bit_length() - 1)


@inline
def quantize_units(x, x_stride, out, out_stride, n_blocks, first, last):
    """Units ``first`` up to ``last`` of (row, block)."""
    row = first // n_blocks
    block = first - row * n_blocks
    for _ in range(last - first):
        quantize_block(x + row * x_stride + block * 128, out + row * out_stride + block * BYTES)
        row, block = next_unit(row, block, n_blocks)


@kernel(stealable=True)
def quantize_q8(batch, thread, n_threads, count, x, x_stride, out, out_stride, n_blocks):
    """x: float32 [n, 32 * n_blocks] -> out: blocks [n, n_blocks]. ``count``: offset of n in the batch record."""
    n = load_i64(batch + count) * n_blocks
    quantize_units(x, x_stride, out, out_stride, n_blocks, share(n, thread, n_threads), share(n, thread + 1, n_threads))
