"""IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight. Groups of 8 weights -1, 0 or 1 from a codebook of 2048, shifted.

    byte   0   1   2        3               33       34  35          48  49
           d   d   i0       i1              i31      g0              g7
           float16 uint8    uint8    ...    uint8    uint16   ...    uint16

           bit    15    14 12 11  9 8   6 5   3 2   0
                  delta sss   hhh   hhh   hhh   hhh       g: for 32 weights the sign of the shift, scale s, high bits h of the
                              3     2     1     0         four indexes

    d scale, float16, little-endian; i and h the low 8 and the high 3 bits of an index of 8 numbers in the codebook (-1, 0, 1)

    weight[32 g + 8 l + i] = d * (1 + 2 * s[g]) * (codebook[index[4 g + l]][i] + (-0.125 if delta[g] else 0.125))

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ1
        groups = blocks["qh"][:, :, None]
        index = blocks["qs"].reshape(-1, 8, 4) | (groups >> np.array([0, 3, 6, 9], np.uint16) & 7) << 8
        d = blocks["d"].astype(np.float32)[:, None, None, None] * (1 + 2 * (groups >> 12 & 7).astype(np.float32))[..., None]
        delta = np.where(groups >> 15, -0.125, 0.125).astype(np.float32)[..., None]
        return (d * (IQ1.values[index] + delta)).reshape(-1, 256)
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
def loops() -> tuple[None, Entry]:
    """No encoder; the compiled decoder."""
    from gumba.quants._codebook_loops import entry_writer
    from gumba.quants._codebooks import IQ1
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    write_entry = entry_writer(IQ1)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 50, 50)
            d = read_f16(data, 0)
            for g in range(length // 32):
                out = f32_at(out_address + b * 1024 + g * 128, 32)
                group = np.int64(data[34 + 2 * g]) | np.int64(data[35 + 2 * g]) << 8
                scale = d * np.float32(1 + 2 * (group >> 12 & 7))
                delta = np.float32(-0.125) if group >> 15 else np.float32(0.125)
                for k in range(length // 64):
                    index = np.int64(data[2 + 4 * g + k]) | (group >> 3 * k & 7) << 8
                    write_entry(index, 0, delta, scale, out, 8 * k)
        return 0

    return None, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: weights are 8 times those above, scales an eighth."""
    from gumba.quants import _codebooks, _registers
    from gumba.simd.value import F32, I16, I32

    lanes = isa.lanes
    table = _registers.weight_table(isa, _codebooks.IQ1_WEIGHTS)
    d = _registers.load_f16(s, isa, address) * 0.125
    for g in range(8):
        low = s.load(address + (2 + 4 * g) * lanes, I32, lanes)
        group = s.load(address + (34 + 2 * g) * lanes, I16, lanes).to(I32)
        delta = group.shift_right_signed(15) & 0x44444444
        weights = []
        for k in range(4):
            index = (low >> 8 * k) & 255 | _registers.moved(group, 3 * k, 8) & 0x700
            entry = _codebooks.IQ1.look_up(s, isa, index) | delta
            weights += _codebooks.two_registers(s, isa, table, entry)
        yield table.read(weights, d * ((((group >> 12) & 7) << 1) + 1).to(F32))


FORMAT = DotFormat(
    name="iq1_s",
    ggml_type=19,
    block_size=256,
    type_size=50,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 8), PackField(34, 2, 8)),  # d; indexes in words of 4; the rest
    packed_block_size=256,
    expand=True,
    unpack=unpack,
)
