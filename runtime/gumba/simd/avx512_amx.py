"""AVX-512 with VNNI and AMX: a matrix unit whose eight tiles hold 16 rows of 64 bytes.

One ``tdpbssd`` multiplies 16 tokens by 16 rows of weights over 32 columns, as 128 ``vpdpbusd`` do. Tiles are loaded from memory
and stored to it. Products of fewer than 16 tokens are the vector registers'; integers are exact, so both ways give the same bits.

Not on top of ``avx512_bf16``: on the processors that have AMX, ``vdpbf16ps`` does half as many operations as multiply-adds in
float32 (measured on Emerald Rapids: 87 and 163 GFLOP/s; AMD's do twice as many).

Linux lets a process use the tiles only after it requests them (``processor.request_tiles``).
"""

from __future__ import annotations

from dataclasses import replace

from llvmlite import ir

from gumba.simd import avx512_vnni
from gumba.simd.isa import MatrixUnit
from gumba.simd.value import I8, I64, Simd, Value

_TOKENS, _ROW = 16, 64
#: Rows and bytes of a row of the tiles: two of results, two of activations, two of weights of 32 columns.
_SHAPES = (*[(_TOKENS, _ROW)] * 2, *[(_TOKENS, 32)] * 2, *[(8, _ROW)] * 2)


def _call(s: Simd, name: str, *args: Value | int) -> None:
    numbers = [s.constant(a, I8) if isinstance(a, int) else a for a in args]
    s.call(f"llvm.x86.{name}", ir.VoidType(), *numbers)


def _pointer(s: Simd, address: Value) -> Value:
    return Value(s.b, s.b.inttoptr(address.ir, I8.as_pointer()))


def begin(s: Simd) -> None:
    """Set the tiles' shapes (palette 1: a row's bytes from byte 16 on, rows from byte 48 on)."""
    config = bytearray(64)
    config[0] = 1
    for i, (rows, row_bytes) in enumerate(_SHAPES):
        config[16 + 2 * i], config[48 + i] = row_bytes, rows
    memory = s.memory(len(config))
    s.store(memory, s.constant(list(config), I8, len(config)))
    _call(s, "ldtilecfg", _pointer(s, memory))


def end(s: Simd) -> None:
    """Give the tiles up: their 8 KB would be saved whenever another thread runs."""
    _call(s, "tilerelease")


def dot(s: Simd, weights: Value, acts: Value, acts_stride: Value, out: Value, turn: int) -> None:
    """``tdpbssd``."""
    result, x, w = turn, 2 + turn, 4 + turn
    row = s.constant(_ROW, I64)
    _call(s, "tilezero", result)
    _call(s, "tileloadd64", x, _pointer(s, acts), acts_stride)
    _call(s, "tileloadd64", w, _pointer(s, weights), row)
    _call(s, "tdpbssd", result, x, w)
    _call(s, "tilestored64", result, _pointer(s, out), row)


ISA = replace(
    avx512_vnni.ISA,
    name="avx512_amx",
    needs=tuple((*need, "amx-tile", "amx-int8") for need in avx512_vnni.ISA.needs),
    tiles=(_TOKENS, 8, 2, 1),
    matrix_unit=MatrixUnit(_TOKENS, begin, end, dot),
)
