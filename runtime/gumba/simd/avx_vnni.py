"""AVX-VNNI: the 8-lane ``vpdpbusd``. Processors with AVX-512 VNNI have it too, under its AVX-512 encoding."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.simd import avx2
from gumba.simd.isa import Isa
from gumba.simd.value import Simd, Value


def dot(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    for w, a in zip(weights, acts):
        start = s.call("llvm.x86.avx512.vpdpbusd.256", start.type, start, w, a)
    return start


ISA = Isa(
    name="avx_vnni",
    lanes=8,
    registers=16,
    needs=(("avxvnni", "avx2", "fma", "f16c"), ("avx512vnni", "avx512vl", "fma", "f16c")),
    dot_unsigned=dot,
    dot_signed=None,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    shuffle_bytes=avx2.shuffle_bytes,
    gather_words=avx2.gather_words,
)
