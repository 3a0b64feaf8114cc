"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.

    byte   0   1   2        3               17
           d   d   bbbbaaaa bbbbaaaa        bbbbaaaa        d scale, float16, little-endian
           float16 q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high nibble: weights 16-31

    weight[i] = d * (q[i] - 8)

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        q = np.concatenate([low, high], axis=1).astype(np.float32)
        return d * (q - 8)

Quantizing: d = m / -8, where m is the weight of largest magnitude (the first of equals) with its sign, so that m
becomes exactly q = 0; the others q = weight / d + 8.5 truncated to an integer, at most 15. q comes from d as float32; only
what is stored is rounded to float16.
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
        codec_entry,
        f32_at,
        first_largest,
        inverse_or_zero,
        read_f16,
        to_nibble,
        u8_at,
        u32_at,
        write_f16,
    )

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 128, 32)
            bits = u32_at(x_address + b * 128, 32)
            out = u8_at(out_address + b * 18, 18)
            d = x[first_largest(bits, length)] / np.float32(-8)
            if not write_f16(out, 0, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            for i in range(length // 2):
                low = to_nibble(x[i] * over_d + np.float32(8.5))
                high = to_nibble(x[i + 16] * over_d + np.float32(8.5))
                out[i + 2] = np.uint8(low | np.int32(high << np.int32(4)))
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 18, 18)
            out = f32_at(out_address + b * 128, 32)
            d = read_f16(data, 0)
            for i in range(length // 2):
                q = np.int32(data[i + 2])
                out[i] = d * np.float32(np.int32(q & np.int32(15)) - np.int32(8))
                out[i + 16] = d * np.float32(np.int32(q >> np.int32(4)) - np.int32(8))
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The nibbles stay unsigned; the 8 is subtracted where a dot product starts."""
    from gumba.quants import _registers

    weights = _registers.nibbles(s, isa, address + 2 * isa.lanes)
    yield _registers.BlockRegisters(weights, _registers.load_f16(s, isa, address), w_max=15, offset=8)


FORMAT = DotFormat(
    name="q4_0",
    ggml_type=2,
    block_size=32,
    type_size=18,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 4)),  # d, the nibbles in words of 8
    unpack=unpack,
)
