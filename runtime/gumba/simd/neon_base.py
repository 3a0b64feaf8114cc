"""Every 64-bit Arm: 4 lanes, products of bytes in 16 bits (``smull``, ``smlal``), added in pairs (``sadalp``).

For processors without dot products, such as the Raspberry Pi 4's. A register of weights covers 4 rows: its low half's
products belong to rows 0 and 1, its high half's to rows 2 and 3. Products of several registers are added in 16 bits for as
long as that stays below 32768, then widened; neighbouring lanes are added once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from gumba.simd import neon
from gumba.simd.isa import Isa
from gumba.simd.value import I16, I32, Simd, Value


def dot(s: Simd, start: Value, weights: Sequence[Value], acts: Sequence[Value], w_max: int) -> Value:
    """Signed times signed; the weights of the unsigned formats stay below 128, so that they are signed too."""
    together = 32767 // (w_max * 127)
    wide = [s.zero(I32, 4), s.zero(I32, 4)]
    for half in range(2):
        places = range(8 * half, 8 * half + 8)
        for i in range(0, len(weights), together):
            sums = s.zero(I16, 8)
            for w, a in zip(weights[i : i + together], acts[i : i + together]):
                sums = sums + s.shuffle(w, places).to(I16) * s.shuffle(a, places).to(I16)
            wide[half] = wide[half] + s.call("llvm.aarch64.neon.saddlp.v4i32.v8i16", wide[half].type, sums)
    return start + s.call("llvm.aarch64.neon.addp.v4i32", start.type, *wide)


ISA = Isa(
    name="neon_base",
    lanes=4,
    registers=16,  # of 32, as for ``neon``
    needs=(("neon",),),
    dot_unsigned=dot,
    dot_signed=dot,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    shuffle_bytes=neon.shuffle_bytes,
)
