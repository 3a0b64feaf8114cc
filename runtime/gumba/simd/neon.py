"""64-bit Arm with dot products (Armv8.2 ``sdot``): 4 lanes, both operands signed."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.simd.isa import Isa
from gumba.simd.value import Simd, Value


def dot(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    """Signed times signed; the weights of the unsigned formats stay below 128, so that they are signed too."""
    for w, a in zip(weights, acts):
        start = s.call("llvm.aarch64.neon.sdot.v4i32.v16i8", start.type, start, w, a)
    return start


def shuffle_bytes(s: Simd, table: Value, index: Value) -> Value:
    """``tbl``."""
    return s.call("llvm.aarch64.neon.tbl1.v16i8", index.type, table, index)


ISA = Isa(
    name="neon",
    lanes=4,
    registers=16,  # of 32: larger tiles have not been measured on Arm
    needs=(("neon", "dotprod"),),
    dot_unsigned=dot,
    dot_signed=dot,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    shuffle_bytes=shuffle_bytes,
)
