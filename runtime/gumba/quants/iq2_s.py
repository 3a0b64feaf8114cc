"""IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight. Groups of 8 magnitudes from a codebook of 1024, and signs.

    byte   0   1   2        33       34       65       66               73       74               81
           d   d   i0  ...  i31      s0  ...  s31      ddccbbaa ...              bbbbaaaa ...     bbbbaaaa
           float16 low bits of index signs             h3 h2 h1 h0 ...  h31-h28  s1  s0   ...     s15 s14

    d scale, float16, little-endian; i and h the low 8 and the high 2 bits of an index of 8 magnitudes in the codebook (8, 25,
    43); bit i of a byte of signs is set where weight i is negative; s scales of 4 bits, the first of two in the low half

    weight[16 g + 8 l + i] = d * (0.5 + s[g]) / 4 * sign[2 g + l][i] * codebook[index[2 g + l]][i]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ2_S
        high = (blocks["qh"][:, :, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1, 32).astype(np.uint16)
        negative = blocks["signs"][:, :, None] >> np.arange(8, dtype=np.uint8) & 1
        scales = (blocks["scales"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 16, 1, 1)
        d = blocks["d"].astype(np.float32)[:, None, None, None] * (np.float32(0.5) + scales.astype(np.float32))
        values = IQ2_S.values[blocks["qs"] | high << 8] * np.where(negative, -1, 1).astype(np.float32)
        return (d * np.float32(0.25) * values.reshape(-1, 16, 2, 8)).reshape(-1, 256)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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
    from gumba.quants._codebooks import IQ2_S
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    write_entry = entry_writer(IQ2_S)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 82, 82)
            d = read_f16(data, 0)
            for g in range(length // 16):
                out = f32_at(out_address + b * 1024 + g * 64, 16)
                s = np.int32(data[74 + g // 2] >> (g % 2 * 4) & 15)
                scale = d * (np.float32(0.5) + np.float32(s)) * np.float32(0.25)
                for k in range(length // 128):
                    high = np.int64(data[66 + g // 2]) >> (g % 2 * 4 + 2 * k) & 3
                    index = np.int64(data[2 + 2 * g + k]) | high << 8
                    write_entry(index, np.int64(data[34 + 2 * g + k]), np.float32(0), scale, out, 8 * k)
        return 0

    return None, decode


def to_packed(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The signs in the order that registers need; all else as it is."""
    from gumba.quants._codebooks import spread_signs

    blocks = rows.reshape(-1).view(FORMAT.dtype).copy()
    blocks["signs"] = spread_signs(blocks["signs"].reshape(-1, 8, 4)).view(np.uint8)
    return blocks.view(np.uint8).reshape(rows.shape)


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block."""
    from gumba.quants import _codebooks, _registers
    from gumba.simd.value import I32

    lanes, codebook = isa.lanes, _codebooks.IQ2_S
    table = _registers.weight_table(isa, _codebooks.signed_levels(codebook.levels))
    d = _registers.load_f16(s, isa, address)
    for g in range(8):
        low, signs = (s.load(address + (at + 4 * g) * lanes, I32, lanes) for at in (2, 34))
        high, scales = (s.load(address + (at + g // 4 * 4) * lanes, I32, lanes) for at in (66, 74))
        weights = []
        for k in range(4):
            index = (low >> 8 * k) & 255 | _registers.moved(high, 8 * (g % 4) + 2 * k, 8) & 0x300
            entry = codebook.look_up(s, isa, index) | _codebooks.sign_marks(signs, k)
            weights += _codebooks.two_registers(s, isa, table, entry)
        yield table.read(weights, _codebooks.half_scales(d, scales, g % 4))


FORMAT = DotFormat(
    name="iq2_s",
    ggml_type=22,
    block_size=256,
    type_size=82,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 20)),  # d; indexes, signs, high bits and scales in words
    packed_block_size=256,
    to_packed=to_packed,
    expand=True,
    unpack=unpack,
)
