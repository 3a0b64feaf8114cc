"""TQ2_0: 256 weights in 66 bytes, 2.0625 bits per weight: ternary weights with one scale.

    byte    0 .. 31   qs, first half    ddccbbaa    2 bits each: a of weights 0..31, b 32..63, c 64..95, d 96..127
    byte   32 .. 63   qs, second half   ddccbbaa    the same for weights 128..255
    byte   64 .. 65   d                             scale, float16, little-endian

    weight[i] = d * (q[i] - 1),    q 0 to 2 for the weights -d, 0 and d (3, which no encoder writes, is 2 d)

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        qs = blocks["qs"].reshape(-1, 2, 1, 32)
        q = (qs >> np.array([[0], [2], [4], [6]], np.uint8) & 3).reshape(-1, 256)
        return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - 1)

Quantizing: d = largest magnitude, q = weight / d to the nearest integer (ties away from 0), plus 1.
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
            out = u8_at(out_address + b * 66, 66)
            d = bits_float(largest_magnitude(u32_at(x_address + b * 1024, 256), length))
            if not write_f16(out, 64, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            for half in range(2):
                x = f32_at(x_address + b * 1024 + half * 512, 128)
                qs = u8_at(out_address + b * 66 + half * 32, 32)
                for i in range(length // 8):
                    q = np.int32(ternary_code(x[i] * over_d))
                    for k in range(1, 4):
                        q |= np.int32(ternary_code(x[i + 32 * k] * over_d)) << np.int32(2 * k)
                    qs[i] = np.uint8(q)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 66, 66)
            d = read_f16(data, 64)
            for part in range(8):  # 32 weights whose bits lie in one run of bytes
                out = f32_at(out_address + b * 1024 + part * 128, 32)
                qs = data[part // 4 * 32 : part // 4 * 32 + 32]
                shift = np.int32(part % 4 * 2)
                for i in range(length // 8):
                    q = np.int32(np.int32(np.int32(qs[i]) >> shift) & np.int32(3))
                    out[i] = d * np.float32(np.int32(q - np.int32(1)))
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The codes stay unsigned; the 1 is subtracted where a dot product starts.

    They are taken times 8, since activations have the start of a dot product with the offset 8, but not 1.
    """
    from gumba.quants import _registers

    scale = _registers.load_f16(s, isa, address + 64 * isa.lanes) * 0.125
    for part in range(8):
        yield _registers.BlockRegisters(_registers.two_bits(s, isa, address, part, 3), scale, w_max=24, offset=8)


FORMAT = DotFormat(
    name="tq2_0",
    ggml_type=35,
    block_size=256,
    type_size=66,
    dtype=np.dtype([("qs", "u1", 64), ("d", "<f2")]),
    loops=loops,
    pack_fields=(PackField(0, 4, 16), PackField(64, 2, 1)),  # the codes in words of 16, d
    packed_block_size=256,
    unpack=unpack,
)
