"""IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight. The values of IQ4_NL, with 8 scales under one.

    byte   0   1   2   3    4        5               7        8        9               135
           d   d   h        bbbbaaaa bbbbaaaa        bbbbaaaa bbbbaaaa bbbbaaaa        bbbbaaaa
           float16 uint16   l1  l0   l3  l2   ...    l7  l6   q16  q0  q17  q1  ...    q255 q239

    d scale, float16; h the high bits of the 8 scales, bits 2 g and 2 g + 1 those of scale g; l[g] their low bits
    q: in bytes 16 g .. 16 g + 15 of the nibbles, a low nibble: weights 32 g + 0-15, b high nibble: weights 32 g + 16-31

    weight[i] = d * (scale[i / 32] - 32) * (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)[q[i]]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        low = blocks["scales_l"][:, :, None] >> np.array([0, 4], np.uint8) & 15
        high = blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
        scales = (low.reshape(-1, 8) | high << 4).astype(np.float32) - 32
        q = blocks["qs"].reshape(-1, 8, 1, 16) >> np.array([[0], [4]], np.uint8) & 15
        below, above = [-127, -104, -83, -65, -49, -35, -22, -10], [1, 13, 25, 38, 53, 69, 89, 113]
        values = np.array(below + above, np.float32)[q.reshape(-1, 8, 32)]
        return ((blocks["d"].astype(np.float32)[:, None] * scales)[:, :, None] * values).reshape(-1, 256)

Quantizing: the scale of each 32 weights by the search in ``_iq4.py``; d makes the one of largest magnitude -32, the others
are rounded; each weight goes to the nearest value.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, PackField

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Entry
    from gumba.quants._registers import BlockRegisters
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
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

    scale_memory = scratch(4 * GROUPS)

    @inline
    def write_block(x_address: int, scale: NDArray[np.float32], out: NDArray[np.uint8], n: int) -> bool:
        """One block from the best scales of its 8 groups; whether d is finite (n is 8)."""
        most = np.float32(0)
        for g in range(n):
            most = scale[g] if abs(scale[g]) > abs(most) else most
        if largest_magnitude(u32_at(x_address, 256), n * 32) >= np.uint32(0x7F800000):
            most = np.float32(np.nan)
        finite = write_f16(out, 0, most / np.float32(-32))
        d = read_f16(out, 0)
        over_d = inverse_or_zero(d)
        for i in range(2, 8):
            out[i] = np.uint8(0)
        for g in range(n):
            steps = scale[g] * over_d
            steps = min(max(steps, np.float32(-32)), np.float32(31)) if steps == steps else np.float32(0)
            rounded = np.int32(steps + np.float32(32.5)) - 32
            stored = rounded + 32
            out[2 + g // 4] |= np.uint8((stored >> 4) << (g % 4 * 2))
            out[4 + g // 2] |= np.uint8((stored & 15) << (g % 2 * 4))
            over_scale = inverse_or_zero(d * np.float32(rounded))
            write_codes(f32_at(x_address + g * 128, 32), over_scale, out, 8 + g * 16, n * 2)
        return finite

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        scale_address = scale_memory()
        for first in range(0, n_blocks, GROUPS // 8):
            n = min(GROUPS // 8, n_blocks - first)
            best_scales(x_address + first * 1024, n * 8, scale_address)
            for b in range(n):
                out = u8_at(out_address + (first + b) * 136, 136)
                x = x_address + (first + b) * 1024
                if not write_block(x, f32_at(scale_address + b * 32, 8), out, length // 32):
                    not_finite = 1
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 136, 136)
            d = read_f16(data, 0)
            for g in range(length // 32):
                low, high = data[4 + g // 2] >> (g % 2 * 4) & 15, data[2 + g // 4] >> (g % 4 * 2) & 3
                scale = d * np.float32(np.int32(low | high << 4) - 32)
                out = f32_at(out_address + b * 1024 + g * 128, 32)
                for i in range(length // 16):
                    q = data[8 + g * 16 + i]
                    out[i] = scale * value_of(q & 15)
                    out[i + 16] = scale * value_of(q >> 4)
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block."""
    from gumba.quants import _registers
    from gumba.quants._iq4 import IQ4_VALUES
    from gumba.simd.value import F32, I16, I32

    lanes = isa.lanes
    table = _registers.weight_table(isa, IQ4_VALUES)
    d = _registers.load_f16(s, isa, address)
    high = s.load(address + 2 * lanes, I16, lanes).unsigned_to(I32)
    low = s.load(address + 4 * lanes, I32, lanes)
    for g in range(8):
        scale = ((low >> 4 * g) & 15) | (((high >> 2 * g) & 3) << 4)
        codes = _registers.nibbles(s, isa, address + (8 + 16 * g) * lanes)
        yield table.block(s, isa, codes, d * (scale - 32).to(F32))


FORMAT = DotFormat(
    name="iq4_xs",
    ggml_type=23,
    block_size=256,
    type_size=136,
    dtype=np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 2), PackField(4, 4, 33)),  # d, h; low bits of scales, nibbles in words
    packed_block_size=256,
    unpack=unpack,
)
