"""AVX2: 8 lanes. ``vpmaddubsw`` adds pairs of products into saturating 16-bit sums, ``vpmaddwd`` widens those.

A pair is at most ``2 * w_max * 127``; several registers' pairs are added in 16 bits for as long as that stays below 32768,
and only then widened: a whole 4-bit block (8 registers) takes one widening.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from gumba.simd.isa import Isa
from gumba.simd.value import I8, I16, I32, Simd, Value, vector


def dot(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    together = 32767 // (2 * w_max * 127)
    ones = s.constant(1, I16, 16)
    for i in range(0, len(weights), together):
        sums = s.zero(I16, 16)
        for w, a in zip(weights[i : i + together], acts[i : i + together]):
            sums = sums + s.call("llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), w, a)
        start = start + s.call("llvm.x86.avx2.pmadd.wd", vector(I32, 8), sums, ones)
    return start


def dot_signed(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    """|w| times (a with w's sign): the first operand must be unsigned. |w| <= 128 keeps a pair below 32768."""
    unsigned = [s.call("llvm.abs.v32i8", w.type, w, s.zero(ir.IntType(1))) for w in weights]
    signed = [s.call("llvm.x86.avx2.psign.b", a.type, a, w) for w, a in zip(weights, acts)]
    return dot(s, start, unsigned, signed, 128)


def shuffle_bytes(s: Simd, table: Value, index: Value) -> Value:
    """``vpshufb``."""
    return s.call("llvm.x86.avx2.pshuf.b", index.type, table, index)


def gather_words(s: Simd, table: Value, index: Value) -> Value:
    """``vpgatherdd``."""
    everywhere = s.constant(-1, I32, index.lanes)
    four = s.constant(4, I8)
    return s.call("llvm.x86.avx2.gather.d.d.256", index.type, index, s.pointer(table), index, everywhere, four)


ISA = Isa(
    name="avx2",
    lanes=8,
    registers=16,
    needs=(("avx2", "fma", "f16c"),),
    dot_unsigned=dot,
    dot_signed=dot_signed,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    shuffle_bytes=shuffle_bytes,
    gather_words=gather_words,
)
