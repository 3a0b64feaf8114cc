"""TQ1_0: 256 weights in 54 bytes, 1.6875 bits per weight: ternary weights with one scale, five of them in a byte.

    byte    0 .. 31   qs, first part     5 digits each: digit n of byte i is weight 32 n + i (0..159)
    byte   32 .. 47   qs, second part    5 digits each: digit n of byte i is weight 160 + 16 n + i
    byte   48 .. 51   qh                 4 digits each: digit n of byte i is weight 240 + 4 n + i
    byte   52 .. 53   d                  scale, float16, little-endian

    weight[i] = d * (q[i] - 1),    q 0 to 2

A byte is a fraction, byte / 256, whose digits in base 3 are the codes: multiplying by 3 brings the first digit before the
point. In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        power = 3 ** np.arange(5, dtype=np.uint8)[:, None]
        runs = blocks["qs"][:, None, :32], blocks["qs"][:, None, 32:], blocks["qh"][:, None]
        left = [(run * power[:n]).reshape(len(blocks), -1) for run, n in zip(runs, (5, 5, 4))]  # of the fraction, in 1 / 256
        q = np.concatenate(left, axis=1).astype(np.uint16) * 3 >> 8
        return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - 1)

Quantizing: d = largest magnitude, q = weight / d to the nearest integer (ties away from 0), plus 1; a byte is its digits'
number in base 3, divided by 243, in 256ths rounded up (qh: as if a digit 0 followed).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, PackField

if TYPE_CHECKING:
    from gumba.jit.jit import Entry
    from gumba.quants._registers import BlockRegisters
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
    from gumba.quants._compiled import (
        bits_float,
        codec_entry,
        f32_at,
        inverse_or_zero,
        largest_magnitude,
        read_f16,
        ternary_code,
        u8_at,
        u32_at,
        write_f16,
    )

    @inline
    def write_digits(x_address: int, over_d: np.float32, out_address: int, width: int, digits: int) -> None:
        """``width`` bytes of ``digits`` digits each."""
        out = u8_at(out_address, width)
        x = f32_at(x_address, width * digits)
        for i in range(width):
            number = np.int32(0)
            for n in range(5):
                digit = np.int32(ternary_code(x[n * width + i] * over_d)) if n < digits else np.int32(0)
                number = np.int32(np.int32(number * np.int32(3)) + digit)
            out[i] = np.uint8(np.int32(np.int32(number * np.int32(256)) + np.int32(242)) // np.int32(243))

    @inline
    def read_digits(data_address: int, d: np.float32, out_address: int, width: int, digits: int) -> None:
        power = np.int32(1)
        for n in range(digits):
            data = u8_at(data_address, width)
            out = f32_at(out_address + n * width * 4, width)
            for i in range(width):
                left = np.int32(np.int32(np.int32(data[i]) * power) & np.int32(255))
                q = np.int32(np.int32(left * np.int32(3)) >> np.int32(8))
                out[i] = d * np.float32(np.int32(q - np.int32(1)))
            power = np.int32(power * np.int32(3))

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x, out = x_address + b * 1024, out_address + b * 54
            d = bits_float(largest_magnitude(u32_at(x, 256), length))
            if not write_f16(u8_at(out, 54), 52, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            write_digits(x, over_d, out, length // 8, 5)
            write_digits(x + 640, over_d, out + 32, length // 16, 5)
            write_digits(x + 960, over_d, out + 48, length // 64, 4)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data, out = data_address + b * 54, out_address + b * 1024
            d = read_f16(u8_at(data, 54), 52)
            read_digits(data, d, out, length // 8, 5)
            read_digits(data + 32, d, out + 640, length // 16, 5)
            read_digits(data + 48, d, out + 960, length // 64, 4)
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The codes stay unsigned; the 1 is subtracted where a dot product starts (TQ2_0 says why 8 times that).

    A digit is how many of the fractions 1/3 and 2/3 the byte has reached. That takes two comparisons, where multiplying would
    take 16 bits; they are of signed bytes, so the bytes have 128 subtracted, which multiplying by 3 modulo 256 keeps.
    """
    from gumba.quants import _registers
    from gumba.simd.value import I8

    def digits(count: int, first: int) -> Iterator[list[Value]]:
        """The next digits of ``count`` registers of bytes, from byte ``first`` of the block on."""
        left = [word ^ -128 for word in _registers.bytes_at(s, isa, address + first * isa.lanes, count)]
        none, one, two = (s.constant(8 * digit, I8, 4 * isa.lanes) for digit in range(3))
        while True:
            yield [s.select(q.compare(">", 42), two, s.select(q.compare(">", -43), one, none)) for q in left]
            left = [q + q + q for q in left]

    scale = _registers.load_f16(s, isa, address + 52 * isa.lanes) * 0.125
    long, short, last = digits(8, 0), digits(4, 32), digits(1, 48)
    for part in range(8):
        if part < 5:
            weights = next(long)
        else:
            weights = next(short) + (next(short) if part < 7 else [next(last)[0] for _ in range(4)])
        yield _registers.BlockRegisters(weights, scale, w_max=16, offset=8)


FORMAT = DotFormat(
    name="tq1_0",
    ggml_type=34,
    block_size=256,
    type_size=54,
    dtype=np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")]),
    loops=loops,
    pack_fields=(PackField(0, 4, 12), PackField(48, 4, 1), PackField(52, 2, 1)),  # qs in words of 20, qh, d
    packed_block_size=256,
    expand=True,
    unpack=unpack,
)
