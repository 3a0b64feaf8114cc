"""AVX-512 with VNNI: 16 lanes, ``vpdpbusd`` multiplies 64 byte pairs and adds them into 16 sums at once."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from gumba.simd.isa import Isa
from gumba.simd.value import I8, I32, Simd, Value


def dot(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    for w, a in zip(weights, acts):
        start = s.call("llvm.x86.avx512.vpdpbusd.512", start.type, start, w, a)
    return start


def dot_tile(
    s: Simd, starts: Sequence[Value], weights: Sequence[Value], acts: Sequence[Value], w_max: int, signed: bool
) -> list[Value]:
    """All tokens by one register of weights, then by the next: products that wait for each other are a tile apart.

    (With 8 tokens, on Emerald Rapids: 1.18 times the speed of token after token for q4_0, 1.20 for q5_k, 1.08 for q4_k, 1.05 for
    q6_k.)
    """
    totals = list(starts)
    for j, w in enumerate(weights):
        for t, x in enumerate(acts):
            words = s.splat(s.load(x + 4 * j, I32), w.lanes // 4)
            totals[t] = dot(s, totals[t], [w], [words.bits(I8, w.lanes)], w_max)
    return totals


def shuffle_bytes(s: Simd, table: Value, index: Value) -> Value:
    """``vpshufb``."""
    return s.call("llvm.x86.avx512.pshuf.b.512", index.type, table, index)


def gather_words(s: Simd, table: Value, index: Value) -> Value:
    """``vpgatherdd``."""
    everywhere = s.constant(1, ir.IntType(1), index.lanes)
    four = s.constant(4, I32)
    return s.call("llvm.x86.avx512.mask.gather.dpi.512", index.type, index, s.pointer(table), index, everywhere, four)


ISA = Isa(
    name="avx512_vnni",
    lanes=16,
    registers=32,
    needs=(("avx512vnni", "avx512bw", "avx512vl", "fma", "f16c"),),
    dot_unsigned=dot,
    dot_signed=None,
    dot_tile=dot_tile,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    shuffle_bytes=shuffle_bytes,
    gather_words=gather_words,
)
