"""Functions of float32 vectors, built only from the primitives: the same bits on every instruction set."""

from __future__ import annotations

from gumba.simd.isa import Isa
from gumba.simd.value import F32, I32, Simd, Value

_ROUND = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts, so that n * ln 2 is exact enough
#: Polynomial for (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2 (Cephes, expf).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _powers(s: Simd, isa: Isa, x: Value) -> tuple[Value, Value]:
    """Of e to the x, for x from -87.3 to 88: 2^n, and r such that the power is 2^n (1 + r)."""
    n_lanes = x.lanes
    n = x * 1.4426950408889634 + _ROUND - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    y = s.constant(_EXP[0], F32, n_lanes)
    for coefficient in _EXP[1:]:
        y = isa.multiply_add(s, y, r, s.constant(coefficient, F32, n_lanes))
    return ((n.to(I32) + 127) << 23).bits(F32, n_lanes), isa.multiply_add(s, y, r * r, r)


def _bounded(s: Simd, x: Value) -> Value:
    return s.minimum(s.maximum(x, s.constant(-87.3, F32, x.lanes)), s.constant(88.0, F32, x.lanes))


def exp(s: Simd, isa: Isa, x: Value) -> Value:
    """e to the x; relative error about 1e-7; exactly 0 below -87.3 (and for minus infinity), no more than 2.4e38 above 88."""
    power, r = _powers(s, isa, _bounded(s, x))
    result = s.select(x.compare("<", -87.3), s.zero(F32, x.lanes), (r + 1.0) * power)
    return s.select(x.compare("==", x), result, x)  # NaN stays NaN


def sigmoid(s: Simd, isa: Isa, x: Value) -> Value:
    """1 / (1 + e^-x); relative error below 3e-7 for x > -87; no more than 1e-38 below that."""
    return s.constant(1.0, F32, x.lanes) / (exp(s, isa, s.zero(F32, x.lanes) - x) + 1.0)


def tanh(s: Simd, isa: Isa, x: Value) -> Value:
    """The hyperbolic tangent, relative error below 4e-7: (e^2x - 1) / (e^2x + 1), where no digits of e^2x - 1 are lost."""
    power, r = _powers(s, isa, _bounded(s, x + x))
    below = power * r + (power - 1.0)  # e^2x - 1
    return s.select(x.compare("==", x), below / (below + 2.0), x)


#: 1 / (1 + _TAIL_SCALE x) = u; P(u) such that u P(u) e^(-x^2 / 2) is the normal distribution's upper tail, for x >= 0:
#: relative error below 3e-8 (iterated least squares).
_TAIL_SCALE = 0.26
_TAIL = (3.050509893e-2, -1.528295496e-1, 2.514921360e-1, -1.509491985e-1, 1.609475304e-1, 5.102801325e-2, 1.030301252e-1,
         1.030167737e-1, 1.037590582e-1)  # fmt: skip


def normal_tail(s: Simd, isa: Isa, x: Value) -> Value:
    """erfc(x / sqrt(2)) / 2 for x >= 0: relative error below 6e-7 + 1e-7 x^2; 0 above 13.2."""
    n_lanes = x.lanes
    one = s.constant(1.0, F32, n_lanes)
    u = one / isa.multiply_add(s, x, s.constant(_TAIL_SCALE, F32, n_lanes), one)
    y = s.constant(_TAIL[0], F32, n_lanes)
    for coefficient in _TAIL[1:]:
        y = isa.multiply_add(s, y, u, s.constant(coefficient, F32, n_lanes))
    return y * u * exp(s, isa, x * x * -0.5)


#: Polynomial for (2^f - 1) / f on |f| <= 1/2: relative error of 2^f below 1e-7 (Remez's criterion, by iterated least squares).
_EXP2 = (1.326472720e-3, 9.671512640e-3, 5.550733743e-2, 2.402224209e-1, 6.931469776e-1)


def exp2(s: Simd, isa: Isa, x: Value) -> Value:
    """2 to the x for x <= 0 (and NaN); relative error about 2e-7; 2^-126 below that, also for minus infinity; exactly 1 at 0."""
    n_lanes = x.lanes
    bounded = s.select(x.compare("<", -126.0), s.constant(-126.0, F32, n_lanes), x)
    shifted = bounded + _ROUND  # the nearest integer lies in the low bits
    f = bounded - (shifted - _ROUND)
    y = s.constant(_EXP2[0], F32, n_lanes)
    for coefficient in _EXP2[1:]:
        y = isa.multiply_add(s, y, f, s.constant(coefficient, F32, n_lanes))
    y = isa.multiply_add(s, y, f, s.constant(1.0, F32, n_lanes))
    return (y.bits(I32, n_lanes) + (shifted.bits(I32, n_lanes) << 23)).bits(F32, n_lanes)


def softplus(s: Simd, isa: Isa, x: Value) -> Value:
    """log(1 + e^x); relative error below 5e-7 for x > -87, 0 below that.

    With u = e^-|x|: max(x, 0) + log(1 + u), and log(1 + u) = 2 artanh(z), z = u / (2 + u), by artanh's series.
    """
    n_lanes = x.lanes
    u = exp(s, isa, s.zero(F32, n_lanes) - s.absolute(x))
    z = u / (u + 2.0)
    square = z * z  # at most 1/9
    y = s.constant(1 / 17, F32, n_lanes)
    for odd in range(15, 0, -2):
        y = isa.multiply_add(s, y, square, s.constant(1 / odd, F32, n_lanes))
    result = s.maximum(x, s.zero(F32, n_lanes)) + (z + z) * y
    return s.select(x.compare("==", x), result, x)  # NaN stays NaN
