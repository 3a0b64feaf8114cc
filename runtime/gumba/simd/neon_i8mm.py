"""64-bit Arm with integer matrix products (Armv8.6 ``smmla``): 2 rows x 8 columns by 8 columns x 2 tokens in one step.

Weights are packed as for ``neon``. Two of its registers (4 rows x 4 columns each) hold 8 columns of 4 rows; ``zip1`` and
``zip2`` of their 32-bit words put rows 0 and 1, then rows 2 and 3, into the shape that ``smmla`` reads: 8 such steps for a
tile's 32 columns, whatever its tokens. A pair of tokens then takes 8 ``smmla`` per block where ``sdot`` takes 16, and 8
loads of 8 bytes where ``sdot`` takes 16 of 4. One token alone has nothing to pair with and keeps ``sdot`` (8 per block,
no zips): a pack made for ``smmla`` would save the zips, a few per cent of a tile, and cost the single token half of each
matrix product. Integers are exact, so both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from gumba.simd import neon
from gumba.simd.isa import Isa
from gumba.simd.value import I8, I32, Simd, Value


def dot_tile(
    s: Simd, starts: Sequence[Value], weights: Sequence[Value], acts: Sequence[Value], w_max: int, signed: bool
) -> list[Value]:
    """Pairs of tokens through ``smmla``, the last of an odd number through ``sdot``."""
    words = [w.bits(I32, 4) for w in weights]
    pairs = [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
    rows = [[s.interleave(a, b, high).bits(I8, 16) for a, b in pairs] for high in (False, True)]
    out: list[Value] = []
    for t in range(0, len(starts) - 1, 2):
        columns = [
            s.concatenate(s.load(acts[t] + 8 * i, I8, 8), s.load(acts[t + 1] + 8 * i, I8, 8)) for i in range(len(pairs))
        ]
        # Lanes: (row, token), rows 0 and 1 in the first result, rows 2 and 3 in the second.
        results = []
        for two_rows in rows:
            total = s.zero(I32, 4)
            for row, column in zip(two_rows, columns):
                total = s.call("llvm.aarch64.neon.smmla.v4i32.v16i8", total.type, total, row, column)
            results.append(total)
        both = s.concatenate(*results)
        out += [starts[t + i] + s.shuffle(both, range(i, 8, 2)) for i in range(2)]
    if len(out) < len(starts):
        last = [s.splat(s.load(acts[-1] + 4 * j, I32), 4).bits(I8, 16) for j in range(len(weights))]
        out.append(neon.dot(s, starts[-1], weights, last, w_max))
    return out


ISA = Isa(
    name="neon_i8mm",
    lanes=4,
    registers=16,  # of 32, as for ``neon``
    needs=(("neon", "dotprod", "i8mm"),),
    dot_unsigned=neon.dot,
    dot_signed=neon.dot,
    has_f16=True,
    tiles=(8, 4, 2, 1),
    dot_tile=dot_tile,
    shuffle_bytes=neon.shuffle_bytes,
)
