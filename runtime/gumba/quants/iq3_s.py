"""IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight. Groups of 4 magnitudes from a codebook of 512, and signs.

    byte   0   1   2        65       66       73       74       105      106              109
           d   d   i0  ...  i63      hhhhhhhh hhhhhhhh s0  ...  s31      bbbbaaaa ...     bbbbaaaa
           float16 low bits of index 7......0 63...56  signs             s1  s0   ...     s7  s6

    d scale, float16, little-endian; i and h the low 8 bits and the high bit of an index of 4 magnitudes in the codebook (1, 3, 5
    ... 15); bit i of a byte of signs is set where weight i of 8 is negative; s scales of 4 bits

    weight[32 g + 4 k + i] = d * (1 + 2 * s[g]) * sign[8 g + k][i] * codebook[index[8 g + k]][i]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ3_S
        high = (blocks["qh"][:, :, None] >> np.arange(8, dtype=np.uint8) & 1).reshape(-1, 64).astype(np.uint16)
        negative = (blocks["signs"][:, :, None] >> np.arange(8, dtype=np.uint8) & 1).reshape(-1, 8, 32)
        scales = (blocks["scales"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8, 1)
        d = blocks["d"].astype(np.float32)[:, None, None] * (1 + 2 * scales.astype(np.float32))
        values = IQ3_S.values[blocks["qs"] | high << 8].reshape(-1, 8, 32)
        return (d * values * np.where(negative, -1, 1).astype(np.float32)).reshape(-1, 256)
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
    from gumba.quants._codebooks import IQ3_S
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    write_entry = entry_writer(IQ3_S)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 110, 110)
            d = read_f16(data, 0)
            for g in range(length // 32):
                out = f32_at(out_address + b * 1024 + g * 128, 32)
                scale = d * np.float32(1 + 2 * np.int32(data[106 + g // 2] >> (g % 2 * 4) & 15))
                for k in range(length // 32):
                    index = np.int64(data[2 + 8 * g + k]) | (np.int64(data[66 + g]) >> k & 1) << 8
                    signs = np.int64(data[74 + 4 * g + k // 2]) >> k % 2 * 4
                    write_entry(index, signs, np.float32(0), scale, out, 4 * k)
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
    from gumba.simd.value import F32, I32

    lanes, codebook = isa.lanes, _codebooks.IQ3_S
    table = _registers.weight_table(isa, _codebooks.signed_levels(codebook.levels))
    d = _registers.load_f16(s, isa, address)
    scales = s.load(address + 106 * lanes, I32, lanes)
    for g in range(8):
        low = [s.load(address + (2 + 8 * g + at) * lanes, I32, lanes) for at in (0, 4)]
        high = s.load(address + (66 + g // 4 * 4) * lanes, I32, lanes)
        signs = s.load(address + (74 + 4 * g) * lanes, I32, lanes)
        weights = []
        for k in range(4):  # two indexes name 8 weights
            pair = [
                (low[k // 2] >> (16 * (k % 2) + 8 * i)) & 255
                | _registers.moved(high, 8 * (g % 4) + 2 * k + i, 8) & 0x100
                for i in range(2)
            ]
            weights += _codebooks.two_entries(s, isa, table, codebook, pair, _codebooks.sign_marks(signs, k))
        yield table.read(weights, d * ((((scales >> 4 * g) & 15) << 1) + 1).to(F32))


FORMAT = DotFormat(
    name="iq3_s",
    ggml_type=21,
    block_size=256,
    type_size=110,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 27)),  # d; indexes, their high bits, signs and scales in words
    packed_block_size=256,
    to_packed=to_packed,
    expand=True,
    unpack=unpack,
)
