"""Q1_0: 128 weights in 18 bytes, 1.125 bits per weight: signs with one scale.

    byte   0   1   2                 17
           d   d   hgfedcba          hgfedcba        d scale, float16, little-endian
           float16 q7 .. q0   ...    q127 .. q120    a the lowest bit, of the first weight

    weight[i] = d if q[i] else -d

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 128]
        q = np.unpackbits(blocks["qs"], axis=1, bitorder="little")
        return blocks["d"].astype(np.float32)[:, None] * (2 * q.astype(np.float32) - 1)

Quantizing: d = mean magnitude, summed in order; q = 1 for weights >= 0 (-0 too).
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
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at, write_f16

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 512, 128)
            out = u8_at(out_address + b * 18, 18)
            total = np.float32(0)
            for i in range(length):
                total += abs(x[i])
            if not write_f16(out, 0, total / np.float32(128)):
                not_finite = 1
            for m in range(length // 8):
                bits = 0
                for i in range(8):
                    bits |= (x[m * 8 + i] >= np.float32(0)) << i
                out[m + 2] = np.uint8(bits)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 18, 18)
            out = f32_at(out_address + b * 512, 128)
            d = read_f16(data, 0)
            for i in range(length):
                out[i] = d if data[2 + i // 8] >> (i % 8) & 1 else -d
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. Weights are 0 and 2; the 1 is subtracted where a dot product starts (TQ2_0 says why 8 times that)."""
    from gumba.quants import _registers
    from gumba.simd.value import I8, I32

    scale = _registers.load_f16(s, isa, address) * 0.125
    for part in range(4):
        word = s.load(address + (2 + 4 * part) * isa.lanes, I32, isa.lanes)
        # Bit 4 j + b is the weight of column 4 j + b, and must come to byte b. Two exchanges bring it there, in each byte to the
        # bit whose number is made of those of j in another order.
        word = _registers.exchange_bits(word, 14, 0x0000CCCC)
        word = _registers.exchange_bits(word, 7, 0x00AA00AA)
        bits = word.bits(I8, 4 * isa.lanes)
        places = [(j & 1) << 2 | (j >> 2) << 1 | (j >> 1 & 1) for j in range(8)]
        weights = [_registers.shift(bits, place - 4) & 16 for place in places]
        yield _registers.BlockRegisters(weights, scale, w_max=16, offset=8)


FORMAT = DotFormat(
    name="q1_0",
    ggml_type=41,
    block_size=128,
    type_size=18,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 4)),  # d, the bits in words of 32
    packed_block_size=128,
    expand=True,
    unpack=unpack,
)
