"""Elementary functions against exact ones, and that their bits are those of every machine."""

from __future__ import annotations

import hashlib
from decimal import Decimal, localcontext

import numpy as np
import pytest

from gumba.elementary import cos_sin, ln, log, powers


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<f8").tobytes() for a in arrays)).hexdigest()[:16]


def arguments() -> np.ndarray:
    """Numbers made of integers alone, so that they are the same everywhere."""
    return (np.arange(1, 20001) * 7919 % 1000003).astype(np.float64) / 128.0


def test_logarithms() -> None:
    x = np.concatenate([arguments(), np.ldexp(1.0, np.arange(-1074, 1024, 7)), 1 + np.arange(-9, 9) * 2.0**-50])
    for number, got in zip(x[::29], log(x)[::29]):
        exact = Decimal(float(number)).ln()
        assert abs(Decimal(float(got)) - exact) <= abs(exact) * Decimal("4e-16"), number
    assert log(np.array([1.0])).tolist() == [0.0] and ln(32.0) == pytest.approx(np.log(32.0), rel=1e-15)


def test_powers_are_rounded_to_nearest() -> None:
    exponents = [-2 * i / 128 for i in range(64)] + [0.5, 3.0, -7.25]
    with localcontext() as context:
        context.prec = 60
        for base in (10000.0, 1000000.0, 2.0, 1.001):
            exact = [float((Decimal(base).ln() * Decimal(x)).exp()) for x in exponents]
            assert powers(base, exponents).tolist() == exact


def test_cosines_and_sines() -> None:
    """NumPy's own are within a last place of the exact ones."""
    eighths = np.arange(-4000, 4000) * (np.pi / 4)
    for angles, bound in (
        (arguments(), 4e-16),
        (eighths, 4e-16),
        (arguments() * 100, 4e-16),
        (arguments() * 1e5, 2e-7),
    ):
        cos, sin = cos_sin(angles)
        np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=bound)
        np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=bound)
    assert [value.tolist() for value in cos_sin(np.array([0.0]))] == [[1.0], [0.0]]


def test_bits() -> None:
    """As on every other machine."""
    x = arguments()
    assert digest(log(x)) == "d4454fc36b53149b"
    assert digest(*cos_sin(x)) == "ffa27733ea37dc9c"
    assert digest(powers(10000.0, (-x[:500] / 8192).tolist())) == "db35728abd071930"
