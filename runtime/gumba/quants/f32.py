"""F32: IEEE 754 single precision, 32 bits per weight.

    byte   0        1        2        3
           ffffffff ffffffff efffffff seeeeeee        s sign, e exponent (bias 127), f fraction; little-endian

In NumPy:

    def dequantize(blocks):  # [n] of dtype -> float32 [n, 1]
        return blocks[:, None].astype(np.float32)

Quantizing copies the weights, and checks that they are finite.
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
    from gumba.quants._compiled import codec_entry, largest_magnitude, u32_at

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = u32_at(x_address, n_blocks)
        out = u32_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = x[i]
        return 1 if largest_magnitude(x, n_blocks) >= np.uint32(0x7F800000) else 0

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        data = u32_at(data_address, n_blocks)
        out = u32_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = data[i]
        return 0

    return encode, decode


def unpack(s: Simd, isa: Isa, address: Value) -> Value:
    """One column of a packed group of rows, as float32."""
    from gumba.simd.value import F32

    return s.load(address, F32, isa.lanes)


FORMAT = FloatFormat(
    name="f32",
    ggml_type=0,
    block_size=1,
    type_size=4,
    dtype=np.dtype("<f4"),
    loops=loops,
    pack_fields=(PackField(0, 4, 1),),
    unpack=unpack,
)
