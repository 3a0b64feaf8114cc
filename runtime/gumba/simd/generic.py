"""Any processor: 4 lanes, plain multiplications that LLVM compiles for the processor at hand. The reference for the others."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.simd.isa import Isa
from gumba.simd.value import I32, Simd, Value


def _dot(s: Simd, start: Value, products: Sequence[Value]) -> Value:
    for p in products:
        for j in range(4):
            start = start + s.shuffle(p, [4 * i + j for i in range(start.lanes)])
    return start


def dot_unsigned(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    return _dot(s, start, [w.unsigned_to(I32) * a.to(I32) for w, a in zip(weights, acts)])


def dot_signed(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    return _dot(s, start, [w.to(I32) * a.to(I32) for w, a in zip(weights, acts)])


ISA = Isa(
    name="generic",
    lanes=4,
    registers=16,
    needs=((),),
    dot_unsigned=dot_unsigned,
    dot_signed=dot_signed,
    has_f16=False,
    tiles=(4, 4, 1, 1),
)
