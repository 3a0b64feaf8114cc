"""A packed block in registers (see ``gumba.backends.cpu.packing``), and what the formats' ``unpack`` functions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gumba.simd.isa import Isa
from gumba.simd.value import F16, I8, I16, I32, Simd, Value


@dataclass
class BlockRegisters:
    """A packed block of 32 columns. Weight of lane l, column 4 j + b: ``scale * (byte - offset) + minimum``.

    ``weights``: 8 registers of 4 x lanes bytes, register j holding columns 4 j .. 4 j + 3 of each lane; ``signed`` says how
    to read the bytes, ``w_max`` bounds their absolute value. ``scale``, ``minimum``: float32, of all 32 columns, or a pair:
    of columns 0..15 and 16..31.
    """

    weights: list[Value]
    scale: Value | tuple[Value, Value]
    w_max: int
    offset: int = 0
    signed: bool = False
    minimum: Value | tuple[Value, Value] | None = None

    @property
    def scales(self) -> tuple[Value, ...]:
        """The one scale, or both."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale,)

    @property
    def minimums(self) -> tuple[Value, ...]:
        """The minimums: none, one, or two."""
        if self.minimum is None:
            return ()
        return self.minimum if isinstance(self.minimum, tuple) else (self.minimum,)


def load_f16(s: Simd, isa: Isa, address: Value) -> Value:
    """One float16 per lane, as float32."""
    return isa.from_f16(s, s.load(address, F16, isa.lanes))


def bytes_at(s: Simd, isa: Isa, address: Value, count: int) -> list[Value]:
    """``count`` registers of four bytes per lane."""
    return [s.load(address + 4 * isa.lanes * j, I8, 4 * isa.lanes) for j in range(count)]


def shift(value: Value, bits: int) -> Value:
    """Shift bytes right (left where negative); the caller must mask off bits that come from a neighbouring byte."""
    wide = value.bits(I16, value.lanes // 2)
    return (wide >> bits if bits >= 0 else wide << -bits).bits(I8, value.lanes)


def exchange_bits(word: Value, distance: int, mask: int) -> Value:
    """Exchange the bits of ``mask`` in each 32-bit element with those ``distance`` places above."""
    different = (word ^ (word >> distance)) & mask
    return word ^ different ^ (different << distance)


def two_bits(s: Simd, isa: Isa, address: Value, part: int, place: int = 0) -> list[Value]:
    """8 registers with 2 bits for each weight, from bit ``place`` on: columns 32 ``part`` and up of 256 that lie in 64 bytes.

    Byte i of 32 has four weights of its half of the columns: i + 32 k in bits 2 k.
    """
    words = bytes_at(s, isa, address + part // 4 * 32 * isa.lanes, 8)
    return [shift(word, part % 4 * 2 - place) & 3 << place for word in words]


def moved(value: Value, bit: int, to: int) -> Value:
    """Each lane shifted so that its ``bit`` becomes bit ``to``; a mask must remove the bits around."""
    return value >> (bit - to) if bit >= to else value << (to - bit)


def nibbles(s: Simd, isa: Isa, address: Value) -> list[Value]:
    """8 registers from 16 bytes per lane: first the low halves of the bytes (columns 0..15), then the high ones."""
    packed = bytes_at(s, isa, address, 4)
    return [p & 15 for p in packed] + [shift(p, 4) & 15 for p in packed]


class WeightTable(NamedTuple):
    """A format's table of at most 16 weights as bytes that the instruction set multiplies, and how to read these."""

    entries: list[int]
    w_max: int
    offset: int
    signed: bool

    def block(self, s: Simd, isa: Isa, codes: list[Value], scale: Value | tuple[Value, Value]) -> BlockRegisters:
        """The block whose weights the bytes of ``codes`` (0..15) name."""
        return self.read([isa.lookup(s, self.entries, code) for code in codes], scale)

    def read(self, weights: list[Value], scale: Value | tuple[Value, Value]) -> BlockRegisters:
        """The block of ``weights`` that were looked up."""
        return BlockRegisters(weights, scale, self.w_max, self.offset, self.signed)


def weight_table(isa: Isa, values: Sequence[int]) -> WeightTable:
    """The table of ``values`` (-127..127): signed, or with an offset that makes them unsigned.

    Unsigned is the only fast form on some sets; on AVX2 it is the faster one, as long as two products fit 16 bits.
    """
    values = [*values, *[0] * (16 - len(values))]
    largest = max(abs(value) for value in values)
    if isa.dot_signed is isa.dot_unsigned or (isa.dot_signed is not None and largest > 64):
        return WeightTable(values, largest, 0, True)
    offset = 128 if isa.dot_signed is None else 1 << (largest - 1).bit_length()
    return WeightTable([value + offset for value in values], max(values) + offset, offset, False)


def fifth_bits(s: Simd, isa: Isa, address: Value) -> list[Value]:
    """8 registers of bytes 0 or 16 from one word per lane, whose bit 4 j + b is of byte b of register j.

    Register j takes one bit of each byte of a word, so the bits of equal b must get into one byte: two exchanges of bits do that.
    The first swaps bits 1 and 4 of the bits' indices, the second bits 0 and 3; then byte b has j's bits in the order 0, 2, 1.
    (Done when a file is loaded, it would make loading slower and gain nothing: a product of one token is bound by memory.)
    """
    word = s.load(address, I32, isa.lanes)
    for distance, mask in ((14, 0x0000CCCC), (7, 0x00AA00AA)):
        differ = (word ^ word >> distance) & mask
        word = word ^ differ ^ differ << distance
    packed = word.bits(I8, 4 * isa.lanes)
    return [shift(packed, (j & 1) * 4 + (j >> 2) * 2 + (j >> 1 & 1) - 4) & 16 for j in range(8)]
