"""Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.

    byte   0   1   2        3        4        5         6        7               21
           d   d   hhhhhhhh hhhhhhhh hhhhhhhh hhhhhhhh  bbbbaaaa bbbbaaaa        bbbbaaaa
           float16 7      0 15     8 23    16 31    24  q16  q0  q17  q1  ...    q31  q15

    d scale, float16, little-endian; a low 4 bits of weights 0-15, b of weights 16-31; h the fifth bit of each weight, bit i
    of these 32 that of weight i

    weight[i] = d * (q[i] - 16),    q 5 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        fifth = blocks["qh"][:, None] >> np.arange(32, dtype=np.uint32) & 1
        q = np.concatenate([low, high], axis=1) | fifth << 4
        return d * (q.astype(np.float32) - 16)

Quantizing: d = m / -16, where m is the weight of largest magnitude (the first of equals) with its sign, so that m becomes
exactly q = 0; the others q = weight / d + 16.5 truncated to an integer, at most 31. q comes from d as float32; only what is
stored is rounded to float16.
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
        read_u32,
        to_5_bits,
        u8_at,
        u32_at,
        write_f16,
        write_u32,
    )

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 128, 32)
            out = u8_at(out_address + b * 22, 22)
            d = x[first_largest(u32_at(x_address + b * 128, 32), length)] / np.float32(-16)
            if not write_f16(out, 0, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            fifth = np.uint32(0)
            for i in range(length // 2):
                low = to_5_bits(x[i] * over_d + np.float32(16.5))
                high = to_5_bits(x[i + 16] * over_d + np.float32(16.5))
                out[i + 6] = np.uint8((low & np.int32(15)) | np.int32((high & np.int32(15)) << np.int32(4)))
                bits = np.uint32(
                    np.uint32(low >> np.int32(4)) | np.uint32(np.uint32(high >> np.int32(4)) << np.uint32(16))
                )
                fifth |= np.uint32(bits << np.uint32(i))
            write_u32(out, 2, fifth)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 22, 22)
            out = f32_at(out_address + b * 128, 32)
            d = read_f16(data, 0)
            fifth = read_u32(data, 2)
            for i in range(length // 2):
                q = np.int32(data[i + 6])
                here = np.int32(np.uint32(fifth >> np.uint32(i)))
                low = np.int32((q & np.int32(15)) | np.int32(np.int32(here & np.int32(1)) << np.int32(4)))
                high = np.int32(np.int32(q >> np.int32(4)) | np.int32(np.int32(here >> np.int32(12)) & np.int32(16)))
                out[i] = d * np.float32(low - np.int32(16))
                out[i + 16] = d * np.float32(high - np.int32(16))
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The 5 bits stay unsigned. -16 d is a minimum rather than an offset: activations keep no start of a dot
    product for an offset of 16, and a multiply-add costs less than making one."""
    from gumba.quants import _registers

    scale = _registers.load_f16(s, isa, address)
    weights = _registers.nibbles(s, isa, address + 6 * isa.lanes)
    fifth = _registers.fifth_bits(s, isa, address + 2 * isa.lanes)
    weights = [low | high for low, high in zip(weights, fifth)]
    yield _registers.BlockRegisters(weights, scale, w_max=31, minimum=scale * -16.0)


FORMAT = DotFormat(
    name="q5_0",
    ggml_type=6,
    block_size=32,
    type_size=22,
    dtype=np.dtype([("d", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(
        PackField(0, 2, 1),
        PackField(2, 4, 1),
        PackField(6, 4, 4),
    ),  # d, fifth bits, the nibbles in words of 8
    expand=True,
    unpack=unpack,
)
