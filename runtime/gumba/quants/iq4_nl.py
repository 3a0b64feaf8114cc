"""IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight. The blocks of Q4_0, with unequal steps between the 16 values.

    byte   0   1   2        3               17
           d   d   bbbbaaaa bbbbaaaa        bbbbaaaa        d scale, float16, little-endian
           float16 q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high nibble: weights 16-31

    weight[i] = d * (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)[q[i]]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 32]
        d = blocks["d"].astype(np.float32)[:, None]
        low, high = blocks["qs"] & 15, blocks["qs"] >> 4
        below, above = [-127, -104, -83, -65, -49, -35, -22, -10], [1, 13, 25, 38, 53, 69, 89, 113]
        return d * np.array(below + above, np.float32)[np.concatenate([low, high], axis=1)]

Quantizing: d by the search in ``_iq4.py``, rounded to float16; each weight to the nearest value.
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
        largest_magnitude,
        read_f16,
        scratch,
        u8_at,
        u32_at,
        write_f16,
    )
    from gumba.quants._iq4 import GROUPS, best_scales, value_of, write_codes

    scales = scratch(4 * GROUPS)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        scale_address = scales()
        scale = f32_at(scale_address, GROUPS)
        for first in range(0, n_blocks, GROUPS):
            n = min(GROUPS, n_blocks - first)
            best_scales(x_address + first * 128, n, scale_address)
            for g in range(n):
                at = x_address + (first + g) * 128
                out = u8_at(out_address + (first + g) * 18, 18)
                if largest_magnitude(u32_at(at, 32), length) >= np.uint32(0x7F800000):
                    scale[g] = np.float32(np.nan)
                if not write_f16(out, 0, scale[g]):
                    not_finite = 1
                write_codes(f32_at(at, 32), inverse_or_zero(read_f16(out, 0)), out, 2, length // 2)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 18, 18)
            out = f32_at(out_address + b * 128, 32)
            d = read_f16(data, 0)
            for i in range(length // 2):
                out[i] = d * value_of(data[i + 2] & 15)
                out[i + 16] = d * value_of(data[i + 2] >> 4)
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block."""
    from gumba.quants import _registers
    from gumba.quants._iq4 import IQ4_VALUES

    codes = _registers.nibbles(s, isa, address + 2 * isa.lanes)
    yield _registers.weight_table(isa, IQ4_VALUES).block(s, isa, codes, _registers.load_f16(s, isa, address))


FORMAT = DotFormat(
    name="iq4_nl",
    ggml_type=20,
    block_size=32,
    type_size=18,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 4)),  # d, the nibbles in words of 8
    unpack=unpack,
)
