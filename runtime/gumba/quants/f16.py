"""F16: IEEE 754 half precision, 16 bits per weight. Range 6e-8 to 65504, 11 significant bits.

    byte   0        1
           ffffffff seeeeeff        s sign, e exponent (bias 15), f fraction; little-endian

Quantizing rounds to the nearest, ties to even.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "f16"
GGML_TYPE = 1
BLOCK_SIZE = 1
TYPE_SIZE = 2
DTYPE = np.dtype("<f2")


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.quants._compiled import codec_entry, float_of_half, floats_at, half_of, halves_at

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = floats_at(x_address, n_blocks)
        out = halves_at(out_address, n_blocks)
        largest = np.uint16(0)
        for i in range(n_blocks):
            half = half_of(x[i])
            out[i] = half
            size = np.uint16(half & np.uint16(0x7FFF))
            largest = size if size > largest else largest
        return 1 if largest >= np.uint16(0x7C00) else 0

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        data = halves_at(data_address, n_blocks)
        out = floats_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = float_of_half(np.uint32(data[i]))
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: nothing.
ACTIVATION = "f32"
#: What is packed of a block: (byte offset, bytes of an element, elements).
PACK_FIELDS = ((0, 2, 1),)


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """One column of a packed group, as float32."""
    from gumba.quants import _registers

    return _registers.load_f16(s, isa, address)
