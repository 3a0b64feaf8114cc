"""F32: plain IEEE 754 single precision, 32 bits per weight. Quantizing checks that weights are finite, and copies.

byte   0        1        2        3
       ffffffff ffffffff efffffff seeeeeee        s sign, e exponent (bias 127), f fraction; little-endian
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "f32"
GGML_TYPE = 0
BLOCK_SIZE = 1
TYPE_SIZE = 4
DTYPE = np.dtype("<f4")


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.quants._compiled import codec_entry, largest_size, words_at

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = words_at(x_address, n_blocks)
        out = words_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = x[i]
        return 1 if largest_size(x, n_blocks) >= np.uint32(0x7F800000) else 0

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        data = words_at(data_address, n_blocks)
        out = words_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = data[i]
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: nothing.
ACTIVATION = "f32"
#: What is packed of a block: (byte offset, bytes of an element, elements).
PACK_FIELDS = ((0, 4, 1),)


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """One column of a packed group, as float32."""
    from gumba.simd.value import F32

    return s.load(address, F32, isa.lanes)
