"""Q2_0: 64 weights in 18 bytes, 2.25 bits per weight.

    byte   0   1   2                 17
           d   d   ddccbbaa          ddccbbaa        d scale, float16, little-endian
           float16 q3 .. q0   ...    q63 .. q60      a the lowest bits, of the first weight

    weight[i] = d * (q[i] - 1),    q 0 to 3

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 64]
        q = (blocks["qs"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1, 64)
        return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - 1)

Quantizing: d = largest magnitude, q = weight / d to the nearest integer (ties away from 0), plus 1; so 3 is not written.
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

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 256, 64)
            out = u8_at(out_address + b * 18, 18)
            d = bits_float(largest_magnitude(u32_at(x_address + b * 256, 64), length))
            if not write_f16(out, 0, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            for m in range(length // 4):
                q = np.int32(0)
                for k in range(4):
                    q |= np.int32(ternary_code(x[4 * m + k] * over_d)) << np.int32(2 * k)
                out[m + 2] = np.uint8(q)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 18, 18)
            out = f32_at(out_address + b * 256, 64)
            d = read_f16(data, 0)
            for i in range(length):
                q = np.int32(np.int32(np.int32(data[2 + i // 4]) >> np.int32(i % 4 * 2)) & np.int32(3))
                out[i] = d * np.float32(np.int32(q - np.int32(1)))
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The codes stay unsigned; the 1 is subtracted where a dot product starts (TQ2_0 says why 8 times that)."""
    from gumba.quants import _registers
    from gumba.simd.value import I8, I32

    scale = _registers.load_f16(s, isa, address) * 0.125
    for part in range(2):
        weights = []
        for half in range(2):
            word = s.load(address + (2 + 8 * part + 4 * half) * isa.lanes, I32, isa.lanes)
            # Byte j holds columns 4 j + b in bits 2 b; as a matrix of 4 x 4 it is transposed, to byte b, bits 2 j.
            word = _registers.exchange_bits(word, 12, 0x0000F0F0)
            word = _registers.exchange_bits(word, 6, 0x00CC00CC)
            columns = word.bits(I8, 4 * isa.lanes)
            weights += [_registers.shift(columns, 2 * j - 3) & 24 for j in range(4)]
        yield _registers.BlockRegisters(weights, scale, w_max=24, offset=8)


FORMAT = DotFormat(
    name="q2_0",
    ggml_type=42,
    block_size=64,
    type_size=18,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 4)),  # d, the codes in words of 16
    packed_block_size=64,
    expand=True,
    unpack=unpack,
)
