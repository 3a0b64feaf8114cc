"""The search for scales and minimums that the encoders of Q4_K and Q5_K share: compiled, for 16 groups of 32 weights at once.

A group looks for the scale and minimum of least squared error, where a weight counts by its importance: its magnitude plus the
group's root mean square. For fixed integers q both are known exactly (weighted least squares), so some roundings are tried:
those that put the group's smallest and largest weight near the ends of the range, and what the best of them rounds to.
Minimums are not above 0: the file holds their magnitudes.

Then a block's 8 scales and 8 minimums become 6-bit multiples of d and dmin. Each minimum is chosen again for the scale as it
is stored, then d and dmin for the multiples and integers.

Against ggml's reference quantizer, which tries 21 (Q4_K) or 16 (Q5_K) places of the largest weight only: on four matrices of
MiniLM 0.8 % and 1.8 % less error (root mean square; weighted by importance 0.8 % and 2.1 %), in a thirtieth of the time.

Weights lie transposed, ``across`` [32 weights, 16 groups], so that a vector's lanes are groups: of two blocks. In there a weight
is y = (weight - low) / width, from 0 to 1, with ``low`` the group's smallest weight (at most 0) and ``width`` its range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gumba.jit.jit import entry, inline
from gumba.quants._compiled import (
    SIGNATURE,
    f32_at,
    inverse_or_zero,
    largest_magnitude,
    scratch,
    u8_at,
    u32_at,
    write_f16,
)
from gumba.quants._k_scales import write_scales
from gumba.quants._scale_search import rounded
from gumba.simd.generic import ISA
from gumba.simd.value import F32, I64, Simd, Value, simd_function

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Entry, Inline

_LANES = 16
#: Bytes of one number for each group.
_ROW = 4 * _LANES
#: How far within the range (outside if negative) a group's smallest and largest weight are put, in turn.
_INSETS = (1.2, 0.6, 0.0, -0.5)
#: A group whose weights are closer together than this is stored as one number.
_TINY = 1e-30
#: Scale and minimum are fitted together if the integers' variance is at least this part of their mean square.
_SPREAD = 1e-3
#: The same of d and dmin.
_BLOCK_SPREAD = 1e-5
#: The bits of 2^30: no block can hold weights of this size, and the search would meet infinities.
_TOO_LARGE = np.uint32(0x4E800000)
#: Beside this number, floats have no bits for a fraction.
_TO_INTEGER = float(3 << 22)

#: Memory for the weights y, their importances, and ``low`` and ``width``.
_across = scratch(66 * _ROW)
_IMPORTANCES, _LOW, _WIDTH = 32 * _ROW, 64 * _ROW, 65 * _ROW
#: Memory for what is found: multiples of scales and minimums, d and dmin (in each lane of a block).
_found = scratch(4 * _ROW)
_codes = scratch(256)
_write_scales = write_scales()


def _rounded(s: Simd, x: Value, highest: Value | float) -> Value:
    """To the nearest integer, ties to even, in 0..highest; NaN gives 0."""
    top = highest if isinstance(highest, Value) else s.constant(highest, F32, x.lanes)
    return s.minimum(s.maximum(x, s.zero(F32, x.lanes)), top) + _TO_INTEGER - _TO_INTEGER


def _inverse(s: Simd, x: Value) -> Value:
    """1 / x; 0 where that is not finite."""
    one = s.constant(1.0, F32, x.lanes)
    return s.select(s.absolute(x).compare(">", 2.0**-127), one / x, s.zero(F32, x.lanes))


def _over_block(s: Simd, x: Value, largest: bool = False) -> Value:
    """In each lane the sum, or the largest, of the 8 groups of its block."""
    for distance in (4, 2, 1):
        other = s.shuffle(x, [lane ^ distance for lane in range(_LANES)])
        x = s.maximum(x, other) if largest else x + other
    return x


def _as_f16(s: Simd, x: Value) -> Value:
    return ISA.from_f16(s, ISA.to_f16(s, x))


@simd_function("void(i8)")
def _normalize(s: Simd, across: Value) -> None:
    """Weights of 16 groups to y, and how much each counts."""
    count, zero = s.constant(32, I64), s.zero(F32, _LANES)
    low, high = s.variable(zero), s.variable(s.load(across, F32, _LANES))
    with s.loop(count) as i:
        x = s.load(across + i * _ROW, F32, _LANES)
        low.set(s.minimum(low.get(), x))
        high.set(s.maximum(high.get(), x))
    width = high.get() - low.get()
    width = s.select(width.compare(">", _TINY), width, zero - low.get())  # any width does for one number
    over_width = _inverse(s, width)
    level, squares = low.get() * over_width, s.variable(zero)
    with s.loop(count) as i:
        y = (s.load(across + i * _ROW, F32, _LANES) - low.get()) * over_width
        s.store(across + i * _ROW, y)
        squares.set(squares.get() + (y + level) * (y + level))
    mean = s.sqrt(squares.get() * (1 / 32))
    with s.loop(count) as i:
        y = s.load(across + i * _ROW, F32, _LANES)
        s.store(across + _IMPORTANCES + i * _ROW, mean + s.absolute(y + level))
    s.store(across + _LOW, low.get())
    s.store(across + _WIDTH, width)


def _totals(s: Simd, across: Value) -> tuple[Value, Value]:
    """Sums over each group: of importances w, and of w y."""
    sw, sy = (s.variable(s.zero(F32, _LANES)) for _ in range(2))
    with s.loop(s.constant(32, I64)) as i:
        y, w = (s.load(across + at + i * _ROW, F32, _LANES) for at in (0, _IMPORTANCES))
        sw.set(sw.get() + w)
        sy.set(sy.get() + w * y)
    return sw.get(), sy.get()


def _sums(s: Simd, across: Value, factor: Value, offset: Value, highest: Value) -> tuple[Value, Value, Value]:
    """Sums of w q, w q q and w y q, where q is y * factor + offset rounded to 0..highest."""
    sq, sqq, syq = (s.variable(s.zero(F32, _LANES)) for _ in range(3))
    with s.loop(s.constant(32, I64)) as i:
        y, w = (s.load(across + at + i * _ROW, F32, _LANES) for at in (0, _IMPORTANCES))
        q = _rounded(s, y * factor + offset, highest)
        wq = w * q
        sq.set(sq.get() + wq)
        sqq.set(sqq.get() + wq * q)
        syq.set(syq.get() + wq * y)
    return sq.get(), sqq.get(), syq.get()


def _best_fit(s: Simd, across: Value, highest: Value, zero_at: Value, sw: Value, sy: Value) -> tuple[Value, Value]:
    """(scale, start) of each group: what makes y = scale * q + start closest. A weight of 0 has the y ``zero_at``."""
    zero = s.zero(F32, _LANES)
    # At first all weights are one number.
    scale, start = zero, s.minimum(zero_at, sy * _inverse(s, sw))
    gain = start * (sy + sy - start * sw)

    def attempt(factor: Value, offset: Value) -> None:
        nonlocal scale, start, gain
        sq, sqq, syq = _sums(s, across, factor, offset, highest)
        spread = sw * sqq - sq * sq
        b = (sqq * sy - sq * syq) / spread
        free = spread.compare(">", sw * sqq * _SPREAD) & b.compare("<", zero_at)
        b = s.select(free, b, zero_at)
        k = s.select(free, (sw * syq - sy * sq) / spread, (syq - b * sq) / sqq)
        # How much of the squares it explains.
        explained = k * (syq + syq - k * sqq - (b + b) * sq) + b * (sy + sy - b * sw)
        better = explained.compare(">", gain) & k.compare(">", 0.0)
        scale, start, gain = (
            s.select(better, new, old) for new, old in ((k, scale), (b, start), (explained, gain))
        )  # fmt: skip

    for bottom in _INSETS:
        for top in _INSETS:
            attempt(highest - (top + bottom), zero + bottom)
    factor = _inverse(s, scale)
    attempt(factor, zero - start * factor)
    return scale, start


@simd_function("void(i8, i8, f4)")
def _search(s: Simd, across: Value, found: Value, top: Value) -> None:
    """Multiples, d and dmin of two blocks; ``top``: the largest q."""
    highest = s.splat(top, _LANES)
    low, width = s.load(across + _LOW, F32, _LANES), s.load(across + _WIDTH, F32, _LANES)
    over_width, zero = _inverse(s, width), s.zero(F32, _LANES)
    sw, sy = _totals(s, across)
    scale, start = _best_fit(s, across, highest, zero - low * over_width, sw, sy)

    scales, minimums = scale * width, zero - (low + start * width)
    d, dmin = (_as_f16(s, _over_block(s, x, largest=True) * (1 / 63)) for x in (scales, minimums))
    a, b = _rounded(s, scales * _inverse(s, d), 63.0), _rounded(s, minimums * _inverse(s, dmin), 63.0)

    def sums() -> tuple[Value, Value, Value]:
        """Those of the integers that weights have with the numbers as stored."""
        factor = _inverse(s, d * a * over_width)
        return _sums(s, across, factor, (dmin * b + low) * over_width * factor, highest)

    sq, _, _ = sums()
    best = (sy - d * a * over_width * sq) / sw
    b = _rounded(s, (zero - (low + best * width)) * _inverse(s, dmin), 63.0)
    d, dmin = _refit(s, sums(), (sw, sy), (a, b), (d, dmin), low, width)
    for i, number in enumerate((a, b, d, dmin)):
        s.store(found + i * _ROW, number)


def _refit(
    s: Simd, sums: tuple[Value, Value, Value], totals: tuple[Value, Value], multiples: tuple[Value, Value],
    units: tuple[Value, Value], low: Value, width: Value,
) -> tuple[Value, Value]:  # fmt: skip
    """The d and dmin of least squared error for given integers and multiples; ``units`` where these do not determine them."""
    (sq, sqq, syq), (sw, sy), (a, b) = sums, totals, multiples
    widest = _over_block(s, width, largest=True)
    over_widest = _inverse(s, widest)
    f, bottom = width * over_widest, low * over_widest  # importances were multiples of the group's width
    aa, ab, bb = (_over_block(s, f * x) for x in (a * a * sqq, a * b * sq, b * b * sw))
    xa = _over_block(s, f * a * (bottom * sq + f * syq))
    xb = _over_block(s, f * b * (bottom * sw + f * sy))
    spread = aa * bb - ab * ab
    d, dmin = (_as_f16(s, x / spread * widest) for x in (xa * bb - xb * ab, xa * ab - xb * aa))
    fits = spread.compare(">", aa * bb * _BLOCK_SPREAD) & d.compare(">", 0.0) & dmin.compare(">", 0.0)
    return s.select(fits, d, units[0]), s.select(fits, dmin, units[1])


@inline
def _transpose(x_address: int, n_groups: int, across_address: int) -> None:
    """Groups of 32 weights to ``across``; the last one again where there are fewer than 16."""
    for g in range(_LANES):
        x = f32_at(x_address + min(g, n_groups - 1) * 128, 32)
        for i in range(32):
            f32_at(across_address + i * _ROW, _LANES)[g] = x[i]


@inline
def _write_numbers(x_address: int, found_address: int, k: int, out: NDArray[np.uint8]) -> bool:
    """The first 16 bytes of block ``k`` of those found; False if d or dmin is not finite."""
    if largest_magnitude(u32_at(x_address, 256), 256) >= _TOO_LARGE:  # infinity and NaN among them
        write_f16(out, 0, np.float32(np.inf))
        return False
    found = f32_at(found_address, 4 * _LANES)
    first = k * 8
    _write_scales(out[4:16], found[first : first + 8], found[_LANES + first : _LANES + first + 8])
    finite = write_f16(out, 0, found[2 * _LANES + first])
    return write_f16(out, 2, found[3 * _LANES + first]) & finite


@inline
def _write_codes(x_address: int, found_address: int, k: int, highest: float, codes: NDArray[np.uint8], n: int) -> None:
    """The integers of block ``k`` (n is 32)."""
    found = f32_at(found_address, 4 * _LANES)
    d, dmin = found[2 * _LANES + k * 8], found[3 * _LANES + k * 8]
    for part in range(8):
        x = f32_at(x_address + part * 128, 32)
        minimum = dmin * found[_LANES + k * 8 + part]
        over_scale = inverse_or_zero(d * found[k * 8 + part])
        for i in range(n):
            codes[part * 32 + i] = np.uint8(np.int32(rounded((x[i] + minimum) * over_scale, np.float32(0), highest)))


def encoder(bits: int, type_size: int, pack_codes: Inline[None]) -> Entry:
    """The compiled encoder of a format whose blocks begin with d, dmin and the 12 bytes of ``_k_scales``.

    ``pack_codes(codes, out, n)``: writes 256 integers of ``bits`` bits to a block (n is 32).
    """
    highest = np.float32((1 << bits) - 1)

    @entry(SIGNATURE, variant=f"{bits} bits")
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        across, found, codes = _across(), _found(), u8_at(_codes(), 256)
        for first in range(0, n_blocks, 2):
            n = min(2, n_blocks - first)
            _transpose(x_address + first * 1024, n * 8, across)
            _normalize(across)
            _search(across, found, highest)
            for k in range(n):
                x = x_address + (first + k) * 1024
                out = u8_at(out_address + (first + k) * type_size, type_size)
                if not _write_numbers(x, found, k, out):
                    not_finite = 1
                _write_codes(x, found, k, highest, codes, length // 8)
                pack_codes(codes, out, length // 8)
        return not_finite

    return encode
