"""Q4_1: 32 weights in 20 bytes, 5 bits per weight.

    byte   0   1   2   3   4        5               19
           d   d   m   m   bbbbaaaa bbbbaaaa        bbbbaaaa        d scale, m minimum, float16, little-endian
           float16 float16 q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high: weights 16-31

    weight[i] = d * q[i] + m

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        m = blocks["m"].astype(np.float32)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        q = np.concatenate([low, high], axis=1).astype(np.float32)
        return d * q + m

Quantizing: m = smallest weight (-0 before +0), d = (largest - m) / 15, q = (weight - m) / d + 0.5 truncated to an integer.
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
            out = u8_at(out_address + b * 20, 20)
            m, largest = lowest_highest(bits, length)
            d = (largest - m) / np.float32(15)
            if not (write_f16(out, 0, d) & write_f16(out, 2, m)):
                not_finite = 1
            over_d = inverse_or_zero(d)
            for i in range(length // 2):
                low = to_nibble((x[i] - m) * over_d + np.float32(0.5))
                high = to_nibble((x[i + 16] - m) * over_d + np.float32(0.5))
                out[i + 4] = np.uint8(low | np.int32(high << np.int32(4)))
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 20, 20)
            out = f32_at(out_address + b * 128, 32)
            d = read_f16(data, 0)
            m = read_f16(data, 2)
            for i in range(length // 2):
                q = np.int32(data[i + 4])
                out[i] = d * np.float32(np.int32(q & np.int32(15))) + m
                out[i + 16] = d * np.float32(np.int32(q >> np.int32(4))) + m
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block, with its minimum."""
    from gumba.quants import _registers

    scale, minimum = (_registers.load_f16(s, isa, address + 2 * isa.lanes * i) for i in range(2))
    weights = _registers.nibbles(s, isa, address + 4 * isa.lanes)
    yield _registers.BlockRegisters(weights, scale, w_max=15, minimum=minimum)


FORMAT = DotFormat(
    name="q4_1",
    ggml_type=3,
    block_size=32,
    type_size=20,
    dtype=np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 2, 1), PackField(4, 4, 4)),  # d, m, the nibbles in words of 8
    unpack=unpack,
)
