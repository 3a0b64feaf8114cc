"""Shared by the compiled loops of the format files: memory at raw addresses, and the bits of floats.

Imported only when something is first quantized or dequantized.

A loop is vectorised by LLVM where its length is known only at run time; with a literal 32 it is unrolled into scalar
code instead (measured for q4_0: 1.9 against 8.4 GB/s). That is why every encoder and decoder gets ``length``, its
block size. Integers are narrowed by hand (``np.uint32(...)``) since numba computes them all in 64 bits, which halves a
vector's lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from gumba.jit.jit import array_at, entry, inline, intrinsic
from gumba.simd.value import I8, I64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numba.core.base import BaseContext
    from numba.core.types import Type
    from numba.core.typing import Context
    from numba.core.typing.templates import Signature
    from numpy.typing import NDArray

    from gumba.jit.codegen import CodeGenerator
    from gumba.jit.jit import Intrinsic

#: Every encoder: (float32 values, blocks out, number of blocks, values in a block) -> 1 if any is not finite, or 0.
#: Every decoder: (blocks, float32 values out, number of blocks, values in a block) -> 0.
SIGNATURE = "i8(i8, i8, i8, i8)"

codec_entry = entry(SIGNATURE)

#: Functions ``(address, n)`` giving the array of n numbers at an address. Nothing is checked.
f32_at: Intrinsic[NDArray[np.float32]] = array_at("f4")
u32_at: Intrinsic[NDArray[np.uint32]] = array_at("u4")
u16_at: Intrinsic[NDArray[np.uint16]] = array_at("u2")
u8_at: Intrinsic[NDArray[np.uint8]] = array_at("u1")
i8_at: Intrinsic[NDArray[np.int8]] = array_at("i1")


def scratch(n_bytes: int) -> Intrinsic[int]:
    """A function ``()`` giving the address of ``n_bytes`` on the stack of the compiled function that calls it."""

    @intrinsic
    def allocate(typingctx: Context) -> tuple[Signature, CodeGenerator]:
        from numba import types

        def codegen(context: BaseContext, builder: ir.IRBuilder, sig: Signature, args: Sequence[ir.Value]) -> ir.Value:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(I8, n_bytes))
            memory.align = 64
            return builder.ptrtoint(memory, I64)

        return types.int64(), codegen

    return allocate


def _float_bits(typingctx: Context, x: Type) -> tuple[Signature, CodeGenerator]:
    """The 32 bits of a float32 as a uint32."""
    from numba import types

    def codegen(context: BaseContext, builder: ir.IRBuilder, sig: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


float_bits: Intrinsic[np.uint32] = intrinsic(_float_bits)


def _bits_float(typingctx: Context, bits: Type) -> tuple[Signature, CodeGenerator]:
    """The float32 with these 32 bits."""
    from numba import types

    def codegen(context: BaseContext, builder: ir.IRBuilder, sig: Signature, args: Sequence[ir.Value]) -> ir.Value:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


bits_float: Intrinsic[np.float32] = intrinsic(_bits_float)


@inline
def f32_to_f16(x: float) -> np.uint16:
    """float32 -> the bits of the nearest float16, ties to even (IEEE 754); too large gives infinity, NaN gives 0x7E00.

    In a normal number 13 bits of the fraction are dropped after adding half a unit, and the exponent's bias goes from
    127 to 15. A subnormal is a multiple of 2^-24, the last bit of floats in [0.5, 1): adding 0.5 rounds it to that bit.
    """
    bits = float_bits(x)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    normal = np.uint32(size + np.uint32(0xFFF) + np.uint32((size >> np.uint32(13)) & np.uint32(1)))
    normal = np.uint32(np.uint32(normal - np.uint32(112 << 23)) >> np.uint32(13))
    normal = normal if normal < np.uint32(0x7C00) else np.uint32(0x7C00)
    small = np.uint32(float_bits(bits_float(size) + np.float32(0.5)) - np.uint32(0x3F000000))
    half = small if size < np.uint32(0x38800000) else normal
    half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
    return np.uint16(half | np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000)))


@inline
def f16_to_f32(half: int) -> np.float32:
    """The bits of a float16 -> the same number as a float32 (exact)."""
    size = np.uint32(np.uint32(half) & np.uint32(0x7FFF))
    bits = np.uint32(np.uint32(size << np.uint32(13)) + np.uint32(112 << 23))
    bits = np.uint32(bits + np.uint32(112 << 23)) if size >= np.uint32(0x7C00) else bits
    small = float_bits(np.float32(np.int32(size)) * np.float32(2.0**-24))
    bits = small if size < np.uint32(0x0400) else bits
    return bits_float(np.uint32(bits | np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))))


@inline
def read_f16(block: NDArray[np.uint8], at: int) -> np.float32:
    """The float16 stored little-endian in bytes ``at`` and ``at`` + 1, as a float32."""
    return f16_to_f32(np.uint32(block[at]) | np.uint32(np.uint32(block[at + 1]) << np.uint32(8)))


@inline
def write_f16(block: NDArray[np.uint8], at: int, x: float) -> bool:
    """Store a float32 as a little-endian float16; True when that is finite."""
    half = f32_to_f16(x)
    block[at] = np.uint8(half & 0xFF)
    block[at + 1] = np.uint8(half >> 8)
    return bool((half & 0x7C00) != 0x7C00)


@inline
def read_u32(block: NDArray[np.uint8], at: int) -> np.uint32:
    """The little-endian 32-bit integer in bytes ``at`` to ``at`` + 3."""
    low = np.uint32(block[at]) | np.uint32(np.uint32(block[at + 1]) << np.uint32(8))
    high = np.uint32(block[at + 2]) | np.uint32(np.uint32(block[at + 3]) << np.uint32(8))
    return np.uint32(low | np.uint32(high << np.uint32(16)))


@inline
def write_u32(block: NDArray[np.uint8], at: int, bits: int) -> None:
    """Store 32 bits little-endian."""
    for i in range(4):
        block[at + i] = np.uint8(bits >> np.uint32(8 * i))


@inline
def inverse_or_zero(d: float) -> np.float32:
    """1 / d, and 0 where that is not finite (d is 0 or below 2^-128: as float16 it is 0, so the block decodes to 0)."""
    inverted = np.float32(1) / d
    return inverted if abs(inverted) < np.float32(np.inf) else np.float32(0)


@inline
def to_nibble(x: float) -> np.int32:
    """A number >= 0, truncated to an integer, at most 15."""
    q = np.int32(x)
    return q if q < np.int32(15) else np.int32(15)


@inline
def to_5_bits(x: float) -> np.int32:
    """A number >= 0, truncated to an integer, at most 31."""
    q = np.int32(x)
    return q if q < np.int32(31) else np.int32(31)


@inline
def ternary_code(x: float) -> np.int32:
    """A number from -1 to 1, rounded to the nearest integer, ties away from 0, plus 1."""
    return np.int32((x >= np.float32(0.5)) + (x > np.float32(-0.5)))


@inline
def fp4_size(m: int) -> np.int32:
    """The magnitude that the low three bits of a 4-bit float (e2m1) stand for, doubled: 0 1 2 3 4 6 8 12."""
    return np.int32(m + (m - 4 if m > 4 else 0) + (2 if m == 7 else 0))


@inline
def fp4_code(x: np.float32, d: np.float32) -> np.int32:
    """The 4-bit float whose doubled value, times ``d``, is nearest to x; ties go to the smaller one."""
    size, largest = abs(x), np.float32(12) * d
    size = (
        size if size < largest else largest
    )  # beside larger numbers the values' distances would be rounded to the same
    best, least = np.int32(0), size
    for m in range(1, 8):
        error = abs(d * np.float32(fp4_size(m)) - size)
        best, least = (np.int32(m), error) if error < least else (best, least)
    return np.int32(best | np.int32(8)) if x < np.float32(0) and best > 0 else best


@inline
def largest_magnitude(bits: NDArray[np.uint32], length: int) -> np.uint32:
    """The largest magnitude of a block, as bits: these are ordered as magnitudes are, then infinity, then NaN."""
    largest = np.uint32(0)
    for i in range(length):
        size = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
        largest = size if size > largest else largest
    return largest


@inline
def first_largest(bits: NDArray[np.uint32], length: int) -> np.int32:
    """The index of the weight of largest magnitude, the first of equals, in a block of 32."""
    largest = largest_magnitude(bits, length)
    at = np.int32(31)
    for i in range(length):
        here = np.int32(i) if np.uint32(bits[i] & np.uint32(0x7FFFFFFF)) == largest else np.int32(31)
        at = here if here < at else at
    return at


@inline
def _ordered(bits: int) -> np.int32:
    """A float's bits as an integer that orders as floats do, NaN outermost; its own inverse."""
    return np.int32(bits) ^ np.int32(np.int32(np.int32(bits) >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inline
def lowest_highest(bits: NDArray[np.uint32], length: int) -> tuple[np.float32, np.float32]:
    """The smallest and the largest weight of a block (-0 before +0), NaN if there is one."""
    lowest, highest = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
    for i in range(length):
        key = np.int32(_ordered(bits[i]))
        lowest = key if key < lowest else lowest
        highest = key if key > highest else highest
    return bits_float(np.uint32(_ordered(lowest))), bits_float(np.uint32(_ordered(highest)))


@codec_entry
def widen_f16(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
    """float16 -> float32: the decoder of F16, and how float16 weights are read for any encoder."""
    data = u16_at(data_address, n_blocks)
    out = f32_at(out_address, n_blocks)
    for i in range(n_blocks):
        out[i] = f16_to_f32(np.uint32(data[i]))
    return 0


@codec_entry
def widen_bf16(data_address: int, out_address: int, n_blocks: int, length: int) -> int:
    """bfloat16 -> float32: the decoder of BF16, and how bfloat16 weights are read for any encoder."""
    data = u16_at(data_address, n_blocks)
    out = u32_at(out_address, n_blocks)
    for i in range(n_blocks):
        out[i] = np.uint32(np.uint32(data[i]) << np.uint32(16))
    return 0
