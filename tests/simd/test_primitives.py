"""What instruction sets differ in: conversions, exp and integer dot products, each against NumPy.

The functions compiled here stay in memory: the kernel cache knows nothing of tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gumba.jit import kernel_cache
from gumba.jit.jit import Entry
from gumba.simd import detect
from gumba.simd.isa import Isa
from gumba.simd.maths import exp
from gumba.simd.value import F16, F32, I8, I32, Simd, Value, simd_function

ISAS = [detect.known()[name] for name in detect.available()]
every = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


def in_memory(function: Callable[..., None]) -> Entry:
    """Compiled now, without the cache."""
    made = Entry(function, "void(i8, i8, i8, i8)", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_cache, "cache_folder", lambda: None)
        made.compile()
    return made


@functools.cache
def converters(isa: Isa) -> Callable[[int, int, int, int], None]:
    """(input, output, vectors, which): 0 float16 to float32, 1 float32 to float16, 2 exp."""
    n = isa.lanes

    @simd_function("void(i8, i8, i8)")
    def widen(s: Simd, x: Value, out: Value, vectors: Value) -> None:
        with s.loop(vectors) as i:
            s.store(out + i * (4 * n), isa.from_f16(s, s.load(x + i * (2 * n), F16, n)))

    @simd_function("void(i8, i8, i8)")
    def narrow(s: Simd, x: Value, out: Value, vectors: Value) -> None:
        with s.loop(vectors) as i:
            s.store(out + i * (2 * n), isa.to_f16(s, s.load(x + i * (4 * n), F32, n)))

    @simd_function("void(i8, i8, i8)")
    def exponential(s: Simd, x: Value, out: Value, vectors: Value) -> None:
        with s.loop(vectors) as i:
            s.store(out + i * (4 * n), exp(s, isa, s.load(x + i * (4 * n), F32, n)))

    @in_memory
    def convert(x, out, vectors, which):  # type: ignore[no-untyped-def]
        if which == 0:
            widen(x, out, vectors)
        elif which == 1:
            narrow(x, out, vectors)
        else:
            exponential(x, out, vectors)

    return convert


def run(isa: Isa, which: int, x: np.ndarray, dtype: Any) -> np.ndarray:
    padded = np.zeros(-(-len(x) // isa.lanes) * isa.lanes, x.dtype)
    padded[: len(x)] = x
    out = np.zeros(len(padded), dtype)
    converters(isa)(padded.ctypes.data, out.ctypes.data, len(padded) // isa.lanes, which)
    return out[: len(x)]


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """NaN is NaN whatever its payload; every other number has one form."""
    bits = np.uint16 if got.dtype == np.float16 else np.uint32
    nan = np.isnan(expected)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan].view(bits), expected[~nan].view(bits))


HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)


@every
def test_all_halves_to_float32(isa: Isa) -> None:
    with np.errstate(invalid="ignore"):
        expected = HALVES.astype(np.float32)
    assert_same_bits(run(isa, 0, HALVES, np.float32), expected)


@every
def test_all_halves_back(isa: Isa) -> None:
    with np.errstate(invalid="ignore"):
        wide = HALVES.astype(np.float32)
    assert_same_bits(run(isa, 1, wide, np.float16), HALVES)


@every
def test_float32_to_half_between_the_halves(isa: Isa) -> None:
    """Ties between neighbours, and the floats next to them; numbers that overflow or vanish; random bits."""
    finite = np.sort(HALVES[np.isfinite(HALVES)].astype(np.float32))
    ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    infinity = np.float32(np.inf)
    edges = np.array([65504, 65519.996, 65520, 65536, 1e5, 3.4e38, 2**-24, 2**-25, 2**-26, 1e-45, 0], np.float32)
    random = np.random.default_rng(0).integers(0, 2**32, 100000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, infinity), np.nextafter(ties, -infinity), edges, -edges, random])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    assert_same_bits(run(isa, 1, x, np.float16), expected)


@every
def test_exp_is_close(isa: Isa) -> None:
    grid = np.linspace(-87, 88, 1_000_003)
    near = np.arange(-125, 127) * np.log(2)  # where the reduction changes its integer
    x = np.concatenate([grid, near, near + 0.5 * np.log(2), [0.0, -0.0, 1e-8, -1e-8, 1e-40]]).astype(np.float32)
    x = x[(x >= -87) & (x <= 88)]
    expected = np.exp(x.astype(np.float64))
    assert np.abs(run(isa, 2, x, np.float32) / expected - 1).max() < 3e-7
    assert run(isa, 2, np.zeros(4, np.float32), np.float32).tolist() == [1.0] * 4


@every
def test_exp_of_what_is_far_off(isa: Isa) -> None:
    x = np.array([-np.inf, -1e30, -88, np.nan, np.inf, 1e30, 200], np.float32)
    got = run(isa, 2, x, np.float32)
    assert got[:3].tolist() == [0.0, 0.0, 0.0] and np.isnan(got[3])
    assert (got[4:] > 1.6e38).all() and np.isfinite(got[4:]).all()


# Integer dot products ----------------------------------------------------------------------------------------------------


@functools.cache
def dot_product(isa: Isa, signed: bool, w_max: int) -> Callable[[int, int, int, int], None]:
    """(start, weights, activations, output): one call of the primitive with 8 registers, as for a block of 32."""
    n = isa.lanes

    @simd_function("void(i8, i8, i8, i8)")
    def product(s: Simd, start: Value, weights: Value, acts: Value, out: Value) -> None:
        w = [s.load(weights + 4 * n * j, I8, 4 * n) for j in range(8)]
        a = [s.load(acts + 4 * n * j, I8, 4 * n) for j in range(8)]
        function = isa.dot_signed if signed else isa.dot_unsigned
        assert function is not None
        s.store(out, function(s, s.load(start, I32, n), w, a, w_max))

    @in_memory
    def call(start, weights, acts, out):  # type: ignore[no-untyped-def]
        product(start, weights, acts, out)

    return call


def check_dot(isa: Isa, signed: bool, w_max: int, weights: np.ndarray, acts: np.ndarray, start: np.ndarray) -> None:
    """weights, acts: [8, lanes, 4]; start: [lanes]."""
    w = weights.astype(np.int8 if signed else np.uint8)
    a, first, out = acts.astype(np.int8), start.astype(np.int32), np.zeros(isa.lanes, np.int32)
    dot_product(isa, signed, w_max)(first.ctypes.data, w.ctypes.data, a.ctypes.data, out.ctypes.data)
    expected = start + (weights.astype(np.int64) * acts.astype(np.int64)).sum(axis=(0, 2))
    np.testing.assert_array_equal(out, expected)


#: Sets with a fast signed product never get unsigned weights above 63: 8-bit weights go signed there.
CASES = [
    pytest.param(isa, signed, least, most, id=f"{isa.name}-{least}..{most}")
    for isa in ISAS
    for signed, least, most in [
        (False, 0, 15),
        (False, 0, 63),
        *([(True, -128, 127)] if isa.dot_signed is not None else [(False, 0, 255)]),
    ]
]


@pytest.mark.parametrize("isa, signed, least, most", CASES)
def test_dot_products_are_exact(isa: Isa, signed: bool, least: int, most: int) -> None:
    rng = np.random.default_rng(1)
    shape = (8, isa.lanes, 4)
    w_max = max(-least, most)
    for w in (least, most, least + 1, 0):
        for a in (-127, 127, -1, 0):
            for start in (0, -128 * 32 * 127, 2**20):
                check_dot(isa, signed, w_max, np.full(shape, w), np.full(shape, a), np.full(isa.lanes, start))
    for _ in range(50):
        start = rng.integers(-(2**24), 2**24, isa.lanes)
        extreme_w, extreme_a = rng.choice([least, most], shape), rng.choice([-127, 127], shape)
        check_dot(isa, signed, w_max, extreme_w, extreme_a, start)
        w, a = rng.integers(least, most + 1, shape), rng.integers(-127, 128, shape)
        check_dot(isa, signed, w_max, w, a, start)


@pytest.mark.parametrize("isa, signed, least, most", CASES)
def test_each_product_lands_in_its_lane(isa: Isa, signed: bool, least: int, most: int) -> None:
    shape = (8, isa.lanes, 4)
    for place in range(0, 8 * isa.lanes * 4, 5):
        w, a = np.zeros(shape, int), np.full(shape, 11)
        w.flat[place] = most
        check_dot(isa, signed, max(-least, most), w, a, np.zeros(isa.lanes, int))


#: Only Arm's 8-bit matrix products take a tile at once.
TILED = [isa for isa in ISAS if isa.dot_tile is not None]

if TILED:

    @functools.cache
    def tile_product(
        isa: Isa, tokens: int, registers: int, signed: bool, w_max: int
    ) -> Callable[[int, int, int, int], None]:
        """(starts, weights, activations, output): one call of ``dot_tile``; tokens lie 64 bytes apart."""
        n = isa.lanes

        @simd_function("void(i8, i8, i8, i8)")
        def product(s: Simd, start: Value, weights: Value, acts: Value, out: Value) -> None:
            assert isa.dot_tile is not None
            w = [s.load(weights + 4 * n * j, I8, 4 * n) for j in range(registers)]
            starts = [s.load(start + 4 * n * t, I32, n) for t in range(tokens)]
            for t, total in enumerate(
                isa.dot_tile(s, starts, w, [acts + 64 * t for t in range(tokens)], w_max, signed)
            ):
                s.store(out + 4 * n * t, total)

        @in_memory
        def call(start, weights, acts, out):  # type: ignore[no-untyped-def]
            product(start, weights, acts, out)

        return call

    @pytest.mark.parametrize("tokens", [2, 3, 4])
    @pytest.mark.parametrize(
        "isa, signed, least, most",
        [
            pytest.param(isa, least < 0, least, most, id=f"{isa.name}-{least}-{most}")
            for isa in TILED
            for least, most in ((0, 15), (0, 63), (0, 255), (-128, 127))
            # Of 8 bits, signed, or where the set has no such product, with the sign bit flipped.
            if most < 127 or (least < 0) == (isa.dot_signed is not None)
        ],
    )
    def test_dot_products_of_a_tile(isa: Isa, signed: bool, least: int, most: int, tokens: int) -> None:
        """Whole blocks and halves of them, extreme and random numbers, against NumPy."""
        rng = np.random.default_rng(2)
        for registers in (8, 4):
            for extreme in (True, False):
                shape, acts_shape = (registers, isa.lanes, 4), (tokens, registers, 4)
                w = rng.choice([least, most], shape) if extreme else rng.integers(least, most + 1, shape)
                a = rng.choice([-127, 127], acts_shape) if extreme else rng.integers(-127, 128, acts_shape)
                starts = rng.integers(-(2**24), 2**24, (tokens, isa.lanes)).astype(np.int32)
                acts = np.zeros((tokens, 64), np.int8)
                acts[:, : 4 * registers] = a.reshape(tokens, -1)
                weights, out = w.astype(np.int8 if signed else np.uint8), np.zeros_like(starts)
                product = tile_product(isa, tokens, registers, signed, max(-least, most))
                product(starts.ctypes.data, weights.ctypes.data, acts.ctypes.data, out.ctypes.data)
                np.testing.assert_array_equal(out, starts + np.einsum("jlb,tjb->tl", w, a))


@every
def test_lanes_and_tiles_fit_the_kernels(isa: Isa) -> None:
    assert isa.lanes in (4, 8, 16)
    assert isa.tiles[-1] == 1 and sorted(isa.tiles, reverse=True) == list(isa.tiles)


@every
def test_tables(isa: Isa) -> None:
    """Bytes of a table of 16, and words of one that is part of the code: every entry, in every lane."""
    n, words = isa.lanes, [(i * 2654435761) % 2**32 for i in range(300)]
    entries = [(37 * i) % 256 - (128 if i % 2 else 0) for i in range(16)]

    @simd_function("void(i8, i8, i8)")
    def look_up(s: Simd, index: Value, out: Value, vectors: Value) -> None:
        with s.loop(vectors) as i:
            s.store(out + i * (4 * n), isa.lookup(s, entries, s.load(index + i * (4 * n), I8, 4 * n)))

    @simd_function("void(i8, i8, i8)")
    def gather(s: Simd, index: Value, out: Value, vectors: Value) -> None:
        with s.loop(vectors) as i:
            s.store(out + i * (4 * n), isa.gather(s, s.table("words", words), s.load(index + i * (4 * n), I32, n)))

    @in_memory
    def read(index, out, vectors, which):  # type: ignore[no-untyped-def]
        if which == 0:
            look_up(index, out, vectors)
        else:
            gather(index, out, vectors)

    codes = np.random.default_rng(0).permutation(np.tile(np.arange(16, dtype=np.uint8), 4 * n))
    out = np.zeros(len(codes), np.uint8)
    read(codes.ctypes.data, out.ctypes.data, len(codes) // (4 * n), 0)
    np.testing.assert_array_equal(out, np.array(entries).astype(np.uint8)[codes])
    places = np.random.default_rng(1).permutation(np.tile(np.arange(300, dtype=np.int32), n))
    found = np.zeros(len(places), np.uint32)
    read(places.ctypes.data, found.ctypes.data, len(places) // n, 1)
    np.testing.assert_array_equal(found, np.array(words, np.uint32)[places])
