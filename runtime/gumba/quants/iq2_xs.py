"""IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight. Groups of 8 magnitudes from a codebook of 512, and signs.

    byte   0   1   2   3    4   5           64  65   66       67               73
           d   d   group 0  group 1         group 31 bbbbaaaa bbbbaaaa         bbbbaaaa
           float16 uint16   uint16   ...    uint16   s1  s0   s3  s2   ...     s15 s14       scales s, 4 bits

           bit    15    9 8       0
                  sssssss iiiiiiiii       a group of 8 weights: 7 signs, index of 8 magnitudes in the codebook (8, 25, 43)

    d scale, float16, little-endian; bit i of the signs is set where weight i is negative, for the first 7; weight 7 is
    negative where that makes their number even

    weight[16 g + 8 l + i] = d * (0.5 + s[g]) / 4 * sign[2 g + l][i] * codebook[index[2 g + l]][i]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ2_XS
        signs = blocks["groups"][:, :, None] >> np.arange(9, 16, dtype=np.uint16) & 1
        odd = np.concatenate([signs, signs.sum(axis=-1, keepdims=True) % 2], axis=-1)
        scales = (blocks["scales"][:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 16, 1, 1)
        d = blocks["d"].astype(np.float32)[:, None, None, None] * (np.float32(0.5) + scales.astype(np.float32))
        values = IQ2_XS.values[blocks["groups"] & 511] * np.where(odd, -1, 1).astype(np.float32)
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
    from gumba.quants._codebook_loops import entry_writer, with_parity
    from gumba.quants._codebooks import IQ2_XS
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    write_entry = entry_writer(IQ2_XS)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 74, 74)
            d = read_f16(data, 0)
            for g in range(length // 16):
                out = f32_at(out_address + b * 1024 + g * 64, 16)
                s = np.int32(data[66 + g // 2] >> (g % 2 * 4) & 15)
                scale = d * (np.float32(0.5) + np.float32(s)) * np.float32(0.25)
                for k in range(length // 128):
                    group = np.int64(data[2 + 4 * g + 2 * k]) | np.int64(data[3 + 4 * g + 2 * k]) << 8
                    write_entry(group & 511, with_parity(group >> 9), np.float32(0), scale, out, 8 * k)
        return 0

    return None, decode


def to_packed(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each 32 weights two words instead of 4 groups: the low bits of the indexes; signs in the order that registers need,
    in the last 4 bits the high ones of the indexes."""
    from gumba.quants._codebooks import spread_signs

    blocks = rows.reshape(-1).view(FORMAT.dtype).copy()
    groups = blocks["groups"].reshape(-1, 8, 4)
    high = np.bitwise_or.reduce((groups >> 8 & 1).astype(np.uint32) << np.arange(28, 32, dtype=np.uint32), axis=-1)
    words = np.empty((len(blocks), 8, 2), np.uint32)
    words[:, :, 0] = np.ascontiguousarray(groups.astype(np.uint8)).view(np.uint32)[:, :, 0]
    words[:, :, 1] = spread_signs((groups >> 9).astype(np.uint8)) | high
    blocks["groups"] = words.reshape(len(blocks), -1).view(np.uint16)
    return blocks.view(np.uint8).reshape(rows.shape)


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block."""
    from gumba.quants import _codebooks, _registers
    from gumba.simd.value import I32

    lanes, codebook = isa.lanes, _codebooks.IQ2_XS
    table = _registers.weight_table(isa, _codebooks.signed_levels(codebook.levels))
    d = _registers.load_f16(s, isa, address)
    for g in range(8):
        low, word = (s.load(address + (2 + 8 * g + at) * lanes, I32, lanes) for at in (0, 4))
        scales = s.load(address + (66 + g // 4 * 4) * lanes, I32, lanes)
        signs = _codebooks.complete_signs(word)
        weights = []
        for k in range(4):
            entry = codebook.look_up(s, isa, (low >> 8 * k) & 255 | (word >> (20 + k)) & 256)
            weights += _codebooks.two_registers(s, isa, table, entry | _codebooks.sign_marks(signs, k))
        yield table.read(weights, _codebooks.half_scales(d, scales, g % 4))


FORMAT = DotFormat(
    name="iq2_xs",
    ggml_type=17,
    block_size=256,
    type_size=74,
    dtype=np.dtype([("d", "<f2"), ("groups", "<u2", 32), ("scales", "u1", 8)]),
    loops=loops,
    # d; in turn the low bits of 4 indexes, their signs and high bits; the scales.
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 16), PackField(66, 4, 2)),
    packed_block_size=256,
    to_packed=to_packed,
    expand=True,
    unpack=unpack,
)
