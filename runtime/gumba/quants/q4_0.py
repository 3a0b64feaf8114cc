"""Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.

    byte   0   1   2        3               17
           d   d   bbbbaaaa bbbbaaaa        bbbbaaaa        d scale, float16, little-endian
           float16 q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high nibble: weights 16-31

    weight[i] = d * (q[i] - 8)

Quantizing: d = m / -8, where m is the weight of largest magnitude (the first of equals) with its sign, so that m
becomes exactly q = 0; the others q = weight / d + 8.5 cut to an integer, at most 15. q comes from d as float32; only
what is stored is rounded to float16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "q4_0"
GGML_TYPE = 2
BLOCK_SIZE = 32
TYPE_SIZE = 18
DTYPE = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.quants import _compiled as c

    codec_entry, floats_at, words_at, bytes_at = c.codec_entry, c.floats_at, c.words_at, c.bytes_at
    largest_size, inverse, nibble, read_half, write_half = (
        c.largest_size,
        c.inverse,
        c.nibble,
        c.read_half,
        c.write_half,
    )

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        strange = 0
        for b in range(n_blocks):
            x = floats_at(x_address + b * 128, 32)
            bits = words_at(x_address + b * 128, 32)
            out = bytes_at(out_address + b * 18, 18)
            largest = largest_size(bits, length)
            at = np.int32(31)
            for i in range(length):
                here = np.int32(i) if np.uint32(bits[i] & np.uint32(0x7FFFFFFF)) == largest else np.int32(31)
                at = here if here < at else at
            d = x[at] / np.float32(-8)
            if not write_half(out, 0, d):
                strange = 1
            over_d = inverse(d)
            for i in range(length // 2):
                low = nibble(x[i] * over_d + np.float32(8.5))
                high = nibble(x[i + 16] * over_d + np.float32(8.5))
                out[i + 2] = np.uint8(low | np.int32(high << np.int32(4)))
        return strange

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = bytes_at(data_address + b * 18, 18)
            out = floats_at(out_address + b * 128, 32)
            d = read_half(data, 0)
            for i in range(length // 2):
                q = np.int32(data[i + 2])
                out[i] = d * np.float32(np.int32(q & np.int32(15)) - np.int32(8))
                out[i + 16] = d * np.float32(np.int32(q >> np.int32(4)) - np.int32(8))
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: int8 blocks (``gumba.backends.cpu.kernels.activations_q8``).
ACTIVATION = "q8"
#: What is packed of a block: (byte offset, bytes of an element, elements).
PACK_FIELDS = ((0, 2, 1), (2, 4, 4))


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """A packed block in registers. The nibbles stay unsigned; the 8 is taken off where a dot product starts."""
    from gumba.quants import _registers

    weights = _registers.nibbles(s, isa, address + 2 * isa.lanes)
    return _registers.BlockRegisters(weights, _registers.load_f16(s, isa, address), w_max=15, offset=8)
