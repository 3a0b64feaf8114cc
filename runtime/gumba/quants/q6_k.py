"""Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight. 16 groups of 16 weights, each group with its own scale.

    byte    0 ..  63   ql, first half    bbbbaaaa    low 4 bits: a of weights  0.. 63, b of weights 64..127
    byte   64 .. 127   ql, second half   bbbbaaaa    the same for weights 128..191 and 192..255
    byte  128 .. 159   qh, first half    ddccbbaa    high 2 bits: a of weights 0..31, b 32..63, c 64..95, d 96..127
    byte  160 .. 191   qh, second half   ddccbbaa    the same for weights 128..255
    byte  192 .. 207   scales            ssssssss    int8, one for each 16 weights
    byte  208 .. 209   d                             scale of the scales, float16, little-endian

    weight[i] = d * scales[i / 16] * (q[i] - 32),    q 6 bits

Quantizing: each group looks for the scale of least squared error, large weights counting more (by their square). For a
fixed rounding to integers that scale is known exactly (weighted least squares), so a few roundings are tried: the ones
that put the group's largest weight near the end of the range. Then the group scales become int8 multiples of d, and the
weights are rounded once more with what was stored. This is the idea of ggml's reference quantizer, not its bits: its 19
places 0.1 apart cost three times as much and leave 0.6 % more error on normal weights than 7 places 0.5 apart.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "q6_k"
GGML_TYPE = 14
BLOCK_SIZE = 256
TYPE_SIZE = 210
DTYPE = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

#: Where a group's largest weight may land: -32 and so many places around it, so far apart.
_TRIES = 7
_SPACING = 0.5
#: Groups worked on at a time: 16 blocks.
_LANES = 256
#: A group below this is stored as zeros.
_TINY = np.float32(1e-30)


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
    from gumba.quants import _compiled as c

    codec_entry, floats_at, words_at, bytes_at = c.codec_entry, c.floats_at, c.words_at, c.bytes_at
    int8s_at, largest_size, inverse = c.int8s_at, c.largest_size, c.inverse
    read_half, write_half = c.read_half, c.write_half
    tries, spacing, tiny, lanes, row_bytes = _TRIES, np.float32(_SPACING), _TINY, _LANES, 4 * _LANES
    all_rows, one_row, codes = c.scratch(16 * row_bytes), c.scratch(row_bytes), c.scratch(BLOCK_SIZE)
    to_integer = np.float32(3 << 22)  # beside it, floats have no room for a fraction

    @inline
    def rounded(x: float, low: float, high: float) -> Any:
        """x to the nearest integer, ties to even, within low..high; NaN gives low."""
        x = x if x > low else low
        x = x if x < high else high
        return (x + to_integer) - to_integer

    @inline
    def normalised(x_address: int, n: int, across_address: int, largest: Any) -> None:
        """n groups of 16 weights -> across [16 weights, _LANES groups], each divided by its group's ``largest``."""
        for g in range(n):
            group = floats_at(x_address + g * 64, 16)
            most = np.float32(0)
            for i in range(16):
                most = group[i] if abs(group[i]) > abs(most) else most
            largest[g] = most
            over_most = np.float32(1) / most if abs(most) > tiny else np.float32(0)
            for i in range(16):
                floats_at(across_address + i * row_bytes, lanes)[g] = group[i] * over_most

    @inline
    def best_scales(across_address: int, n: int, scale: Any) -> None:
        """scale[g] = what makes scale * integers closest to group g. Groups lie in the lanes of a vector."""
        product, square, best = floats_at(one_row(), lanes), floats_at(one_row(), lanes), floats_at(one_row(), lanes)
        for g in range(n):
            best[g] = np.float32(-1)
            scale[g] = np.float32(0)
        for t in range(tries):
            steps = np.float32(-32) + spacing * np.float32(t - tries // 2)
            for g in range(n):
                product[g] = np.float32(0)
                square[g] = np.float32(0)
            for i in range(16):
                row = floats_at(across_address + i * row_bytes, lanes)
                for g in range(n):
                    x = row[g]
                    q = rounded(x * steps, np.float32(-32), np.float32(31))
                    product[g] += x * x * x * q
                    square[g] += x * x * q * q
            for g in range(n):
                fit = product[g] / square[g] if square[g] > np.float32(0) else np.float32(0)
                gain = fit * product[g]  # how much of the weighted sum of squares it explains
                scale[g] = fit if gain > best[g] else scale[g]
                best[g] = gain if gain > best[g] else best[g]

    @inline
    def pack(q_address: int, out_address: int, n: int) -> None:
        """256 integers 0..63 -> ql and qh (n is 32)."""
        for half in range(2):
            q = bytes_at(q_address + half * 128, 128)
            ql = bytes_at(out_address + half * 64, 64)
            qh = bytes_at(out_address + half * 32 + 128, 32)
            for i in range(n):
                a, b, e, f = np.uint8(q[i]), np.uint8(q[i + 32]), np.uint8(q[i + 64]), np.uint8(q[i + 96])
                ql[i] = np.uint8((a & 15) | ((e & 15) << 4))
                ql[i + 32] = np.uint8((b & 15) | ((f & 15) << 4))
                qh[i] = np.uint8((a >> 4) | ((b >> 4) << 2) | ((e >> 4) << 4) | ((f >> 4) << 6))

    @inline
    def round_block(x_address: int, scale: Any, out_address: int, q_address: int, n: int) -> Any:
        """d and scales of one block from the 16 scales found, then q; not 0 if d is not finite (n is 16)."""
        out = bytes_at(out_address, 210)
        stored = int8s_at(out_address + 192, 16)
        if largest_size(words_at(x_address, 256), n * 16) >= np.uint32(0x7F800000):
            write_half(out, 208, np.float32(np.nan))
            return 1
        largest = np.float32(0)
        for g in range(n):
            largest = scale[g] if abs(scale[g]) > abs(largest) else largest
        finite = write_half(out, 208, largest / np.float32(-128))
        over_d = inverse(read_half(out, 208))
        for g in range(n):
            q = bytes_at(q_address + g * 16, 16)
            s = rounded(scale[g] * over_d, np.float32(-128), np.float32(127))
            stored[g] = np.int8(np.int32(s))
            over_step = inverse(read_half(out, 208) * s)
            group = floats_at(x_address + g * 64, 16)
            for i in range(n):
                nearest = rounded(group[i] * over_step, np.float32(-32), np.float32(31))
                q[i] = np.uint8(np.int32(nearest) + np.int32(32))
        return 0 if finite else 1

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        strange = 0
        across, largest_address, scale_address = all_rows(), one_row(), one_row()
        q_address = codes()
        largest, scale = floats_at(largest_address, lanes), floats_at(scale_address, lanes)
        for b in range(0, n_blocks, lanes // 16):
            n = min(lanes // 16, n_blocks - b)
            normalised(x_address + b * 1024, n * 16, across, largest)
            best_scales(across, n * 16, scale)
            for g in range(n * 16):
                scale[g] = scale[g] * largest[g]
            for k in range(n):
                of_block = floats_at(scale_address + k * 64, 16)
                out = out_address + (b + k) * 210
                strange |= round_block(x_address + (b + k) * 1024, of_block, out, q_address, length // 16)
                pack(q_address, out, length // 8)
        return strange

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        n = length // 16
        for b in range(n_blocks):
            data = bytes_at(data_address + b * 210, 210)
            d = read_half(data, 208)
            for part in range(16):  # 16 weights with one scale: bits of ql and qh that lie in one run of bytes
                half, group = part // 8, part % 8
                out = floats_at(out_address + b * 1024 + part * 64, 16)
                scale = d * np.float32(int8s_at(data_address + b * 210 + 192, 16)[part])
                ql = data[half * 64 + group % 4 * 16 : half * 64 + group % 4 * 16 + 16]
                qh = data[128 + half * 32 + group % 2 * 16 : 144 + half * 32 + group % 2 * 16]
                low_shift, high_shift = np.int32(group // 4 * 4), np.int32(group // 2 * 2)
                for i in range(n):
                    low = np.int32(np.int32(np.int32(ql[i]) >> low_shift) & np.int32(15))
                    high = np.int32(np.int32(np.int32(qh[i]) >> high_shift) & np.int32(3))
                    out[i] = scale * np.float32(np.int32(low | np.int32(high << np.int32(4))) - np.int32(32))
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: int8 blocks (``gumba.backends.cpu.kernels.activations_q8``).
ACTIVATION = "q8"
#: Before packing, each block becomes 8 smaller ones of 32 weights and 28 bytes (``to_packed``).
PACKED_BLOCK_SIZE = 32
#: What is packed of such a block: (byte offset, bytes of an element, elements): d, two scales, low bits, high bits.
PACK_FIELDS = ((0, 2, 1), (2, 1, 1), (3, 1, 1), (4, 4, 4), (20, 4, 2))


def to_packed(rows: np.ndarray) -> np.ndarray:
    """uint8 [n, bytes of Q6_K] -> uint8 [n, bytes of the smaller blocks].

    byte 0..1 d, 2..3 scales of weights 0..15 and 16..31, 4..19 low bits as in Q4_0 (weight i and weight i + 16 in byte i),
    20..27 high bits: bits 2 k of byte m are those of weight m + 8 k.
    """
    blocks = rows.reshape(-1, TYPE_SIZE)
    ql = blocks[:, :128].reshape(-1, 2, 2, 32)  # [block, half, part, weight]
    qh = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.stack([ql & 15, ql >> 4], axis=2).reshape(-1, 8, 32)  # halves of 128: low nibbles first, then high
    high = ((qh >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3).reshape(-1, 8, 32)
    out = np.empty((len(blocks), 8, 28), np.uint8)
    out[:, :, 0:2] = blocks[:, None, 208:210]
    out[:, :, 2:4] = blocks[:, 192:208].reshape(-1, 8, 2)
    out[:, :, 4:20] = low[:, :, :16] | low[:, :, 16:] << 4
    parts = high.reshape(-1, 8, 4, 8)
    out[:, :, 20:28] = parts[:, :, 0] | parts[:, :, 1] << 2 | parts[:, :, 2] << 4 | parts[:, :, 3] << 6
    return out.reshape(len(rows), -1)


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """A packed block in registers: 6 bits unsigned, the 32 is taken off where a dot product starts."""
    from gumba.quants import _registers
    from gumba.simd.value import I8, I32

    lanes = isa.lanes
    sub = tuple(s.load(address + (2 + i) * lanes, I8, lanes).to(I32) for i in range(2))
    weights = _registers.nibbles(s, isa, address + 4 * lanes)
    high = _registers.bytes_at(s, isa, address + 20 * lanes, 2)
    for j in range(8):  # register j holds columns 4 j .. 4 j + 3: bytes of word j % 2, bits 2 (j / 2)
        weights[j] = weights[j] | (_registers.shift(high[j % 2], 2 * (j // 2) - 4) & 0x30)
    return _registers.BlockRegisters(weights, _registers.load_f16(s, isa, address), w_max=63, offset=32, sub=sub)
