"""What lies in a page of the KV cache, and the small matrix products that read it.

A page holds PAGE_TOKENS tokens of one sequence. Per layer it has one run of keys and one of values for each KV head; how they
lie there is a format's own affair (``pages_float``, ``pages_q8_0``). A format brings its sizes, and, for an instruction set,
the compiled functions that attention is made of:

- ``store(k, v, keys, values, place, head_dim, v_row, scratch)``: one token's head into a page.
- ``query(x, out, head_dim, scale)``: one query row as ``scores`` wants it.
- ``scores(left, q, q_row, keys, out, n_columns, head_dim)``: Q K^T of a block of query rows with the first ``n_columns`` (a
  multiple of 16) keys of a page. ``left``: rows from here to the end of the tile, see ``block_rows``.
- ``outputs(left, p, values, first_key, n_keys, o, o_row, v_row, scratch)``: O += P V for keys ``first_key`` up to
  ``first_key + n_keys`` of a page.

Scores and weights (float32) are rows of PART_TOKENS; each element is summed in one order, whatever rows stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gumba.kernels.jit import inline
from gumba.simd.isa import Isa
from gumba.simd.value import F32, Simd, Value, simd_function

PAGE_TOKENS = 64
#: Tokens of context whose softmax runs by itself: fixed, since it decides the order of sums.
PART_TOKENS = 512
#: Bytes between rows of scores and weights.
S_ROW = 4 * PART_TOKENS
#: Query rows are worked on in blocks of 6, the last ones of 6, 3 or 1; a tile's memory has room for whole blocks.
BLOCK_ROWS = 6
#: Bytes that ``store`` and ``outputs`` may use of a thread's scratch.
SCRATCH = 4 * PAGE_TOKENS * BLOCK_ROWS


@dataclass(frozen=True)
class PageFunctions:
    """The compiled functions of a format on an instruction set (see above)."""

    store: Any
    query: Any
    scores: Any
    outputs: Any


@dataclass(frozen=True)
class PageFormat:
    """Sizes in bytes of one head's keys and values in a page, and of a query row; ``v_align``: values of a token are padded
    to this many elements; ``functions(isa)`` makes the compiled part."""

    name: str
    v_align: int
    key_bytes: Callable[[int], int]
    value_bytes: Callable[[int], int]
    query_bytes: Callable[[int], int]
    functions: Callable[[Isa], PageFunctions]

    def v_row(self, head_dim: int) -> int:
        """Elements of a token's values, padding included."""
        return -(-head_dim // self.v_align) * self.v_align


def page_formats() -> dict[str, PageFormat]:
    """All formats by name."""
    from gumba.kernels import pages_float, pages_q8_0

    return {"f16": pages_float.F16_PAGES, "f32": pages_float.F32_PAGES, "q8_0": pages_q8_0.Q8_0_PAGES}


@inline
def block_rows(left):
    """Rows that a block takes when ``left`` are left of a tile; the last block may run over its end."""
    return 6 if left > 3 else 3 if left > 1 else 1


def _update(isa: Isa, load: Callable[[Simd, Value], Value], size: int, rows: int, vectors: int) -> Any:
    """C[r, :] += sum over k of A[r, k] * B[k, :], k from first to last; C begins at zero when ``fresh``.

    ``load(s, address)`` brings ``isa.lanes`` elements of B, ``size`` bytes each, as float32.
    """
    lanes = isa.lanes

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8)")
    def update(
        s: Simd, a: Value, a_row: Value, b: Value, b_row: Value, c: Value, c_row: Value, n: Value, fresh: Value
    ) -> None:
        accs = [[s.variable(s.zero(F32, lanes)) for _ in range(vectors)] for _ in range(rows)]
        with s.when(fresh.compare("==", 0)):
            for r in range(rows):
                for v in range(vectors):
                    accs[r][v].set(s.load(c + c_row * r + 4 * lanes * v, F32, lanes))
        with s.loop(n) as k:
            row = b + k * b_row
            bs = [load(s, row + lanes * size * v) for v in range(vectors)]
            for r in range(rows):
                x = s.splat(s.load(a + a_row * r + k * 4, F32), lanes)
                for v in range(vectors):
                    accs[r][v].set(isa.multiply_add(s, x, bs[v], accs[r][v].get()))
        for r in range(rows):
            for v in range(vectors):
                s.store(c + c_row * r + 4 * lanes * v, accs[r][v].get())

    return update


def rank_update(isa: Isa, load: Callable[[Simd, Value], Value], size: int, wide: int) -> Any:
    """A compiled ``update(left, a, a_row, b, b_row, c, c_row, columns, n, fresh)`` for a block of rows.

    ``columns`` is a multiple of 16. ``wide``: registers of columns taken at once where there are so many: with 32 registers,
    6 rows by 4 registers of sums leave room for what they are made of.
    """
    narrow = max(1, min(wide, 16 // isa.lanes))
    wide_columns, narrow_columns = wide * isa.lanes, narrow * isa.lanes
    wide_6, wide_3, wide_1 = (_update(isa, load, size, rows, wide) for rows in (6, 3, 1))
    narrow_6, narrow_3, narrow_1 = (_update(isa, load, size, rows, narrow) for rows in (6, 3, 1))

    @inline
    def update(left, a, a_row, b, b_row, c, c_row, columns, n, fresh):
        done = 0
        while done + wide_columns <= columns:
            if left > 3:
                wide_6(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            elif left > 1:
                wide_3(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            else:
                wide_1(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            done += wide_columns
        while done < columns:
            if left > 3:
                narrow_6(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            elif left > 1:
                narrow_3(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            else:
                narrow_1(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh)
            done += narrow_columns

    return update


def wide_registers(isa: Isa) -> int:
    """Registers of columns that ``rank_update`` takes at once: by the number of registers that the set has."""
    return 4 if isa.lanes == 16 else 2
