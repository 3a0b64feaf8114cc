"""Q2_K: 256 weights in 84 bytes, 2.625 bits per weight. 16 groups of 16 weights, each group with its scale and minimum.

    byte    0 .. 15   scales            mmmmssss    of 16 weights each: s scale, m minimum
    byte   16 .. 47   qs, first half    ddccbbaa    2 bits each: a of weights 0..31, b 32..63, c 64..95, d 96..127
    byte   48 .. 79   qs, second half   ddccbbaa    the same for weights 128..255
    byte   80 .. 81   d                             scale of the scales, float16, little-endian
    byte   82 .. 83   dmin                          scale of the minimums, float16, little-endian

    weight[i] = d * s[i / 16] * q[i] - dmin * m[i / 16],    q 2 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        qs = blocks["qs"].reshape(-1, 2, 1, 32)
        q = (qs >> np.array([[0], [2], [4], [6]], np.uint8) & 3).reshape(-1, 16, 16)
        scale = blocks["d"].astype(np.float32)[:, None] * (blocks["scales"] & 15).astype(np.float32)
        minimum = blocks["dmin"].astype(np.float32)[:, None] * (blocks["scales"] >> 4).astype(np.float32)
        return (scale[:, :, None] * q.astype(np.float32) - minimum[:, :, None]).reshape(-1, 256)

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
    def write_block(
        x_address: int,
        d: np.float32,
        dmin: np.float32,
        s: NDArray[np.float32],
        m: NDArray[np.float32],
        out_address: int,
        n: int,
    ) -> bool:
        """A block of ``d``, ``dmin`` and their 16 multiples ``s`` and ``m``; True if all is finite (n is 16)."""
        out = u8_at(out_address, 84)
        if largest_magnitude(u32_at(x_address, 256), n * 16) >= TOO_LARGE:
            d = np.float32(np.nan)
        for i in range(80):
            out[i] = np.uint8(0)
        for g in range(16):
            out[g] = np.uint8(np.int32(s[g]) | np.int32(np.int32(m[g]) << np.int32(4)))
            over_step, minimum = inverse_or_zero(d * s[g]), dmin * m[g]
            x = f32_at(x_address + g * 64, 16)
            qs = u8_at(out_address + 16 + g // 8 * 32 + g % 2 * 16, 16)
            shift = np.int32(g // 2 % 4 * 2)
            for i in range(n):
                q = rounded((x[i] + minimum) * over_step, np.float32(0), np.float32(3))
                qs[i] |= np.uint8(np.int32(q) << shift)
        return write_f16(out, 80, d) & write_f16(out, 82, dmin)

    return write_block


def _encoder() -> Entry:
    from gumba.quants import _group_search as search
    from gumba.quants._compiled import codec_entry, f32_at
    from gumba.quants._scale_search import GROUPS, across_rows, group_row

    write_block = _write_block()
    limits = np.float32(0), np.float32(3), np.float32(0), np.float32(15), np.float32(15)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        across, weight = across_rows(), across_rows()
        scale, minimum = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
        d, dmin = f32_at(search.block_row(), search.BLOCKS), f32_at(search.block_row(), search.BLOCKS)
        s_address, m_address = group_row(), group_row()
        s, m = f32_at(s_address, GROUPS), f32_at(m_address, GROUPS)
        for first in range(0, n_blocks, search.BLOCKS):
            count = min(search.BLOCKS, n_blocks - first)
            n, x = count * 16, x_address + first * 1024
            search.transpose(x, n, across)
            search.weigh(across, n, np.float32(0.5), weight)
            search.fit_ranges(across, weight, n, np.float32(3), scale, minimum)
            for b in range(count):
                d[b], dmin[b] = np.float32(0), np.float32(0)
                for g in range(b * 16, b * 16 + 16):
                    d[b] = scale[g] if scale[g] > d[b] else d[b]
                    dmin[b] = minimum[g] if minimum[g] > dmin[b] else dmin[b]
                d[b], dmin[b] = search.in_f16(d[b] / np.float32(15)), search.in_f16(dmin[b] / np.float32(15))
            search.round_groups(across, weight, n, limits, d, dmin, scale, minimum, s, m)
            for b in range(count):
                s_block, m_block = f32_at(s_address + b * 64, 16), f32_at(m_address + b * 64, 16)
                out = out_address + (first + b) * 84
                if not write_block(x + b * 1024, d[b], dmin[b], s_block, m_block, out, length // 16):
                    not_finite = 1
        return not_finite

    return encode


def _decoder() -> Entry:
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        n = length // 16
        for b in range(n_blocks):
            data = u8_at(data_address + b * 84, 84)
            d, dmin = read_f16(data, 80), read_f16(data, 82)
            for g in range(16):  # 16 weights with one scale: their bits lie in one run of bytes
                out = f32_at(out_address + b * 1024 + g * 64, 16)
                scale = d * np.float32(np.int32(data[g] & 15))
                minimum = dmin * np.float32(np.int32(data[g] >> 4))
                qs = data[16 + g // 8 * 32 + g % 2 * 16 : 32 + g // 8 * 32 + g % 2 * 16]
                shift = np.int32(g // 2 % 4 * 2)
                for i in range(n):
                    q = np.int32(np.int32(np.int32(qs[i]) >> shift) & np.int32(3))
                    out[i] = scale * np.float32(q) - minimum
        return 0

    return decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block. A minimum is what is added: below zero."""
    from gumba.quants import _registers
    from gumba.simd.value import F32, I32

    lanes = isa.lanes
    d = _registers.load_f16(s, isa, address + 80 * lanes)
    minus = _registers.load_f16(s, isa, address + 82 * lanes) * -1.0
    for part in range(8):
        four = s.load(address + part // 2 * 4 * lanes, I32, lanes)  # scales and minimums of four groups
        places = [part % 2 * 16, part % 2 * 16 + 8]
        scales = [(four >> place & 15).to(F32) * d for place in places]
        minimums = [(four >> (place + 4) & 15).to(F32) * minus for place in places]
        weights = _registers.two_bits(s, isa, address + 16 * lanes, part)
        yield _registers.BlockRegisters(weights, (scales[0], scales[1]), w_max=3, minimum=(minimums[0], minimums[1]))


FORMAT = DotFormat(
    name="q2_k",
    ggml_type=10,
    block_size=256,
    type_size=84,
    dtype=np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    loops=loops,
    # Scales and minimums in words of 4 groups, the codes in words of 16, d, dmin.
    pack_fields=(PackField(0, 4, 4), PackField(16, 4, 16), PackField(80, 2, 1), PackField(82, 2, 1)),
    packed_block_size=256,
    expand=True,
    unpack=unpack,
)
