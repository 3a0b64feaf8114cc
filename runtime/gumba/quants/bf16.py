"""BF16: the upper half of a float32, 16 bits per weight. float32's range, 8 significant bits.

    byte   0        1
           efffffff seeeeeee        s sign, e exponent (bias 127), f fraction; little-endian

Quantizing rounds to the nearest, ties to even; NumPy has no such type, so arrays of it are uint16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "bf16"
GGML_TYPE = 30
BLOCK_SIZE = 1
TYPE_SIZE = 2
DTYPE = np.dtype("<u2")


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.quants._compiled import codec_entry, halves_at, words_at

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        x = words_at(x_address, n_blocks)
        out = halves_at(out_address, n_blocks)
        largest = np.uint32(0)
        for i in range(n_blocks):
            size = np.uint32(x[i] & np.uint32(0x7FFFFFFF))
            rounded = np.uint32(size + np.uint32(0x7FFF) + np.uint32((size >> np.uint32(16)) & np.uint32(1)))
            out[i] = np.uint16(np.uint32(rounded | np.uint32(x[i] & np.uint32(0x80000000))) >> np.uint32(16))
            largest = rounded if rounded > largest else largest
        return 1 if largest >= np.uint32(0x7F800000) else 0

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        data = halves_at(data_address, n_blocks)
        out = words_at(out_address, n_blocks)
        for i in range(n_blocks):
            out[i] = np.uint32(np.uint32(data[i]) << np.uint32(16))
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
    from gumba.simd.value import F32, I16, I32

    return (s.load(address, I16, isa.lanes).unsigned_to(I32) << 16).bits(F32, isa.lanes)
