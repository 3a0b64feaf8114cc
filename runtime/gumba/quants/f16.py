"""F16: IEEE 754 half precision, 16 bits per weight. Range 6e-8 to 65504, 11 significant bits.

    byte   0        1
           ffffffff seeeeeff        s sign, e exponent (bias 15), f fraction; little-endian

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 1]
        return blocks[:, None].astype(np.float32)

Quantizing rounds to the nearest, ties to even.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from gumba.quants._format import FloatFormat, PackField

if TYPE_CHECKING:
    from gumba.jit.jit import Entry
    from gumba.simd.isa import Isa
    from gumba.simd.value import Simd, Value


@functools.cache
def loops() -> tuple[Entry, Entry]:
    """The compiled encoder and decoder."""
    from gumba.quants._compiled import codec_entry, f32_at, f32_to_f16, u16_at, widen_f16

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = f32_at(x_address, n_blocks)
        out = u16_at(out_address, n_blocks)
        largest = np.uint16(0)
        for i in range(n_blocks):
            half = f32_to_f16(x[i])
            out[i] = half
            size = np.uint16(half & np.uint16(0x7FFF))
            largest = size if size > largest else largest
        return 1 if largest >= np.uint16(0x7C00) else 0

    return encode, widen_f16


def unpack(s: Simd, isa: Isa, address: Value) -> Value:
    """One column of a packed group of rows, as float32."""
    from gumba.quants import _registers

    return _registers.load_f16(s, isa, address)


FORMAT = FloatFormat(
    name="f16",
    ggml_type=1,
    block_size=1,
    type_size=2,
    dtype=np.dtype("<f2"),
    loops=loops,
    pack_fields=(PackField(0, 2, 1),),
    unpack=unpack,
)
