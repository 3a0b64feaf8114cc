"""BF16: the upper half of a float32, 16 bits per weight. float32's range, 8 significant bits.

    byte   0        1
           efffffff seeeeeee        s sign, e exponent (bias 127), f fraction; little-endian

In NumPy, which has no such type, so that arrays of it are uint16:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 1]
        bits = blocks.astype(np.uint32) << 16
        return bits.view(np.float32)[:, None]

Quantizing rounds to the nearest, ties to even.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import Finite, FloatFormat, PackField

if TYPE_CHECKING:
    from gumba.jit.jit import Entry
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.quants._compiled import codec_entry, u16_at, u32_at, widen_bf16

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = u32_at(x_address, n_blocks)
        out = u16_at(out_address, n_blocks)
        largest = np.uint32(0)
        for i in range(n_blocks):
            size = np.uint32(x[i] & np.uint32(0x7FFFFFFF))
            rounded = np.uint32(size + np.uint32(0x7FFF) + np.uint32((size >> np.uint32(16)) & np.uint32(1)))
            out[i] = np.uint16(np.uint32(rounded | np.uint32(x[i] & np.uint32(0x80000000))) >> np.uint32(16))
            largest = rounded if rounded > largest else largest
        return 1 if largest >= np.uint32(0x7F800000) else 0

    return encode, widen_bf16


def unpack(s: Simd, isa: Isa, address: Value) -> Value:
    """One column of a packed group of rows, as float32."""
    from gumba.simd.value import F32, I16, I32

    return (s.load(address, I16, isa.lanes).unsigned_to(I32) << 16).bits(F32, isa.lanes)


FORMAT = FloatFormat(
    name="bf16",
    ggml_type=30,
    block_size=1,
    type_size=2,
    dtype=np.dtype("<u2"),
    other_finite=(Finite(0, 2, 0x7F80),),
    loops=loops,
    pack_fields=(PackField(0, 2, 1),),
    unpack=unpack,
)
