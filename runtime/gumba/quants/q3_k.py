"""Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight. 16 groups of 16 weights, each group with its own scale.

    byte    0 ..  31   hmask             hgfedcba    high bits: bit k of byte i is that of weight 32 k + i
    byte   32 ..  63   qs, first half    ddccbbaa    low 2 bits: a of weights 0..31, b 32..63, c 64..95, d 96..127
    byte   64 ..  95   qs, second half   ddccbbaa    the same for weights 128..255
    byte   96 .. 103   scales            bbbbaaaa    low 4 bits: byte i has a of scale i, b of scale i + 8
    byte  104 .. 107                     ddccbbaa    high 2 bits: byte i has a of scale i, b i + 4, c i + 8, d i + 12
    byte  108 .. 109   d                             scale of the scales, float16, little-endian

    weight[i] = d * (scales[i / 16] - 32) * (q[i] - 4),    q 3 bits, scales 6 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        shift, s = np.array([[0], [2], [4], [6]], np.uint8), blocks["scales"][:, None, :]
        scales = np.concatenate([s[..., :8] & 15, s[..., :8] >> 4], axis=1).reshape(-1, 4, 4) | (s[..., 8:] >> shift & 3) << 4
        low = (blocks["qs"].reshape(-1, 2, 1, 32) >> shift & 3).reshape(-1, 8, 32)
        q = low | (blocks["hmask"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 2
        d = blocks["d"].astype(np.float32)[:, None] * (scales.reshape(-1, 16).astype(np.float32) - 32)
        return (d[:, :, None] * (q.reshape(-1, 16, 16).astype(np.float32) - 4)).reshape(-1, 256)

"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, PackField

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Entry, Inline
    from gumba.quants._registers import BlockRegisters
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    return _encoder(), _decoder()


def _write_block() -> Inline[bool]:
    from gumba.jit.jit import inline
    from gumba.quants._compiled import f32_at, inverse_or_zero, largest_magnitude, u8_at, u32_at, write_f16
    from gumba.quants._group_search import TOO_LARGE
    from gumba.quants._scale_search import rounded

    @inline
    def write_block(x_address: int, d: np.float32, s: NDArray[np.float32], out_address: int, n: int) -> bool:
        """A block of ``d`` and its 16 integers ``s``; True if d is finite (n is 16)."""
        out = u8_at(out_address, 110)
        if largest_magnitude(u32_at(x_address, 256), n * 16) >= TOO_LARGE:
            d = np.float32(np.nan)
        for i in range(108):
            out[i] = np.uint8(0)
        for g in range(16):
            code = np.int32(s[g]) + np.int32(32)
            out[96 + g % 8] |= np.uint8(np.int32(code & np.int32(15)) << np.int32(g // 8 * 4))
            out[104 + g % 4] |= np.uint8(np.int32(code >> np.int32(4)) << np.int32(g // 4 * 2))
            over_step = inverse_or_zero(d * s[g])
            x = f32_at(x_address + g * 64, 16)
            hmask = u8_at(out_address + g % 2 * 16, 16)
            qs = u8_at(out_address + 32 + g // 8 * 32 + g % 2 * 16, 16)
            low_shift, high_shift = np.int32(g // 2 % 4 * 2), np.int32(g // 2)
            for i in range(n):
                q = np.int32(rounded(x[i] * over_step, np.float32(-4), np.float32(3))) + np.int32(4)
                qs[i] |= np.uint8(np.int32(q & np.int32(3)) << low_shift)
                hmask[i] |= np.uint8(np.int32(q >> np.int32(2)) << high_shift)
        return write_f16(out, 108, d)

    return write_block


def _encoder() -> Entry:
    from gumba.quants import _group_search as search
    from gumba.quants._compiled import codec_entry, f32_at
    from gumba.quants._scale_search import GROUPS, across_rows, best_scales, group_row, normalize

    write_block = _write_block()
    low, high = np.float32(-4), np.float32(3)
    limits = low, high, np.float32(-32), np.float32(31), np.float32(0)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        across, weight = across_rows(), across_rows()
        scale, minimum, most = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
        d, dmin = f32_at(search.block_row(), search.BLOCKS), f32_at(search.block_row(), search.BLOCKS)
        s_address = group_row()
        s, m = f32_at(s_address, GROUPS), f32_at(group_row(), GROUPS)
        for first in range(0, n_blocks, search.BLOCKS):
            count = min(search.BLOCKS, n_blocks - first)
            n, x = count * 16, x_address + first * 1024
            normalize(x, n, across, most)
            best_scales(across, n, low, high, scale)
            for g in range(n):
                scale[g] *= most[g]
                minimum[g] = np.float32(0)
            for b in range(count):
                largest = np.float32(0)
                for g in range(b * 16, b * 16 + 16):
                    largest = scale[g] if abs(scale[g]) > abs(largest) else largest
                d[b] = search.in_f16(largest / np.float32(-32))
                dmin[b] = np.float32(0)
            search.transpose(x, n, across)
            search.weigh(across, n, np.float32(1), weight)
            search.round_groups(across, weight, n, limits, d, dmin, scale, minimum, s, m)
            for b in range(count):
                of_block = f32_at(s_address + b * 64, 16)
                out = out_address + (first + b) * 110
                if not write_block(x + b * 1024, d[b], of_block, out, length // 16):
                    not_finite = 1
        return not_finite

    return encode


def _decoder() -> Entry:
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        n = length // 16
        for b in range(n_blocks):
            data = u8_at(data_address + b * 110, 110)
            d = read_f16(data, 108)
            for g in range(16):  # 16 weights with one scale: their bits lie in one run of bytes
                out = f32_at(out_address + b * 1024 + g * 64, 16)
                low = np.int32(np.int32(data[96 + g % 8]) >> np.int32(g // 8 * 4)) & np.int32(15)
                high = np.int32(np.int32(data[104 + g % 4]) >> np.int32(g // 4 * 2)) & np.int32(3)
                scale = d * np.float32(np.int32(low | np.int32(high << np.int32(4))) - np.int32(32))
                qs = data[32 + g // 8 * 32 + g % 2 * 16 : 48 + g // 8 * 32 + g % 2 * 16]
                hmask = data[g % 2 * 16 : g % 2 * 16 + 16]
                low_shift, high_shift = np.int32(g // 2 % 4 * 2), np.int32(g // 2)
                for i in range(n):
                    low = np.int32(np.int32(np.int32(qs[i]) >> low_shift) & np.int32(3))
                    high = np.int32(np.int32(np.int32(hmask[i]) >> high_shift) & np.int32(1))
                    out[i] = scale * np.float32(np.int32(low | np.int32(high << np.int32(2))) - np.int32(4))
        return 0

    return decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. The 3 bits stay unsigned; the 4 is subtracted where a dot product starts.

    They are taken times 8, since activations have the start of a dot product with the offset 32, but not 4.
    """
    from gumba.quants import _registers
    from gumba.simd.value import F32, I8, I32

    lanes = isa.lanes
    d = _registers.load_f16(s, isa, address + 108 * lanes) * 2.0**-27
    low_words = [s.load(address + (96 + 4 * i) * lanes, I32, lanes) for i in range(2)]
    high_word = s.load(address + 104 * lanes, I32, lanes)
    for part in range(8):
        if part % 2 == 0:  # four scales, as signed bytes
            k = part // 2
            low = low_words[k % 2] >> (4 * (k // 2)) & 0x0F0F0F0F
            high = (high_word << 4 if k == 0 else high_word << 2 if k == 1 else high_word >> (2 * k - 4)) & 0x30303030
            four = ((low | high).bits(I8, 4 * lanes) - 32).bits(I32, lanes)
        # A byte moved to the top of a 32-bit element is the scale times 2^24; 2^-3 more is for the weights.
        scales = [(four << (24 - 8 * i) & -(1 << 24)).to(F32) * d for i in (part % 2 * 2, part % 2 * 2 + 1)]
        weights = _registers.two_bits(s, isa, address + 32 * lanes, part, 3)
        masks = _registers.bytes_at(s, isa, address, 8)
        weights = [low | _registers.shift(mask, part - 5) & 32 for low, mask in zip(weights, masks)]
        yield _registers.BlockRegisters(weights, (scales[0], scales[1]), w_max=56, offset=32)


FORMAT = DotFormat(
    name="q3_k",
    ggml_type=11,
    block_size=256,
    type_size=110,
    dtype=np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    loops=loops,
    # The high bits in words of 32 weights, the low bits in words of 16, the scales' bits, d.
    pack_fields=(PackField(0, 4, 8), PackField(32, 4, 16), PackField(96, 4, 3), PackField(108, 2, 1)),
    packed_block_size=256,
    expand=True,
    unpack=unpack,
)
