"""What the compiled loops of the format files share: memory at raw addresses, and the bits of floats.

Imported only when something is first quantized or dequantized, because it imports numba.

A loop is vectorised by LLVM where its length is known only at run time; with a literal 32 it is unrolled into scalar
code instead (measured for q4_0: 1.9 against 8.4 GB/s). That is why every encoder and decoder is handed ``length``, its
block size. Integers are narrowed by hand (``np.uint32(...)``) since numba computes them all in 64 bits, which halves a
vector's lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj as _arrayobj

from gumba.kernels.jit import entry, inline

#: Of every encoder: (float32 values, blocks out, number of blocks, values in a block) -> 1 if any is not finite, or 0.
#: Of every decoder: (blocks, float32 values out, number of blocks, values in a block) -> 0.
SIGNATURE = "i8(i8, i8, i8, i8)"

codec_entry = entry(SIGNATURE)

arrayobj: Any = _arrayobj  # untyped in numba


def _view(element: types.Type) -> Any:
    """A function ``(address, n)`` giving the array of n ``element`` at an address. Nothing is checked."""
    array = types.Array(element, 1, "C")

    @intrinsic
    def view(typingctx: Any, address: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            made = arrayobj.make_array(array)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(element))
            arrayobj.populate_array(
                made,
                data=builder.inttoptr(args[0], context.get_data_type(element).as_pointer()),
                shape=[args[1]],
                strides=[context.get_constant(types.intp, size)],
                itemsize=size,
                meminfo=None,
            )
            return made._getvalue()

        return array(types.int64, types.int64), codegen

    return view


floats_at = _view(types.float32)
words_at = _view(types.uint32)
halves_at = _view(types.uint16)
bytes_at = _view(types.uint8)
int8s_at = _view(types.int8)


def scratch(n_bytes: int) -> Any:
    """A function ``()`` giving the address of ``n_bytes`` on the stack of the compiled function that calls it."""

    @intrinsic
    def allocate(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(ir.IntType(8), n_bytes))
            memory.align = 64
            return builder.ptrtoint(memory, ir.IntType(64))

        return types.int64(), codegen

    return allocate


@intrinsic
def _bits_of(typingctx: Any, x: Any) -> Any:
    """The 32 bits of a float32 as a uint32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


@intrinsic
def _float_of(typingctx: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


bits_of: Any = _bits_of
float_of: Any = _float_of


@inline
def half_of(x: float) -> Any:
    """float32 -> the bits of the nearest float16, ties to even (IEEE 754); too large gives infinity, NaN gives 0x7E00.

    In a normal number 13 bits of the fraction are dropped after adding half a unit, and the exponent's bias goes from
    127 to 15. A subnormal is a whole number of 2^-24, the last place of floats in [0.5, 1): adding 0.5 rounds it there.
    """
    bits = bits_of(x)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    normal = np.uint32(size + np.uint32(0xFFF) + np.uint32((size >> np.uint32(13)) & np.uint32(1)))
    normal = np.uint32(np.uint32(normal - np.uint32(112 << 23)) >> np.uint32(13))
    normal = normal if normal < np.uint32(0x7C00) else np.uint32(0x7C00)
    small = np.uint32(bits_of(float_of(size) + np.float32(0.5)) - np.uint32(0x3F000000))
    half = small if size < np.uint32(0x38800000) else normal
    half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
    return np.uint16(half | np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000)))


@inline
def float_of_half(half: int) -> Any:
    """The bits of a float16 -> the same number as a float32 (exact)."""
    size = np.uint32(np.uint32(half) & np.uint32(0x7FFF))
    bits = np.uint32(np.uint32(size << np.uint32(13)) + np.uint32(112 << 23))
    bits = np.uint32(bits + np.uint32(112 << 23)) if size >= np.uint32(0x7C00) else bits
    small = bits_of(np.float32(np.int32(size)) * np.float32(2.0**-24))
    bits = small if size < np.uint32(0x0400) else bits
    return float_of(np.uint32(bits | np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))))


@inline
def read_half(block: Any, at: int) -> Any:
    """The float16 stored little-endian in bytes ``at`` and ``at`` + 1, as a float32."""
    return float_of_half(np.uint32(block[at]) | np.uint32(np.uint32(block[at + 1]) << np.uint32(8)))


@inline
def write_half(block: Any, at: int, x: float) -> Any:
    """Store a float32 as a little-endian float16; True when that is finite."""
    half = half_of(x)
    block[at] = np.uint8(half & 0xFF)
    block[at + 1] = np.uint8(half >> 8)
    return (half & 0x7C00) != 0x7C00


@inline
def inverse(d: float) -> Any:
    """1 / d, and 0 where that is not finite (d is 0 or below 2^-128: as float16 it is 0, so the block decodes to 0)."""
    inverted = np.float32(1) / d
    return inverted if abs(inverted) < np.float32(np.inf) else np.float32(0)


@inline
def largest_size(bits: Any, length: int) -> Any:
    """The largest magnitude of a block, as bits: they order as magnitudes do, then comes infinity, then NaN."""
    largest = np.uint32(0)
    for i in range(length):
        size = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
        largest = size if size > largest else largest
    return largest
