"""Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.

    byte   0   1   2        3               33
           d   d   q0       q1       ...    q31
           float16 qqqqqqqq qqqqqqqq        qqqqqqqq        d scale, little-endian; q int8, -127..127

    weight[i] = d * q[i]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        return d * blocks["qs"].astype(np.float32)

Quantizing: d = (largest magnitude) / 127, q = weight / d rounded to the nearest, ties away from zero. q comes from d
as float32; only what is stored is rounded to float16.
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
        i8_at,
        inverse_or_zero,
        largest_magnitude,
        read_f16,
        u8_at,
        u32_at,
        write_f16,
    )

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            x = f32_at(x_address + b * 128, 32)
            out = u8_at(out_address + b * 34, 34)
            q = i8_at(out_address + b * 34 + 2, 32)
            d = bits_float(largest_magnitude(u32_at(x_address + b * 128, 32), length)) / np.float32(127)
            if not write_f16(out, 0, d):
                not_finite = 1
            over_d = inverse_or_zero(d)
            for i in range(length):
                scaled = x[i] * over_d
                size = abs(scaled)
                whole = np.int32(size)  # not int(size + 0.5), which is 1 for the float just below 0.5
                half = np.int32(1) if size - np.float32(whole) >= np.float32(0.5) else np.int32(0)
                rounded = np.int32(whole + half)
                q[i] = np.int8(-rounded if scaled < np.float32(0) else rounded)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            d = read_f16(u8_at(data_address + b * 34, 34), 0)
            q = i8_at(data_address + b * 34 + 2, 32)
            out = f32_at(out_address + b * 128, 32)
            for i in range(length):
                out[i] = np.float32(q[i]) * d
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: signed weights where the instruction set multiplies those, else with 128 added."""
    from gumba.quants import _registers

    weights = _registers.bytes_at(s, isa, address + 2 * isa.lanes, 8)
    signed = isa.dot_signed is not None
    scale = _registers.load_f16(s, isa, address)
    yield _registers.BlockRegisters(
        weights, scale, w_max=128 if signed else 255, offset=0 if signed else 128, signed=signed
    )


FORMAT = DotFormat(
    name="q8_0",
    ggml_type=8,
    block_size=32,
    type_size=34,
    dtype=np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 8)),  # d, the weights in words of 4
    unpack=unpack,
    sign_flip=-0x7F7F7F80,  # adds 128 to each byte
)
