"""The fused multiply-add, by the processor's instruction and through float64, against exact rational numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from gumba.jit import kernel_cache
from gumba.jit.jit import Entry
from gumba.simd import fma
from gumba.simd.value import F32, Simd, Value, simd_function

LANES = 4
WAYS = {"through_float64": fma.through_float64, "multiply_add": fma.multiply_add}
every = pytest.mark.parametrize("way", WAYS)


@functools.cache
def compiled(way: str) -> Callable[[int, int, int, int], None]:
    """(a, x, sums in and out, vectors): compiled now, without the cache."""
    function = WAYS[way]

    @simd_function("void(i8, i8, i8, i8)")
    def vectors(s: Simd, a: Value, x: Value, out: Value, n: Value) -> None:
        with s.loop(n) as i:
            at = i * (4 * LANES)
            factors = [s.load(address + at, F32, LANES) for address in (a, x)]
            s.store(out + at, function(s, *factors, s.load(out + at, F32, LANES)))

    def call(a, x, out, n):  # type: ignore[no-untyped-def]
        vectors(a, x, out, n)

    made = Entry(call, "void(i8, i8, i8, i8)", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_cache, "cache_folder", lambda: None)
        made.compile()
    return made


def run(way: str, a: np.ndarray, x: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """Each number in all lanes of a vector: what one lane needs is not done for the sake of another."""
    vectors = [np.repeat(np.asarray(v, np.float32), LANES) for v in (a, x, acc)]
    compiled(way)(*(v.ctypes.data for v in vectors), len(a))
    return vectors[2][::LANES].copy()


def number(x: np.float32) -> Fraction:
    """As a fraction; the first number that is too large for float32 where it is infinite."""
    return Fraction(float(x)) if np.isfinite(x) else Fraction(2**128) * (1 if x > 0 else -1)


def nearest(value: Fraction) -> np.float32:
    """The float32 nearest to a fraction, of two the one whose last bit is 0."""
    with np.errstate(over="ignore"):
        guess = np.float32(float(value)) if abs(value) < 2**200 else np.float32(np.inf if value > 0 else -np.inf)
        around = [guess, *(np.nextafter(guess, np.float32(end)) for end in (-np.inf, np.inf))]
    return min(around, key=lambda f: (abs(number(f) - value), int(f.view(np.uint32)) & 1))


def check(way: str, a: np.ndarray, x: np.ndarray, acc: np.ndarray) -> None:
    """Finite numbers: every bit, but the sign of zero."""
    got = run(way, a, x, acc)
    for i, result in enumerate(got):
        expected = nearest(number(a[i]) * number(x[i]) + number(acc[i]))
        assert result == expected, f"{a[i]!r} * {x[i]!r} + {acc[i]!r} = {result!r}, not {expected!r}"


def columns(rows: Iterator[tuple[float, float, float]]) -> list[np.ndarray]:
    return [np.array(column, np.float32) for column in zip(*rows)]


@every
def test_beside_the_middle_of_two_floats(way: str) -> None:
    """Sums that a first rounding, to float64, moves to exactly between two float32: rounding twice goes the wrong way."""

    def rows() -> Iterator[tuple[float, float, float]]:
        for last, side, far, sign in product((0, 1), (-1, 1), (6, 20, 31), (-1, 1)):
            # A float32 of 1.x and half of its last place, by one product; the other part by the sum.
            middle = 1 + last * 2.0**-23 + 2.0**-24
            yield sign * side * 2.0**-far, 2.0 ** (-60 + far), sign * (1 + last * 2.0**-23)
            factor = 2.0**12 + 1
            yield sign * factor, middle / factor, side * 2.0**-70  # nearly the middle
            yield sign * (1 + 2.0**-12), sign * (1 + 2.0**-12), side * 2.0**-60  # 1 + 2^-11 + 2^-24: the middle
            yield sign * (1 + 2.0**-12), 1 + 2.0**-12, -sign * 2.0**-80

    check(way, *columns(rows()))


@every
def test_subnormal_results(way: str) -> None:
    def rows() -> Iterator[tuple[float, float, float]]:
        for n, side, sign in product((0, 1, 2, 3, 1000), (-1, 1), (-1, 1)):
            acc = sign * n * 2.0**-149
            yield sign * 2.0**-75, 2.0**-75, acc  # half of the last place
            yield sign * 2.0**-75, (1 + side * 2.0**-23) * 2.0**-75, acc  # nearly half
            yield side * 2.0**-149, 2.0**-149, acc  # hardly anything
            yield sign * 2.0**-63, 2.0**-63, acc
            yield sign * 3 * 2.0**-75, 2.0**-75, acc

    check(way, *columns(rows()))


@every
def test_cancellation(way: str) -> None:
    """What the product's rounding would lose is all that is left."""
    rng = np.random.default_rng(0)
    a, x = (rng.standard_normal(2000).astype(np.float32) for _ in range(2))
    check(way, a, x, -(a * x))
    check(way, a, x, np.nextafter(-(a * x), np.float32(np.inf)))


@every
def test_overflow(way: str) -> None:
    """Half of the largest number's last place decides between that and infinity."""
    largest, half = float(np.finfo(np.float32).max), 2.0**103

    def rows() -> Iterator[tuple[float, float, float]]:
        for sign in (-1, 1):
            yield sign * half, 1.0, sign * largest
            yield sign * half, float(np.nextafter(np.float32(1), np.float32(0))), sign * largest
            yield sign * 2.0**127, 2.0**127, -sign * largest
            yield sign * 2.0**64, 2.0**64, -sign * 2.0**127

    check(way, *columns(rows()))


@every
def test_random_bits(way: str) -> None:
    """All exponents; and short factors, whose products often meet a sum exactly."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, (3, 4000), dtype=np.uint32)
    keep = np.array([0xFFFFFFFF, 0xFFFF0000, 0xFFFFE000])[rng.integers(0, 3, (3, 4000))]
    values = (bits & keep.astype(np.uint32)).view(np.float32)
    check(way, *values[:, np.isfinite(values).all(axis=0)])
    near = rng.standard_normal((3, 4000)).astype(np.float32) * np.float32(2) ** rng.integers(-30, 2, (3, 4000))
    check(way, *(near.astype(np.float32).view(np.uint32) & keep.astype(np.uint32)).view(np.float32))


@every
def test_infinities_nan_and_zeros(way: str) -> None:
    special = np.array([0.0, -0.0, 1.0, -2.5, 3e38, 1e-45, np.inf, -np.inf, np.nan], np.float32)
    a, x, acc = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(special, special, special))
    with np.errstate(all="ignore"):
        expected = (a.astype(np.float64) * x.astype(np.float64) + acc.astype(np.float64)).astype(np.float32)
    got = run(way, a, x, acc)
    nan = np.isnan(expected)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))
