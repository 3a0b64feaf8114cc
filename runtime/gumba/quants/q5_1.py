"""Q5_1: 32 weights in 24 bytes, 6 bits per weight.

    byte   0   1   2   3   4        5        6        7         8        9               23
           d   d   m   m   hhhhhhhh hhhhhhhh hhhhhhhh hhhhhhhh  bbbbaaaa bbbbaaaa        bbbbaaaa
           float16 float16 7      0 15     8 23    16 31    24  q16  q0  q17  q1  ...    q31  q15

    d scale, m minimum, float16, little-endian; a low 4 bits of weights 0-15, b of weights 16-31; h the fifth bit of each
    weight, bit i of these 32 that of weight i

    weight[i] = d * q[i] + m,    q 5 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        m = blocks["m"].astype(np.float32)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        fifth = blocks["qh"][:, None] >> np.arange(32, dtype=np.uint32) & 1
        q = np.concatenate([low, high], axis=1) | fifth << 4
        return d * q.astype(np.float32) + m

Quantizing: m = smallest weight (-0 before +0), d = (largest - m) / 31, q = (weight - m) / d + 0.5 truncated to an integer.
q comes from d and m as float32; only what is stored is rounded to float16.
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
        inverse_or_zero,
        lowest_highest,
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
            out = u8_at(out_address + b * 24, 24)
            m, largest = lowest_highest(u32_at(x_address + b * 128, 32), length)
            d = (largest - m) / np.float32(31)
            if not (write_f16(out, 0, d) & write_f16(out, 2, m)):
                not_finite = 1
            over_d = inverse_or_zero(d)
            fifth = np.uint32(0)
            for i in range(length // 2):
                low = to_5_bits((x[i] - m) * over_d + np.float32(0.5))
                high = to_5_bits((x[i + 16] - m) * over_d + np.float32(0.5))
                out[i + 8] = np.uint8((low & np.int32(15)) | np.int32((high & np.int32(15)) << np.int32(4)))
                bits = np.uint32(
                    np.uint32(low >> np.int32(4)) | np.uint32(np.uint32(high >> np.int32(4)) << np.uint32(16))
                )
                fifth |= np.uint32(bits << np.uint32(i))
            write_u32(out, 4, fifth)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 24, 24)
            out = f32_at(out_address + b * 128, 32)
            d = read_f16(data, 0)
            m = read_f16(data, 2)
            fifth = read_u32(data, 4)
            for i in range(length // 2):
                q = np.int32(data[i + 8])
                here = np.int32(np.uint32(fifth >> np.uint32(i)))
                low = np.int32((q & np.int32(15)) | np.int32(np.int32(here & np.int32(1)) << np.int32(4)))
                high = np.int32(np.int32(q >> np.int32(4)) | np.int32(np.int32(here >> np.int32(12)) & np.int32(16)))
                out[i] = d * np.float32(low) + m
                out[i + 16] = d * np.float32(high) + m
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block, with its minimum."""
    from gumba.quants import _registers

    scale, minimum = (_registers.load_f16(s, isa, address + 2 * isa.lanes * i) for i in range(2))
    weights = _registers.nibbles(s, isa, address + 8 * isa.lanes)
    fifth = _registers.fifth_bits(s, isa, address + 4 * isa.lanes)
    weights = [low | high for low, high in zip(weights, fifth)]
    yield _registers.BlockRegisters(weights, scale, w_max=31, minimum=minimum)


FORMAT = DotFormat(
    name="q5_1",
    ggml_type=7,
    block_size=32,
    type_size=24,
    dtype=np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)]),
    loops=loops,
    # d, m, the fifth bits, the nibbles in words of 8
    pack_fields=(PackField(0, 2, 1), PackField(2, 2, 1), PackField(4, 4, 1), PackField(8, 4, 4)),
    expand=True,
    unpack=unpack,
)
