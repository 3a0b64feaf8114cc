"""Attention of a block of query rows with one part of the context: scores, weights, and the weighted sum of the values.

A block is up to BLOCK_ROWS rows of a tile; a part is up to PART_TOKENS keys. A row's result is ``v_row`` elements, then the sum
of its weights (+0) and its largest score (+4), by which ``row_merge`` merges parts.
"""

from __future__ import annotations

from gumba.backends.cpu.kernels.attention_layout import PART_PAGES, Variant, bounds, page_address, result_row_bytes
from gumba.backends.cpu.kernels.attention_softmax import clear, row_weights
from gumba.backends.cpu.kernels.page_format import (
    BLOCK_ROWS,
    PAGE_TOKENS,
    PART_TOKENS,
    S_ROW,
    PageFormat,
    block_rows,
)
from gumba.jit.jit import Inline, inline
from gumba.simd.isa import Isa
from gumba.simd.memory import load_i32


def _block_scores(isa: Isa, pages: PageFormat, variant: Variant) -> Inline[None]:
    """A compiled function: Q K^T of a block's rows with the keys of a part that any of them attends to."""
    scores, limits = pages.functions(isa).scores, bounds(variant)
    first_key, last_key = limits.first_key, limits.last_key

    @inline
    def block_scores(row, last_row, left, q, tile, geometry, part, work):
        n_keys = last_key(tile, geometry, last_row, part)
        begin = first_key(tile, geometry, row, part)
        for page in range(begin // PAGE_TOKENS, (n_keys + PAGE_TOKENS - 1) // PAGE_TOKENS):
            at = load_i32(tile.table + 4 * (part * PART_PAGES + page))
            keys = page_address(tile.k_pages, at, geometry, geometry.k_page)
            columns = (min(PAGE_TOKENS, n_keys - page * PAGE_TOKENS) + 15) // 16 * 16
            scores(left, q, geometry.q_row, keys, work + page * (4 * PAGE_TOKENS), columns, geometry.head_dim)

    return block_scores


def _block_weights(isa: Isa, variant: Variant) -> Inline[None]:
    """A compiled function: the softmax of each of ``n`` rows of scores, and empty results for them at ``out``."""
    weigh, limits = row_weights(isa, variant), bounds(variant)
    first_key, last_key = limits.first_key, limits.last_key

    @inline
    def block_weights(row, n, tile, geometry, part, work, out):
        group, v_row, out_row = geometry.group, geometry.v_row, result_row_bytes(geometry)
        for r in range(n):
            own = min(row + r, tile.rows - 1)
            first = first_key(tile, geometry, own, part)
            last = last_key(tile, geometry, own, part)
            clear(out + r * out_row, v_row // 16)
            distance = tile.first_position + own // group - part * PART_TOKENS
            of_head = tile.of_heads + own % group * geometry.of_distance_row
            totals = out + r * out_row + 4 * v_row
            weigh(work + r * S_ROW, first, last, totals, tile.cap, of_head, distance, geometry.reach)

    return block_weights


def _block_outputs(isa: Isa, pages: PageFormat, variant: Variant) -> Inline[None]:
    """A compiled function: O += P V of a block's rows, for the keys of a part.

    Keys that every row of the block attends to are taken together, those before and after them row by row: a key is multiplied
    by no weight, not even by zero, for a token that does not attend to it (zero times infinity would be NaN). Of two keys that
    are multiplied at once, the first may be before the first that is attended to, with a weight of zero.
    """
    outputs, together, bounded = pages.functions(isa).outputs, pages.together, variant.bounded
    limits = bounds(variant)
    first_key, last_key = limits.first_key, limits.last_key

    @inline
    def block_outputs(row, last_row, left, lines, tile, geometry, part, work, out):
        v_row, out_row = geometry.v_row, result_row_bytes(geometry)
        common = last_key(tile, geometry, row, part) // together * together
        common_first = 0
        if bounded:
            common_first = first_key(tile, geometry, last_row, part)
            common_first = (common_first + together - 1) // together * together
        for step in range(-lines if bounded else 0, lines + 1):
            r, taken, first, last = 0, left, common_first, common
            if step > 0:
                r, taken, first = step - 1, 1, common
                last = last_key(tile, geometry, row + r, part)
            if bounded:
                if step < 0:
                    r, taken = step + lines, 1
                    first = first_key(tile, geometry, row + r, part) // together * together
                    last = common_first
                if common_first >= common and step != 0:
                    last = last_key(tile, geometry, row + r, part)
                    first = first if step < 0 else last
            while first < last:
                page = first // PAGE_TOKENS
                stop = min(last, (page + 1) * PAGE_TOKENS)
                at = load_i32(tile.table + 4 * (part * PART_PAGES + page))
                values = page_address(tile.v_pages, at, geometry, geometry.v_page)
                outputs(taken, work + r * S_ROW + 4 * first, values, first % PAGE_TOKENS, stop - first,
                        out + r * out_row, out_row, v_row, work + BLOCK_ROWS * S_ROW)  # fmt: skip
                first = stop

    return block_outputs


def block_attention(isa: Isa, pages: PageFormat, variant: Variant) -> Inline[None]:
    """A compiled function: the results, at ``out``, of the block of a tile's rows from ``row`` on with one part of the context.

    ``q``: the block's first query row; ``work``: memory for BLOCK_ROWS rows of scores, then SCRATCH bytes.
    """
    block_scores = _block_scores(isa, pages, variant)
    block_weights = _block_weights(isa, variant)
    block_outputs = _block_outputs(isa, pages, variant)

    @inline
    def attend_block(row, q, tile, geometry, part, work, out):
        left = tile.rows - row
        n = block_rows(left)
        last_row = min(row + n, tile.rows) - 1
        block_scores(row, last_row, left, q, tile, geometry, part, work)
        block_weights(row, n, tile, geometry, part, work, out)
        block_outputs(row, last_row, left, min(n, left), tile, geometry, part, work, out)

    return attend_block
