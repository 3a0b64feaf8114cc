"""Q4_K: 256 weights in 144 bytes, 4.5 bits per weight. 8 groups of 32 weights, each group with its scale and minimum.

    byte    0 ..   1   d       scale of the scales, float16, little-endian
    byte    2 ..   3   dmin    scale of the minimums, float16
    byte    4 ..  15   scales  s and m of each group, 6 bits each (``_k_scales``)
    byte   16 ..  47   qs      bbbbaaaa    a of weights 0..31, b of weights 32..63
    byte   48 .. 143           the same for weights 64..127, 128..191, 192..255

    weight[i] = d * s[i / 32] * q[i] - dmin * m[i / 32],    q 4 bits

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 256]
        a, b, c = (blocks["scales"][:, i : i + 4] for i in (0, 4, 8))
        scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1) * blocks["d"].astype(np.float32)[:, None]
        minimum = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1) * blocks["dmin"].astype(np.float32)[:, None]
        qs = blocks["qs"].reshape(-1, 4, 1, 32)
        q = np.concatenate([qs & 15, qs >> 4], axis=2).reshape(-1, 8, 32)
        return (scale[:, :, None] * q - minimum[:, :, None]).reshape(-1, 256)

Quantizing: each group gets its scale and minimum of least squared error, both become 6-bit multiples, and the weights are
rounded with what is stored (``_scale_minimum_search``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import DotFormat, PackField

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.jit.jit import Entry
    from gumba.quants._registers import BlockRegisters
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
    from gumba.quants._compiled import codec_entry, f32_at, read_f16, u8_at
    from gumba.quants._k_scales import scale_and_minimum
    from gumba.quants._scale_minimum_search import encoder

    scale_of = scale_and_minimum()

    @inline
    def pack_codes(codes: NDArray[np.uint8], out: NDArray[np.uint8], n: int) -> None:
        for part in range(0, 8, 2):
            for i in range(n):
                out[16 + part * 16 + i] = np.uint8(codes[part * 32 + i] | np.uint8(codes[part * 32 + 32 + i] << 4))

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        n = length // 8
        for b in range(n_blocks):
            data = u8_at(data_address + b * 144, 144)
            d, dmin = read_f16(data, 0), read_f16(data, 2)
            for part in range(8):
                s, m = scale_of(data[4:16], part)
                scale, minimum = d * s, dmin * m
                qs = data[16 + part // 2 * 32 : 48 + part // 2 * 32]
                shift = np.int32(part % 2 * 4)
                out = f32_at(out_address + b * 1024 + part * 128, 32)
                for i in range(n):
                    out[i] = scale * np.float32(np.int32(np.int32(np.int32(qs[i]) >> shift) & np.int32(15))) - minimum
        return 0

    return encoder(4, 144, pack_codes), decode


def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
    """A packed block: 8 groups, of which two share 8 registers of nibbles."""
    from gumba.quants import _registers
    from gumba.quants._k_scales import load_scales

    lanes = isa.lanes
    d, dmin = (_registers.load_f16(s, isa, address + 2 * lanes * i) for i in range(2))
    for part, (scale, minimum) in enumerate(load_scales(s, isa, d, dmin, address + 4 * lanes)):
        packed = _registers.bytes_at(s, isa, address + (16 + part // 2 * 32) * lanes, 8)
        weights = [(_registers.shift(p, 4) if part % 2 else p) & 15 for p in packed]
        yield _registers.BlockRegisters(weights, scale, w_max=15, minimum=minimum)


FORMAT = DotFormat(
    name="q4_k",
    ggml_type=12,
    block_size=256,
    type_size=144,
    dtype=np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    loops=loops,
    packed_block_size=256,
    # d, dmin, the scales, the nibbles in words of 8
    pack_fields=(PackField(0, 2, 1), PackField(2, 2, 1), PackField(4, 4, 3), PackField(16, 4, 32)),
    unpack=unpack,
)
