"""Activations in int8, the partner of every quantized weight format.

A row of n floats becomes n / 32 blocks of 64 bytes, one cache line each:

    byte 0..31   int8    q       x ~ q * scale, q = round to nearest even (x / scale)
    byte 32      float32 scale   (largest |x| of the block) / 127
    byte 36      float32 sum     scale * (q_0 + ... + q_31): for formats with a minimum
    byte 40      int32   -8 * (q_0 + ... + q_31): start of a dot product whose weights are stored with 8 added
    byte 44      int32   -128 * (...)
    byte 48      int32   -32 * (q_0 + ... + q_15), byte 52: -32 * (q_16 + ... + q_31)

Infinities and NaN come out as a NaN scale, so that they are not lost.
"""

from __future__ import annotations

from gumba.kernels.jit import inline
from gumba.kernels.op import kernel, share
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, I8, I32, Simd, Value, simd_function

COLUMNS = 32
BYTES = 64
SCALE, SUM = 32, 36
#: Where the start value for weights stored with this offset lies (two of them for halves of a block).
STARTS = {8: (40,), 128: (44,), 32: (48, 52)}

_ROUND = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer, to nearest even


@simd_function("void(i8, i8)")
def quantize_block(s: Simd, x: Value, out: Value) -> None:
    """32 floats at ``x`` to one block at ``out``."""
    halves = [s.load(x + 64 * i, F32, 16) for i in range(2)]
    largest = s.reduce(s.maximum(s.absolute(halves[0]), s.absolute(halves[1])), s.maximum)
    probe = s.reduce(halves[0] * 0.0 + halves[1] * 0.0, lambda a, b: a + b)  # 0, or NaN if anything is not finite
    inverse = s.select(largest.compare(">", 0.0), s.constant(127.0, F32) / largest, s.zero(F32))
    scale = largest * (1 / 127) + probe
    sums = []
    for i, half in enumerate(halves):
        rounded = half * s.splat(inverse, 16) + _ROUND - _ROUND
        q = rounded.to(I32)
        s.store(out + 16 * i, q.to(I8))
        sums.append(s.reduce(q, lambda a, b: a + b))
    total = sums[0] + sums[1]
    s.store(out + SCALE, scale)
    s.store(out + SUM, scale * total.to(F32))
    s.store(out + STARTS[8][0], total * -8)
    s.store(out + STARTS[128][0], total * -128)
    s.store(out + STARTS[32][0], sums[0] * -32)
    s.store(out + STARTS[32][1], sums[1] * -32)


@inline
def quantize_units(x, x_stride, out, out_stride, n_blocks, first, last):
    """Units ``first`` up to ``last`` of (row, block)."""
    for unit in range(first, last):
        row = unit // n_blocks
        block = unit - row * n_blocks
        quantize_block(x + row * x_stride + block * 128, out + row * out_stride + block * BYTES)


@kernel
def quantize_q8(batch, thread, n_threads, count, x, x_stride, out, out_stride, n_blocks):
    """x: float32 [n, 32 * n_blocks] -> out: blocks [n, n_blocks]. ``count``: offset of n in the batch record."""
    n = load_i64(batch + count) * n_blocks
    quantize_units(x, x_stride, out, out_stride, n_blocks, share(n, thread, n_threads), share(n, thread + 1, n_threads))
