"""NVFP4: 64 weights in 36 bytes, 4.5 bits per weight. 4 groups of 16 weights, each group with its own scale.

    byte   0        3        4        5              11       12             35
           xeeeemmm xeeeemmm bbbbaaaa bbbbaaaa       bbbbaaaa bbbbaaaa       bbbbaaaa
           d0   ..  d3       q8   q0  q9   q1   ...  q15  q7  q24  q16  ...  q63  q55

    d a scale, float8 without a sign (ue4m3): (1 + m / 8) * 2 ** (e - 7), or m / 8 * 2 ** -6 where e is 0; 127 is 0;
    8 bytes for each group: a low nibble: its first 8 weights, b high nibble: its last 8

           smmm                                              a nibble: sign, then 0 1 2 3 4 6 8 12 by mmm

    weight[i] = d[i / 16] / 2 * (-1) ** s * (0, 1, 2, 3, 4, 6, 8, 12)[m]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 64]
        e, m = blocks["d"] >> 3 & 15, (blocks["d"] & 7).astype(np.float32) / 8
        d = np.where(e > 0, np.ldexp(1 + m, e.astype(np.int32) - 8), m / 128)
        d = np.where(blocks["d"] == 127, np.float32(0), d)[:, :, None]
        qs = blocks["qs"].reshape(-1, 4, 8)
        values = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
        return (d * values[np.concatenate([qs & 15, qs >> 4], axis=2)]).reshape(-1, 64)

Files also have a factor for the whole tensor (``NAME.scale``: ``loading/tensor_table.py``).

Quantizing, as ggml does: d = largest magnitude of the group / 6, to the nearest scale (values >= 256 to the largest, 448);
weights go to the nearest value, ties to the smaller one.
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

#: The value of each nibble.
VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
    from gumba.quants._compiled import (
        bits_float,
        codec_entry,
        f32_at,
        float_bits,
        fp4_code,
        fp4_size,
        largest_magnitude,
        u8_at,
        u32_at,
    )

    @inline
    def half_scale(code: int | np.uint32) -> np.float32:
        """Half of the number that a scale's byte stands for."""
        code = np.uint32(0) if code == 127 else np.uint32(np.uint32(code) & np.uint32(127))
        return bits_float(np.uint32(code << np.uint32(20))) * np.float32(
            2.0**119
        )  # from the exponent's bias of 7 to 127

    @inline
    def scale_code(x: np.float32) -> np.uint8:
        """The byte of the scale for ``x``, a positive number: the nearest, ties to the larger one."""
        x = x if x < np.float32(448) else np.float32(448)
        small = np.uint32(x * np.float32(512) + np.float32(0.5))
        normal = np.uint32(np.uint32(float_bits(x) + np.uint32(1 << 19)) >> np.uint32(20)) - np.uint32(120 << 3)
        normal = normal if normal < np.uint32(0x78) else np.uint32(0x7E)
        small = small if small < np.uint32(7) else np.uint32(7)
        return np.uint8(normal if x >= np.float32(2.0**-6) else small)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        for b in range(n_blocks):
            out = u8_at(out_address + b * 36, 36)
            for g in range(4):
                x = f32_at(x_address + b * 256 + g * 64, 16)
                largest = largest_magnitude(u32_at(x_address + b * 256 + g * 64, 16), length // 4)
                if largest >= np.uint32(0x7F800000):
                    not_finite = 1
                code = scale_code(bits_float(largest) / np.float32(6))
                d = half_scale(code)
                out[g] = code
                for i in range(length // 8):
                    high = np.int32(fp4_code(x[i + 8], d) << np.int32(4))
                    out[4 + 8 * g + i] = np.uint8(fp4_code(x[i], d) | high)
        return not_finite

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 36, 36)
            for g in range(4):
                d = half_scale(data[g])
                out = f32_at(out_address + b * 256 + g * 64, 16)
                for i in range(length // 8):
                    for half in range(2):
                        q = np.int32(np.int32(data[4 + 8 * g + i]) >> np.int32(4 * half))
                        size = fp4_size(q & 7)
                        out[i + 8 * half] = d * np.float32(-size if q & 8 else size)
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: a nibble names its weight in a table."""
    from gumba.quants import _registers
    from gumba.simd.value import F32, I32

    lanes = isa.lanes
    codes = s.load(address, I32, lanes)  # four scales in each lane's row
    table = _registers.weight_table(isa, VALUES)
    for part in range(2):
        scales, nibbles = [], []
        for g in (2 * part, 2 * part + 1):
            # A scale at float32's place, where the exponent's bias is 127, not 7. Subnormal scales are computed from integers:
            # float32's own subnormal numbers take processors 100 times as long. (Loading a file refuses the byte 127.)
            code = (codes << (20 - 8 * g) if g < 3 else codes >> 4) & 0x07F00000
            normal, small = (code + (119 << 23)).bits(F32, lanes), code.to(F32) * 2.0**-30
            scales.append(s.select(code.compare("<", 1 << 23), small, normal))
            words = _registers.bytes_at(s, isa, address + (4 + 8 * g) * lanes, 2)
            nibbles += [word & 15 for word in words] + [_registers.shift(word, 4) & 15 for word in words]
        yield table.block(s, isa, nibbles, (scales[0], scales[1]))


FORMAT = DotFormat(
    name="nvfp4",
    ggml_type=40,
    block_size=64,
    type_size=36,
    dtype=np.dtype([("d", "u1", 4), ("qs", "u1", 32)]),
    other_finite=tuple(Finite(i, 1, 0x7F) for i in range(4)),  # all ones are NaN in the standard
    loops=loops,
    pack_fields=(PackField(0, 4, 1), PackField(4, 4, 8)),  # the scales in a word, the nibbles in words of 8
    packed_block_size=64,
    expand=True,
    unpack=unpack,
)
