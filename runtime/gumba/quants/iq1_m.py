"""IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight. Groups of 8 weights -1, 0 or 1 from a codebook of 2048, shifted.

    byte   0        1               31       32       33               47       48  49          54  55
           i0       i1              i31      bbbbaaaa bbbbaaaa         bbbbaaaa g0              g3
           uint8    uint8    ...    uint8    h1  h0   h3  h2   ...     h31 h30  uint16   ...    uint16

           bit    15  12 11  9 8   6 5   3 2   0
                  dddd   sss   sss   sss   sss       g: 4 bits of d, scales s of 4 times 16 weights
                         3     2     1     0

    d scale, float16, its lowest 4 bits in g0; i and the low 3 bits of h: the low 8 and the high 3 bits of an index of 8 numbers
    in the codebook (-1, 0, 1); bit 3 of h: the sign of the shift

    weight[16 g + 8 l + i] = d * (1 + 2 * s[g]) * (codebook[index[2 g + l]][i] + (-0.125 if h[2 g + l] >> 3 else 0.125))

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ1
        d = ((blocks["scales"] >> 12) << np.array([0, 4, 8, 12], np.uint16)).sum(axis=1, dtype=np.uint16).view(np.float16)
        scales = (blocks["scales"][:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16, 1, 1)
        h = (blocks["qh"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 32).astype(np.uint16)
        delta = np.where(h >> 3, -0.125, 0.125).astype(np.float32)[..., None]
        values = (IQ1.values[blocks["qs"] | (h & 7) << 8] + delta).reshape(-1, 16, 2, 8)
        return (d.astype(np.float32)[:, None, None, None] * (1 + 2 * scales.astype(np.float32)) * values).reshape(-1, 256)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, Finite, PackField

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
    from gumba.quants._compiled import codec_entry, f16_to_f32, f32_at, u8_at

    write_entry = entry_writer(IQ1)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 56, 56)
            bits = np.uint32(0)
            for g in range(4):
                bits |= np.uint32(np.uint32(data[49 + 2 * g] >> 4) << np.uint32(4 * g))
            d = f16_to_f32(bits)
            for g in range(length // 16):
                out = f32_at(out_address + b * 1024 + g * 64, 16)
                group = np.int64(data[48 + g // 4 * 2]) | np.int64(data[49 + g // 4 * 2]) << 8
                scale = d * np.float32(1 + 2 * (group >> g % 4 * 3 & 7))
                for k in range(length // 128):
                    h = np.int64(data[32 + g]) >> 4 * k & 15
                    delta = np.float32(-0.125) if h >> 3 else np.float32(0.125)
                    write_entry(np.int64(data[2 * g + k]) | (h & 7) << 8, 0, delta, scale, out, 8 * k)
        return 0

    return None, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: weights are 8 times those above, scales an eighth."""
    from gumba.quants import _codebooks, _registers
    from gumba.simd.value import F16, F32, I16, I32

    lanes = isa.lanes
    table = _registers.weight_table(isa, _codebooks.IQ1_WEIGHTS)
    groups = [s.load(address + (48 + 2 * i) * lanes, I16, lanes) for i in range(4)]
    bits = [_registers.moved(group, 12, 4 * i) & (15 << 4 * i) for i, group in enumerate(groups)]
    d = isa.from_f16(s, (bits[0] | bits[1] | bits[2] | bits[3]).bits(F16, lanes)) * 0.125
    for g in range(8):
        low = s.load(address + 4 * g * lanes, I32, lanes)
        h = s.load(address + (32 + 2 * g) * lanes, I16, lanes).unsigned_to(I32)
        weights = []
        for k in range(4):
            index = (low >> 8 * k) & 255 | _registers.moved(h, 4 * k, 8) & 0x700
            delta = (h << (28 - 4 * k)).shift_right_signed(31) & 0x44444444
            weights += _codebooks.two_registers(s, isa, table, _codebooks.IQ1.look_up(s, isa, index) | delta)
        scales = groups[g // 2].unsigned_to(I32)
        low_scale, high_scale = (
            d * ((_registers.moved(scales, 6 * (g % 2) + 3 * half, 1) & 14) + 1).to(F32) for half in range(2)
        )
        yield table.read(weights, (low_scale, high_scale))


FORMAT = DotFormat(
    name="iq1_m",
    ggml_type=29,
    block_size=256,
    type_size=56,
    dtype=np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)]),
    other_finite=(Finite(48, 8, 0x7000C000 << 32),),  # the exponent of d
    loops=loops,
    pack_fields=(PackField(0, 4, 8), PackField(32, 2, 12)),  # indexes in words of 4; high bits, scales
    packed_block_size=256,
    expand=True,
    unpack=unpack,
)
