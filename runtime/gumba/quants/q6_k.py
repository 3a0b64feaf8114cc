"""Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight. 16 groups of 16 weights, each group with its own scale.

    byte    0 ..  63   ql, first half    bbbbaaaa    low 4 bits: a of weights  0.. 63, b of weights 64..127
    byte   64 .. 127   ql, second half   bbbbaaaa    the same for weights 128..191 and 192..255
    byte  128 .. 159   qh, first half    ddccbbaa    high 2 bits: a of weights 0..31, b 32..63, c 64..95, d 96..127
    byte  160 .. 191   qh, second half   ddccbbaa    the same for weights 128..255
    byte  192 .. 207   scales            ssssssss    int8, one for each 16 weights
    byte  208 .. 209   d                             scale of the scales, float16, little-endian

    weight[i] = d * scales[i / 16] * (q[i] - 32),    q 6 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        ql = blocks["ql"].reshape(-1, 2, 1, 64)
        qh = blocks["qh"].reshape(-1, 2, 1, 32)
        low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 16, 16)
        high = (qh >> np.array([[0], [2], [4], [6]], np.uint8) & 3).reshape(-1, 16, 16)
        q = (low | high << 4).astype(np.float32) - 32
        scales = blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32)
        return (scales[:, :, None] * q).reshape(-1, 256)

Quantizing: each group gets its scale of least squared error (``_scale_search``). Then the group scales become int8
multiples of d, and the weights are rounded again, with the stored scales.
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


def _pack_codes() -> Inline[None]:
    from gumba.jit.jit import inline
    from gumba.quants._compiled import u8_at

    @inline
    def pack_codes(q_address: int, out_address: int, n: int) -> None:
        """256 integers 0..63 -> ql and qh (n is 32)."""
        for half in range(2):
            q = u8_at(q_address + half * 128, 128)
            ql = u8_at(out_address + half * 64, 64)
            qh = u8_at(out_address + half * 32 + 128, 32)
            for i in range(n):
                a, b, e, f = np.uint8(q[i]), np.uint8(q[i + 32]), np.uint8(q[i + 64]), np.uint8(q[i + 96])
                ql[i] = np.uint8((a & 15) | ((e & 15) << 4))
                ql[i + 32] = np.uint8((b & 15) | ((f & 15) << 4))
                qh[i] = np.uint8((a >> 4) | ((b >> 4) << 2) | ((e >> 4) << 4) | ((f >> 4) << 6))

    return pack_codes


def _round_block() -> Inline[int]:
    from gumba.jit.jit import inline
    from gumba.quants._compiled import (
        f32_at,
        i8_at,
        inverse_or_zero,
        largest_magnitude,
        read_f16,
        u8_at,
        u32_at,
        write_f16,
    )
    from gumba.quants._scale_search import rounded

    low, high = np.float32(-32), np.float32(31)

    @inline
    def round_block(x_address: int, scale: NDArray[np.float32], out_address: int, q_address: int, n: int) -> int:
        """d and scales of one block from its 16 best ``scale``, then q; not 0 if d is not finite (n is 16)."""
        out = u8_at(out_address, 210)
        stored = i8_at(out_address + 192, 16)
        if largest_magnitude(u32_at(x_address, 256), n * 16) >= np.uint32(0x7F800000):
            write_f16(out, 208, np.float32(np.nan))
            return 1
        largest = np.float32(0)
        for g in range(n):
            largest = scale[g] if abs(scale[g]) > abs(largest) else largest
        finite = write_f16(out, 208, largest / np.float32(-128))
        over_d = inverse_or_zero(read_f16(out, 208))
        for g in range(n):
            q = u8_at(q_address + g * 16, 16)
            s = rounded(scale[g] * over_d, np.float32(-128), np.float32(127))
            stored[g] = np.int8(np.int32(s))
            over_step = inverse_or_zero(read_f16(out, 208) * s)
            group = f32_at(x_address + g * 64, 16)
            for i in range(n):
                nearest = rounded(group[i] * over_step, low, high)
                q[i] = np.uint8(np.int32(nearest) + np.int32(32))
        return 0 if finite else 1

    return round_block


def _encoder() -> Entry:
    from gumba.quants._compiled import codec_entry, f32_at, scratch
    from gumba.quants._scale_search import GROUPS, across_rows, best_scales, group_row, normalize

    pack_codes, round_block, codes = _pack_codes(), _round_block(), scratch(256)
    low, high = np.float32(-32), np.float32(31)

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        not_finite = 0
        across, largest_address, scale_address = across_rows(), group_row(), group_row()
        q_address = codes()
        largest, scale = f32_at(largest_address, GROUPS), f32_at(scale_address, GROUPS)
        for b in range(0, n_blocks, GROUPS // 16):
            n = min(GROUPS // 16, n_blocks - b)
            normalize(x_address + b * 1024, n * 16, across, largest)
            best_scales(across, n * 16, low, high, scale)
            for g in range(n * 16):
                scale[g] = scale[g] * largest[g]
            for k in range(n):
                of_block = f32_at(scale_address + k * 64, 16)
                out = out_address + (b + k) * 210
                not_finite |= round_block(x_address + (b + k) * 1024, of_block, out, q_address, length // 16)
                pack_codes(q_address, out, length // 8)
        return not_finite

    return encode


def _decoder() -> Entry:
    from gumba.quants._compiled import codec_entry, f32_at, i8_at, read_f16, u8_at

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        n = length // 16
        for b in range(n_blocks):
            data = u8_at(data_address + b * 210, 210)
            d = read_f16(data, 208)
            for part in range(16):  # 16 weights with one scale: bits of ql and qh that lie in one run of bytes
                half, group = part // 8, part % 8
                out = f32_at(out_address + b * 1024 + part * 64, 16)
                scale = d * np.float32(i8_at(data_address + b * 210 + 192, 16)[part])
                ql = data[half * 64 + group % 4 * 16 : half * 64 + group % 4 * 16 + 16]
                qh = data[128 + half * 32 + group % 2 * 16 : 144 + half * 32 + group % 2 * 16]
                low_shift, high_shift = np.int32(group // 4 * 4), np.int32(group // 2 * 2)
                for i in range(n):
                    low = np.int32(np.int32(np.int32(ql[i]) >> low_shift) & np.int32(15))
                    high = np.int32(np.int32(np.int32(qh[i]) >> high_shift) & np.int32(3))
                    out[i] = scale * np.float32(np.int32(low | np.int32(high << np.int32(4))) - np.int32(32))
        return 0

    return decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: 8 parts of 32 weights, of which four share 8 registers of high bits, and two of those their low bits.

    The 6 bits stay unsigned; the 32 is subtracted where a dot product starts.
    """
    from gumba.quants import _registers
    from gumba.simd.value import F32, I32

    lanes = isa.lanes
    d = _registers.load_f16(s, isa, address + 208 * lanes)
    for part in range(8):
        half, k = divmod(part, 4)
        packed = _registers.bytes_at(s, isa, address + (64 * half + 32 * (k % 2)) * lanes, 8)
        low = [(_registers.shift(p, 4) if k >= 2 else p) & 15 for p in packed]
        high = _registers.bytes_at(s, isa, address + (128 + 32 * half) * lanes, 8)
        weights = [a | _registers.shift(b, 2 * k - 4) & 48 for a, b in zip(low, high)]
        words = s.load(address + (192 + part // 2 * 4) * lanes, I32, lanes)  # scales of four groups
        first, second = ((words << 24 - 8 * (part % 2 * 2 + i)).shift_right_signed(24).to(F32) for i in range(2))
        yield _registers.BlockRegisters(weights, (d * first, d * second), w_max=63, offset=32)


FORMAT = DotFormat(
    name="q6_k",
    ggml_type=14,
    block_size=256,
    type_size=210,
    dtype=np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
    loops=loops,
    packed_block_size=256,
    # low bits in words of 8 weights, high bits in words of 16, scales in words of 4, d
    pack_fields=(PackField(0, 4, 32), PackField(128, 4, 16), PackField(192, 4, 4), PackField(208, 2, 1)),
    expand=True,
    unpack=unpack,
)
