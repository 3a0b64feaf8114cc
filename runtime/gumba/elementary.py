"""Elementary functions in float64 with the same bits on every machine.

Those of the C library and of NumPy are not: each version, and each processor's variant of it, may round the last bit
differently, which sometimes changes a rotary angle. Here powers come from Python's decimal arithmetic, everything else from
additions, multiplications and divisions, which IEEE 754 defines to the last bit (and NumPy never fuses two of them).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal

import numpy as np
from numpy.typing import NDArray

#: More than twice the 17 digits of float64.
_DECIMAL = Context(prec=40)
#: Half of pi in three parts; the first two have 33 bits, so that their products with integers below 2^20 are exact.
_HALF_PI = tuple(float.fromhex(part) for part in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69"))
#: log 2 in two parts; the first has 32 bits, so that its products with exponents are exact.
_LN2 = tuple(float.fromhex(part) for part in ("0x1.62e42fee00000p-1", "0x1.a39ef35793c76p-33"))
#: Taylor's series of sin(r) / r - 1 and of cos(r), by r^2, the last terms first: below 1e-17 for |r| <= pi / 4.
_SIN = [sign / f for sign, f in ((1.0, 355687428096000.0), (-1.0, 1307674368000.0), (1.0, 6227020800.0),
        (-1.0, 39916800.0), (1.0, 362880.0), (-1.0, 5040.0), (1.0, 120.0), (-1.0, 6.0))]  # fmt: skip
_COS = [sign / f for sign, f in ((1.0, 20922789888000.0), (-1.0, 87178291200.0), (1.0, 479001600.0), (-1.0, 3628800.0),
        (1.0, 40320.0), (-1.0, 720.0), (1.0, 24.0), (-1.0, 2.0), (1.0, 1.0))]  # fmt: skip


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms of finite numbers above 0. Relative error below 4e-16.

    With x = m * 2^e, m around 1: e log 2 + 2 artanh(z), z = (m - 1) / (m + 1), by artanh's series.
    """
    m, e = np.frexp(x)
    below = m < 0.5**0.5
    m, e = np.where(below, 2.0 * m, m), np.where(below, e - 1, e)
    z = (m - 1.0) / (m + 1.0)
    square = z * z  # at most 0.0295
    total = np.full_like(z, 1 / 23)
    for odd in range(21, 2, -2):
        total = total * square + 1 / odd
    small = z * square * total
    return e * _LN2[0] + (2.0 * z + (2.0 * small + e * _LN2[1]))


def ln(x: float) -> float:
    """The natural logarithm of one number."""
    return float(log(np.array(x, np.float64)))


def powers(base: float, exponents: Iterable[float]) -> NDArray[np.float64]:
    """``base`` above 0 to each of ``exponents``."""
    logarithm = _DECIMAL.ln(Decimal(base))
    return np.array([float(_DECIMAL.exp(_DECIMAL.multiply(logarithm, Decimal(x)))) for x in exponents], np.float64)


def cos_sin(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines of ``angles`` in radians. Absolute error below 3e-16 for angles up to a million; it grows beyond."""
    quarters = np.rint(angles * (2 / np.pi))
    r = angles
    for part in _HALF_PI:
        r = r - quarters * part
    square = r * r
    sin, cos = (np.full_like(r, series[0]) for series in (_SIN, _COS))
    for series, total in ((_SIN, sin), (_COS, cos)):
        for coefficient in series[1:]:
            total *= square
            total += coefficient
    sin = r + r * square * sin
    quadrant = quarters.astype(np.int64) & 3
    odd = (quadrant & 1).astype(bool)
    cosines, sines = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return np.where((quadrant == 1) | (quadrant == 2), -cosines, cosines), np.where(quadrant >= 2, -sines, sines)
