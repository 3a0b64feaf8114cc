"""AVX-512 with VNNI and BF16: ``vdpbf16ps`` multiplies 32 pairs of bfloat16 and adds them into 16 sums at once.

It flushes subnormal numbers to zero and adds a pair in its own order, so its sums are not those of other sets: what must have
the same bits everywhere runs on the set without BF16.
"""

from __future__ import annotations

from dataclasses import replace

from llvmlite import ir

from gumba.simd import avx512_vnni
from gumba.simd.value import I16, Simd, Value


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16 = _BFloat()


def dot_bf16(s: Simd, acc: Value, a: Value, b: Value) -> Value:
    pairs = ir.VectorType(_BF16, 32)
    halves = [Value(s.b, s.b.bitcast(x.ir, pairs)) for x in (a, b)]
    return s.call("llvm.x86.avx512bf16.dpbf16ps.512", acc.type, acc, *halves)


def round_bf16(s: Simd, value: Value) -> Value:
    rounded = s.call("llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(_BF16, 16), value)
    return Value(s.b, s.b.bitcast(rounded.ir, ir.VectorType(I16, 16)))


ISA = replace(
    avx512_vnni.ISA,
    name="avx512_bf16",
    needs=tuple((*need, "avx512bf16") for need in avx512_vnni.ISA.needs),
    dot_bf16=dot_bf16,
    round_bf16=round_bf16,
    portable=avx512_vnni.ISA,
)
