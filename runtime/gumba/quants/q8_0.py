"""Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.

    byte   0   1   2        3               33
           d   d   q0       q1       ...    q31
           float16 qqqqqqqq qqqqqqqq        qqqqqqqq        d scale, little-endian; q int8, -127..127

    weight[i] = d * q[i]

Quantizing: d = (largest magnitude) / 127, q = weight / d rounded to the nearest, halves away from zero. q comes from d
as float32; only what is stored is rounded to float16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gumba.quants._codec import Codec, Loop

NAME = "q8_0"
GGML_TYPE = 8
BLOCK_SIZE = 32
TYPE_SIZE = 34
DTYPE = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


@functools.cache
def loops() -> tuple[Loop, Loop]:
    """The compiled encoder and decoder."""
    from gumba.quants import _compiled as c

    codec_entry, floats_at, words_at, bytes_at, int8s_at = (
        c.codec_entry,
        c.floats_at,
        c.words_at,
        c.bytes_at,
        c.int8s_at,
    )
    float_of, largest_size, inverse = c.float_of, c.largest_size, c.inverse
    read_half, write_half = c.read_half, c.write_half

    @codec_entry
    def encode(x_address: int, out_address: int, n_blocks: int, length: int) -> int:
        strange = 0
        for b in range(n_blocks):
            x = floats_at(x_address + b * 128, 32)
            out = bytes_at(out_address + b * 34, 34)
            q = int8s_at(out_address + b * 34 + 2, 32)
            d = float_of(largest_size(words_at(x_address + b * 128, 32), length)) / np.float32(127)
            if not write_half(out, 0, d):
                strange = 1
            over_d = inverse(d)
            for i in range(length):
                scaled = x[i] * over_d
                size = abs(scaled)
                whole = np.int32(size)  # not int(size + 0.5), which is 1 for the float just below 0.5
                half = np.int32(1) if size - np.float32(whole) >= np.float32(0.5) else np.int32(0)
                rounded = np.int32(whole + half)
                q[i] = np.int8(-rounded if scaled < np.float32(0) else rounded)
        return strange

    @codec_entry
    def decode(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
        for b in range(n_blocks):
            d = read_half(bytes_at(data_address + b * 34, 34), 0)
            q = int8s_at(data_address + b * 34 + 2, 32)
            out = floats_at(out_address + b * 128, 32)
            for i in range(length):
                out[i] = np.float32(q[i]) * d
        return 0

    return encode, decode


_codec = Codec(NAME, BLOCK_SIZE, TYPE_SIZE, loops)
quantize, dequantize = _codec.quantize, _codec.dequantize

# How the kernels read it -----------------------------------------------------------------------------------------------

#: What a product's activations are turned into first: int8 blocks (``gumba.backends.cpu.kernels.activations_q8``).
ACTIVATION = "q8"
#: What is packed of a block: (byte offset, bytes of an element, elements).
PACK_FIELDS = ((0, 2, 1), (2, 4, 8))
#: XORed into each word where a dot product needs unsigned weights: adds 128 to each byte.
SIGN_FLIP = -0x7F7F7F80


def unpack(s: Any, isa: Any, address: Any) -> Any:
    """A packed block in registers: signed where the instruction set multiplies those, else with 128 added."""
    from gumba.quants import _registers

    weights = _registers.bytes_at(s, isa, address + 2 * isa.lanes, 8)
    signed = isa.dot_signed is not None
    scale = _registers.load_f16(s, isa, address)
    return _registers.BlockRegisters(
        weights, scale, w_max=128 if signed else 255, offset=0 if signed else 128, signed=signed
    )
