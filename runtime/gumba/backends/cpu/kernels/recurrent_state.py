"""What operations with a state share: what a layer keeps of all earlier tokens is one state of fixed size for each sequence.

A step's tokens of one sequence are a run: (first token, tokens, position of the first, byte offset of the sequence's slot). A
layer's state lies at ``memory`` + offset; at position 0 it is zero, whatever lies there. The tokens of a run are taken one after
the other, so a result depends on the tokens before it and not on how they came in steps. Units of work are columns: each has
its own part of the state, which no other unit touches.
"""

from __future__ import annotations

from gumba.simd.value import F32, Simd, Value, simd_function

#: Columns that a unit takes, and the bytes of their floats.
COLUMNS = 32
ROW = 4 * COLUMNS
#: Vectors of 16 in a row.
VECTORS = range(2)


@simd_function("void(i8, i8)")
def clear_state(s: Simd, at: Value, n_rows: Value) -> None:
    with s.loop(n_rows) as row:
        for i in VECTORS:
            s.store(at + row * ROW + 64 * i, s.zero(F32, 16))
