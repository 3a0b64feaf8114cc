"""MXFP4: 32 weights in 17 bytes, 4.25 bits per weight (Open Compute Project, Microscaling Formats 1.0, 2023).

    byte   0        1        2               16
           eeeeeeee bbbbaaaa bbbbaaaa        bbbbaaaa        e scale, a power of two (e8m0)
                    q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high nibble: weights 16-31

           smmm                                              a nibble: sign, then 0 1 2 3 4 6 8 12 by mmm

    weight[i] = 2 ** (e - 128) * (-1) ** s * (0, 1, 2, 3, 4, 6, 8, 12)[m]

The standard's values are half of these, its scale twice as large. In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = np.ldexp(np.float32(1), blocks["e"].astype(np.int32) - 128)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        codes = np.concatenate([low, high], axis=1)
        sizes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
        return d * np.where(codes > 8, -sizes[codes & 7], sizes[codes & 7])

Quantizing: e such that the power of two in the largest magnitude becomes 8 (at least e = 0); the others go to the nearest
value, ties to the smaller one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, Finite, PackField

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
        fp4_code,
        fp4_size,
        largest_magnitude,
        u8_at,
        u32_at,
    )

    @inline
    def scale_of(e: int) -> np.float32:
        """2 ** (e - 128), for e of 0 and 1 subnormal."""
        normal = np.uint32((np.uint32(e) - np.uint32(1)) << np.uint32(23))
        small = np.uint32(np.uint32(0x00200000) << np.uint32(e & 1))
        return bits_float(small if e < 2 else normal)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 128, 32)
            out = u8_at(out_address + b * 17, 17)
            largest = largest_magnitude(u32_at(x_address + b * 128, 32), length)
            if largest >= np.uint32(0x7F800000):
                not_finite = 1
            exponent = np.int32(largest >> np.uint32(23)) - 2
            e = exponent if exponent > 0 else 0
            d = scale_of(e)
            out[0] = np.uint8(e)
            for i in range(length // 2):
                out[i + 1] = np.uint8(fp4_code(x[i], d) | np.int32(fp4_code(x[i + 16], d) << np.int32(4)))
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 17, 17)
            out = f32_at(out_address + b * 128, 32)
            d = scale_of(np.int32(data[0]))
            for i in range(length // 2):
                for half in range(2):
                    q = np.int32(np.int32(data[i + 1]) >> np.int32(4 * half))
                    size = fp4_size(q & 7)
                    out[i + 16 * half] = d * np.float32(-size if q & 8 else size)
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: a nibble names its weight in a table."""
    from gumba.quants import _registers
    from gumba.simd.value import F32, I8, I32

    e = s.load(address, I8, isa.lanes).unsigned_to(I32)
    bits = s.select(e.compare(">", 1), (e - 1) << 23, (e + 1) << 21)
    codes = _registers.nibbles(s, isa, address + isa.lanes)
    sizes = (0, 1, 2, 3, 4, 6, 8, 12)
    table = _registers.weight_table(isa, [*sizes, *(-size for size in sizes)])
    yield table.block(s, isa, codes, bits.bits(F32, isa.lanes))


FORMAT = DotFormat(
    name="mxfp4",
    ggml_type=39,
    block_size=32,
    type_size=17,
    dtype=np.dtype([("e", "u1"), ("qs", "u1", 16)]),
    # All ones are NaN in the standard; with the two below it, 2**126 and 2**125, the largest weights are infinite.
    other_finite=(Finite(0, 1, 0xFE), Finite(0, 1, 0xFD)),
    loops=loops,
    pack_fields=(PackField(0, 1, 1), PackField(1, 4, 4)),  # e, the nibbles in words of 8
    unpack=unpack,
)
