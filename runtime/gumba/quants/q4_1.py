"""Q4_1: 32 weights in 20 bytes, 5 bits per weight.

    byte   0   1   2   3   4        5               19
           d   d   m   m   bbbbaaaa bbbbaaaa        bbbbaaaa        d scale, m minimum, float16, little-endian
           float16 float16 q16  q0  q17  q1  ...    q31  q15        a low nibble: weights 0-15, b high: weights 16-31

    weight[i] = d * q[i] + m

Quantizing: m = smallest weight (-0 before +0), d = (largest - m) / 15, q = (weight - m) / d + 0.5 cut to an integer.
q comes from d and m as float32; only what is stored is rounded to float16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "q4_1"
GGML_TYPE = 3
BLOCK_SIZE = 32
TYPE_SIZE = 20
DTYPE = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.jit.jit import inline
    from gumba.quants import _compiled as c

    codec_entry, floats_at, words_at, bytes_at = c.codec_entry, c.floats_at, c.words_at, c.bytes_at
    float_of, inverse, nibble, read_half, write_half = c.float_of, c.inverse, c.nibble, c.read_half, c.write_half

    @inline
    def ordered(bits: int) -> Any:
        """A float's bits as an integer that orders as floats do, NaN outermost; its own inverse."""
        return np.int32(bits) ^ np.int32(np.int32(np.int32(bits) >> np.int32(31)) & np.int32(0x7FFFFFFF))

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        strange = 0
        for b in range(n_blocks):
            x = floats_at(x_address + b * 128, 32)
            bits = words_at(x_address + b * 128, 32)
            out = bytes_at(out_address + b * 20, 20)
            lowest, highest = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
            for i in range(length):
                key = np.int32(ordered(bits[i]))
                lowest = key if key < lowest else lowest
                highest = key if key > highest else highest
            m = float_of(np.uint32(ordered(lowest)))
            d = (float_of(np.uint32(ordered(highest))) - m) / np.float32(15)
            if not (write_half(out, 0, d) & write_half(out, 2, m)):
                strange = 1
            over_d = inverse(d)
            for i in range(length // 2):
                low = nibble((x[i] - m) * over_d + np.float32(0.5))
                high = nibble((x[i + 16] - m) * over_d + np.float32(0.5))
                out[i + 4] = np.uint8(low | np.int32(high << np.int32(4)))
        return strange

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            data = bytes_at(data_address + b * 20, 20)
            out = floats_at(out_address + b * 128, 32)
            d = read_half(data, 0)
            m = read_half(data, 2)
            for i in range(length // 2):
                q = np.int32(data[i + 4])
                out[i] = d * np.float32(np.int32(q & np.int32(15))) + m
                out[i + 16] = d * np.float32(np.int32(q >> np.int32(4))) + m
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: int8 blocks (``gumba.backends.cpu.kernels.activations_q8``).
ACTIVATION = "q8"
#: What is packed of a block: (byte offset, bytes of an element, elements).
PACK_FIELDS = ((0, 2, 1), (2, 2, 1), (4, 4, 4))


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """A packed block in registers."""
    from gumba.quants import _registers

    scale, minimum = (_registers.load_f16(s, isa, address + 2 * isa.lanes * i) for i in range(2))
    return _registers.BlockRegisters(
        _registers.nibbles(s, isa, address + 4 * isa.lanes), scale, w_max=15, minimum=minimum
    )
