"""What one instruction set offers to the kernels.

Only these primitives differ between processors; everything else is written once on top of them. Each set is one file that
makes one ``Isa``; ``gumba.simd.detect`` lists them and chooses one.

An integer dot product starts from ``start`` (32-bit lanes) and adds, in each lane, the products of groups of four bytes:
``weights`` times ``acts``, each a list of registers of ``4 * lanes`` bytes. Its result is exact, so it is the same on all sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gumba.simd import fma
from gumba.simd.value import F16, F32, I8, I16, I32, I64, Simd, Value

#: dot(s, start, weights, acts, w_max): w_max bounds the weights' absolute value.
Dot = Callable[[Simd, Value, Sequence[Value], Sequence[Value], int], Value]
#: dot_tile(s, starts, weights, acts, w_max, signed): one result per start; ``acts`` are the addresses of as many tokens' bytes.
DotTile = Callable[[Simd, Sequence[Value], Sequence[Value], Sequence[Value], int, bool], list[Value]]


@dataclass(frozen=True)
class MatrixUnit:
    """A unit that multiplies ``tokens`` tokens by a group of rows at once, from memory to memory.

    ``begin(s)``, ``end(s)``: before and after its use. ``dot(s, weights, acts, acts_stride, out, turn)``: the integer products of
    8 registers of signed bytes at ``weights`` with 32 signed bytes of every token, ``acts_stride`` bytes apart; ``out``: int32
    [tokens, lanes]; ``turn``: 0 or 1, of two products that are under way at once.
    """

    tokens: int
    begin: Callable[[Simd], None]
    end: Callable[[Simd], None]
    dot: Callable[[Simd, Value, Value, Value, Value, int], None]


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    ``lanes``: 32-bit lanes of its register. ``registers``: vector registers that a kernel's tile may fill. ``needs``: one tuple
    of LLVM feature names per sufficient combination.
    ``dot_unsigned``: weights 0..255 (0..w_max) times signed activations. ``dot_signed``: both signed; None where only the
    unsigned form is fast: 8-bit weights are then stored with 128 added. ``has_f16``: float16 conversion in hardware.
    ``tiles``: numbers of tokens that a matrix product takes at once, largest first.
    ``dot_tile``: the dot products of a whole tile of tokens with the same weights, where that is faster than one by one. Signed
    weights only where there is ``dot_signed``.
    ``dot_bf16``, ``round_bf16``: what ``pair_dot`` and ``to_bf16`` do, where there are instructions for it.
    ``shuffle_bytes``: shuffle_bytes(s, table, index): in each 16 bytes, the byte of ``table`` that each byte 0..15 of ``index``
    names. ``gather_words``: what ``gather`` does, where there is an instruction for it. ``matrix_unit``: a unit for tiles of as
    many tokens as the first of ``tiles``, where there is one. ``portable``: the set to use instead of this one where an answer
    must have the same bits on every processor; None: this one.
    """

    name: str
    lanes: int
    registers: int
    needs: tuple[tuple[str, ...], ...]
    dot_unsigned: Dot
    dot_signed: Dot | None
    has_f16: bool
    tiles: tuple[int, int, int, int]
    dot_tile: DotTile | None = None
    dot_bf16: Callable[[Simd, Value, Value, Value], Value] | None = None
    round_bf16: Callable[[Simd, Value], Value] | None = None
    shuffle_bytes: Callable[[Simd, Value, Value], Value] | None = None
    gather_words: Callable[[Simd, Value, Value], Value] | None = None
    matrix_unit: MatrixUnit | None = None
    portable: Isa | None = None

    def lookup(self, s: Simd, table: Sequence[int], index: Value) -> Value:
        """The byte of ``table`` (16 of them, -128..255) that each byte of ``index`` (0..15; a multiple of 16 lanes) names."""
        if self.shuffle_bytes is not None:
            return self.shuffle_bytes(s, s.constant(list(table) * (index.lanes // 16), I8, index.lanes), index)
        values = [s.constant(entry, I8, index.lanes) for entry in table]
        for bit in range(4):  # halve the candidates by one bit of the index after another
            is_set = (index & 1 << bit).compare("!=", 0)
            values = [s.select(is_set, odd, even) for even, odd in zip(values[::2], values[1::2])]
        return values[0]

    def gather(self, s: Simd, table: Value, index: Value) -> Value:
        """The 32-bit words at address ``table`` that the lanes of ``index`` (int32, a register) name."""
        if self.gather_words is not None:
            return self.gather_words(s, table, index)
        places = [s.lane(index, lane).unsigned_to(I64) for lane in range(index.lanes)]
        return s.from_lanes([s.load(table + (place << 2), I32) for place in places])

    def multiply_add(self, s: Simd, a: Value, x: Value, acc: Value) -> Value:
        """``a * x + acc`` in float32 with one rounding (``gumba.simd.fma``)."""
        return fma.multiply_add(s, a, x, acc)

    def from_f16(self, s: Simd, half: Value) -> Value:
        """float16 to float32, exact (also infinities, NaN and subnormals)."""
        if self.has_f16:
            return half.to(F32)
        n = half.lanes
        bits = half.bits(I16, n).unsigned_to(I32)
        magnitude = ((bits & 0x7FFF) << 13).bits(F32, n) * float(2.0**112)
        infinite = magnitude.compare(">=", 65536.0)
        magnitude = s.select(infinite, (magnitude.bits(I32, n) | 0x7F800000).bits(F32, n), magnitude)
        return (magnitude.bits(I32, n) | ((bits & 0x8000) << 16)).bits(F32, n)

    def to_bf16(self, s: Simd, value: Value) -> Value:
        """float32 to bfloat16 (as 16-bit integers), to nearest even. NaN stays NaN; subnormals may become zero."""
        if self.round_bf16 is not None and value.lanes == self.lanes:
            return self.round_bf16(s, value)
        bits = value.bits(I32, value.lanes)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return s.select(value.compare("==", value), rounded, s.constant(0x7FC0, I32, value.lanes)).to(I16)

    def pair_dot(self, s: Simd, acc: Value, a: Value, b: Value) -> Value:
        """``acc`` (float32) plus, in each lane, the two products of pairs of bfloat16; a, b: pairs as 32-bit integers."""
        if self.dot_bf16 is not None:
            return self.dot_bf16(s, acc, a, b)
        n = acc.lanes
        for second in (False, True):
            x, y = ((pair & -65536 if second else pair << 16).bits(F32, n) for pair in (a, b))
            acc = self.multiply_add(s, x, y, acc)
        return acc

    def to_f16(self, s: Simd, value: Value) -> Value:
        """float32 to float16, to nearest even; too large becomes infinity."""
        if self.has_f16:
            return value.to(F16)
        n = value.lanes
        bits = value.bits(I32, n)
        magnitude = bits & 0x7FFFFFFF
        # Normal results: round at bit 13 by adding half of it (and one more when the kept part is odd).
        rounded = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
        # Subnormal results: adding 0.5 leaves their bits, rounded by the addition itself, at the bottom of the sum.
        small = (magnitude.bits(F32, n) + 0.5).bits(I32, n) - 0x3F000000
        result = s.select(magnitude.compare("<", 113 << 23), small, rounded)
        result = s.select(magnitude.compare(">=", 0x477FF000), s.constant(0x7C00, I32, n), result)
        result = s.select(magnitude.compare(">", 0x7F800000), s.constant(0x7E00, I32, n), result)
        return (result | ((bits >> 16) & 0x8000)).to(I16).bits(F16, n)
