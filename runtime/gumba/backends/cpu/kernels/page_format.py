"""What attention needs of a format of KV cache pages, and the small matrix product that formats build on.

A page holds PAGE_TOKENS tokens of one sequence. Per layer it has one run of keys and one of values for each KV head; each
format (``gumba.backends.cpu.kv_pages``) lays them out in its own way. A ``PageFormat`` states its sizes, and, for an instruction
set, the compiled functions that attention calls:

- ``store(k, v, keys, values, place, head_dim, v_dim, v_row, scratch)``: one token's head into a page.
- ``query(x, out, head_dim, scale)``: one query row as ``scores`` wants it.
- ``scores(left, q, q_row, keys, out, n_columns, head_dim)``: Q K^T of a block of query rows with the first ``n_columns`` (a
  multiple of 16) keys of a page. ``left``: rows from here to the end of the tile, see ``block_rows``.
- ``outputs(left, p, values, first_key, n_keys, o, o_row, v_row, scratch)``: O += P V for keys ``first_key`` up to
  ``first_key + n_keys`` of a page, both multiples of ``together`` unless it is the last key of a single row.

Scores and weights (float32) are rows of PART_TOKENS; each element is summed in one order, whatever rows stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from gumba.jit.jit import Inline, Intrinsic, inline
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

    store: Inline[None]
    query: Inline[None]
    scores: Inline[None]
    outputs: Inline[None]


@dataclass(frozen=True)
class PageFormat:
    """A format of KV cache pages.

    ``key_bytes(head_dim)``, ``value_bytes(v_dim)``: bytes of one head's keys and values in a page; ``query_bytes(head_dim)``:
    bytes of a query row; ``v_align``: a token's values are padded to a multiple of this many elements; ``functions(isa)``:
    the compiled part; ``together``: keys that are multiplied at once.
    """

    name: str
    v_align: int
    key_bytes: Callable[[int], int]
    value_bytes: Callable[[int], int]
    query_bytes: Callable[[int], int]
    functions: Callable[[Isa], PageFunctions]
    together: int = 1

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return PAGE_TOKENS

    def arithmetic(self, isa: Isa) -> str:
        """What the products are computed in: whose peak rate a profile compares them with."""
        return "bf16" if self.together == 2 and isa.dot_bf16 is not None else "float32"

    def v_row(self, v_dim: int) -> int:
        """Elements of a token's values, padding included."""
        return -(-v_dim // self.v_align) * self.v_align


@inline
def block_rows(left):
    """Rows that a block takes when ``left`` are left of a tile; the last block may run over its end."""
    return 6 if left > 3 else 3 if left > 1 else 1


@simd_function("void(i8, i8, i8, f4)")
def scale_copy(s: Simd, x: Value, out: Value, n: Value, factor: Value) -> None:
    """``n`` float32 at ``x`` times ``factor`` to ``out``."""
    with s.loop(n & -16, step=16) as i:
        s.store(out + i * 4, s.load(x + i * 4, F32, 16) * s.splat(factor, 16))
    with s.loop(n & 15) as i:
        at = ((n & -16) + i) * 4
        s.store(out + at, s.load(x + at, F32) * factor)


@dataclass(frozen=True)
class Product:
    """How ``rank_update`` multiplies. A is loaded as ``element`` (32 bits) to all lanes; B by ``load(s, address)``, for each
    lane ``size`` bytes; ``multiply_add(s, a, b, sum)``. ``last(s, b)``, if any: B's part that counts in an odd last step."""

    element: ir.Type
    size: int
    load: Callable[[Simd, Value], Value]
    multiply_add: Callable[[Simd, Value, Value, Value], Value]
    last: Callable[[Simd, Value], Value] | None = None


def float_product(isa: Isa, size: int, load: Callable[[Simd, Value], Value]) -> Product:
    """Float32 multiply-adds of what ``load`` makes of ``isa.lanes`` elements of ``size`` bytes."""
    return Product(F32, size, load, lambda s, a, b, acc: isa.multiply_add(s, a, b, acc))


def _update(isa: Isa, product: Product, rows: int, vectors: int) -> Intrinsic[None]:
    """C[r, :] += sum over k of A[r, k] * B[k, :] for ``n`` k; C begins at zero when ``fresh``. ``odd``: one more step, with
    ``product.last`` (one row only)."""
    lanes, size = isa.lanes, product.size

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8, i8)")
    def update(
        s: Simd,
        a: Value,
        a_row: Value,
        b: Value,
        b_row: Value,
        c: Value,
        c_row: Value,
        n: Value,
        fresh: Value,
        odd: Value,
    ) -> None:
        accs = [[s.variable(s.zero(F32, lanes)) for _ in range(vectors)] for _ in range(rows)]
        with s.when(fresh.compare("==", 0)):
            for r in range(rows):
                for v in range(vectors):
                    accs[r][v].set(s.load(c + c_row * r + 4 * lanes * v, F32, lanes))

        def step(k: Value, part: Callable[[Value], Value]) -> None:
            row = b + k * b_row
            bs = [part(product.load(s, row + lanes * size * v)) for v in range(vectors)]
            for r in range(rows):
                x = s.splat(s.load(a + a_row * r + k * 4, product.element), lanes)
                for v in range(vectors):
                    accs[r][v].set(product.multiply_add(s, x, bs[v], accs[r][v].get()))

        with s.loop(n) as k:
            step(k, lambda x: x)
        if product.last is not None and rows == 1:
            last = product.last
            with s.when(odd.compare("!=", 0)):
                step(n, lambda x: last(s, x))
        for r in range(rows):
            for v in range(vectors):
                s.store(c + c_row * r + 4 * lanes * v, accs[r][v].get())

    return update


def rank_update(isa: Isa, product: Product, wide: int) -> Inline[None]:
    """A compiled ``update(left, a, a_row, b, b_row, c, c_row, columns, n, fresh, odd)`` for a block of rows.

    ``columns`` is a multiple of 16. ``wide``: registers of columns taken at once where there are so many columns: with 32
    registers, 6 rows by 4 registers of sums leave room for the factors.
    """
    size = product.size
    narrow = max(1, min(wide, 16 // isa.lanes))
    wide_columns, narrow_columns = wide * isa.lanes, narrow * isa.lanes
    wide_6, wide_3, wide_1 = (_update(isa, product, rows, wide) for rows in (6, 3, 1))
    narrow_6, narrow_3, narrow_1 = (_update(isa, product, rows, narrow) for rows in (6, 3, 1))

    @inline
    def update(left, a, a_row, b, b_row, c, c_row, columns, n, fresh, odd):
        done = 0
        while done + wide_columns <= columns:
            if left > 3:
                wide_6(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            elif left > 1:
                wide_3(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            else:
                wide_1(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            done += wide_columns
        while done < columns:
            if left > 3:
                narrow_6(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            elif left > 1:
                narrow_3(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            else:
                narrow_1(a, a_row, b + done * size, b_row, c + done * 4, c_row, n, fresh, odd)
            done += narrow_columns

    return update


def wide_registers(isa: Isa) -> int:
    """Registers of columns that ``rank_update`` takes at once, for the number of registers that the set has."""
    return 4 if isa.registers >= 32 else 2
