"""IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight. Groups of 4 magnitudes from a codebook of 256, and signs.

    byte   0   1   2        3               65       66       69               97
           d   d   index 0  index 1         index 63 signs and scale   ...
           float16 uint8    uint8    ...    uint8    uint32                    ...      4 bytes for each 32 weights

           bit    31   28 27   21 20   14 13    7 6     0
                  ssss    3333333 2222222 1111111 0000000       the word: scale s, 7 signs for each 8 weights

    d scale, float16, little-endian; index of 4 magnitudes in the codebook (4, 12, 20, 28, 36, 44, 52, 62); bit i of 7 signs is
    set where weight i of 8 is negative; weight 7 is negative where that makes their number even

    weight[32 g + 8 l + i] = d * (0.5 + s[g]) / 2 * sign[g][l][i] * codebook[index[8 g + 2 l + i / 4]][i % 4]

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        from gumba.quants._codebooks import IQ3_XXS
        words = blocks["signs"][:, :, None, None]
        signs = words >> np.arange(28, dtype=np.uint32).reshape(4, 7) & 1
        odd = np.concatenate([signs, signs.sum(axis=-1, keepdims=True) % 2], axis=-1)
        d = blocks["d"].astype(np.float32)[:, None, None, None] * (np.float32(0.5) + (words >> 28).astype(np.float32))
        values = IQ3_XXS.values[blocks["qs"]].reshape(-1, 8, 4, 8) * np.where(odd, -1, 1).astype(np.float32)
        return (d * np.float32(0.5) * values).reshape(-1, 256)
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
    from gumba.quants._codebook_loops import entry_writer, with_parity, word_at
    from gumba.quants._codebooks import IQ3_XXS
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    write_entry = entry_writer(IQ3_XXS)

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = u8_at(data_address + b * 98, 98)
            d = read_f16(data, 0)
            for g in range(length // 32):
                out = f32_at(out_address + b * 1024 + g * 128, 32)
                word = word_at(data, 66 + 4 * g)
                scale = d * (np.float32(0.5) + np.float32(word >> 28)) * np.float32(0.5)
                for k in range(length // 32):
                    signs = with_parity(word >> k // 2 * 7 & 127) >> k % 2 * 4
                    write_entry(data[2 + 8 * g + k], signs, np.float32(0), scale, out, 4 * k)
        return 0

    return None, decode


def to_packed(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The signs in the order that registers need; all else as it is."""
    from gumba.quants._codebooks import spread_signs

    blocks = rows.reshape(-1).view(FORMAT.dtype).copy()
    words = blocks["signs"]
    signs = (words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127).astype(np.uint8)
    blocks["signs"] = spread_signs(signs) | words & 0xF0000000
    return blocks.view(np.uint8).reshape(rows.shape)


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block."""
    from gumba.quants import _codebooks, _registers
    from gumba.simd.value import F32, I32

    lanes, codebook = isa.lanes, _codebooks.IQ3_XXS
    table = _registers.weight_table(isa, _codebooks.signed_levels(codebook.levels))
    d = _registers.load_f16(s, isa, address)
    for g in range(8):
        indexes = [s.load(address + (2 + 8 * g + at) * lanes, I32, lanes) for at in (0, 4)]
        word = s.load(address + (66 + 4 * g) * lanes, I32, lanes)
        signs = _codebooks.complete_signs(word)
        weights = []
        for k in range(4):  # two indexes name 8 weights
            pair = [(indexes[k // 2] >> (16 * (k % 2) + 8 * i)) & 255 for i in range(2)]
            weights += _codebooks.two_entries(s, isa, table, codebook, pair, _codebooks.sign_marks(signs, k))
        yield table.read(weights, d * ((word >> 28).to(F32) + 0.5) * 0.5)


FORMAT = DotFormat(
    name="iq3_xxs",
    ggml_type=18,
    block_size=256,
    type_size=98,
    dtype=np.dtype([("d", "<f2"), ("qs", "u1", 64), ("signs", "<u4", 8)]),
    loops=loops,
    pack_fields=(PackField(0, 2, 1), PackField(2, 4, 24)),  # d; indexes in words of 4, signs with scales
    packed_block_size=256,
    to_packed=to_packed,
    expand=True,
    unpack=unpack,
)
