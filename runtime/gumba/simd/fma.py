"""Fused multiply-add in float32: one rounding for both, on every processor, so that all of them give the same bits.

Without an instruction for it, the sum is computed in float64. There the product is exact (24 + 24 bits of 53), the sum is rounded
to 53 bits, and rounding that once more to float32 is right unless the float64 lies exactly between two float32: the sum itself
may lie to either side of it. Then the last 28 bits are zero, which is rare, and is corrected: of the two float64 beside the
sum, the one whose last bit is 1 always rounds to the right float32 (rounding to odd, Boldo and Melquiond 2008).

Measured without the instruction, nanoseconds for four lanes: 2.2 for a multiplication and an addition, 4.2 for this, 8.8 when
every sum is corrected without a branch, 6.8 for the C library's ``fmaf`` on a processor whose instruction that can use, and
515 on one without.
"""

from __future__ import annotations

from gumba.simd.processor import has_fma
from gumba.simd.value import F32, F64, I32, I64, Simd, Value


def multiply_add(s: Simd, a: Value, x: Value, acc: Value) -> Value:
    """``a * x + acc`` in float32 with one rounding. (Of NaN, only that it is NaN is the same everywhere.)"""
    return s.fma(a, x, acc) if has_fma() else through_float64(s, a, x, acc)


def through_float64(s: Simd, a: Value, x: Value, acc: Value) -> Value:
    """``multiply_add`` without the instruction."""
    product, wide = a.to(F64) * x.to(F64), acc.to(F64)
    total = product + wide
    result = s.variable(total)
    between = (total.bits(I64, total.lanes).to(I32) & 0x0FFFFFFF).compare("==", 0)
    with s.when(s.any(between)):
        result.set(s.select(between, _round_to_odd(s, product, wide, total), total))
    return result.get().to(F32)


def _round_to_odd(s: Simd, x: Value, y: Value, total: Value) -> Value:
    """x + y in float64, rounded to odd, where ``total``, rounded to nearest, is even."""
    n = total.lanes
    part = total - x
    error = (x - (total - part)) + (y - part)  # x + y = total + error (Knuth's TwoSum)
    bits, zero = total.bits(I64, n), s.zero(I64, n)
    outwards = (bits ^ error.bits(I64, n)).compare(">=", zero)  # away from zero: where the two have the same sign
    other = s.select(outwards, bits + 1, bits - 1)
    # Infinities and NaN have an error of NaN, for which this comparison does not hold.
    return s.select(error.compare("!=", 0.0), other, bits).bits(F64, n)
