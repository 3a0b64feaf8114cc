"""Attention over a paged KV cache, with grouped heads, for one and for many tokens.

The unit of work is (tile of consecutive query tokens of one sequence, KV head): its rows are the queries of all heads of the
group, so every page is read once for all of them. The context is cut into parts of PART_TOKENS at fixed places. For each
part, rows are taken in blocks of BLOCK_ROWS: their scores with all keys of the part, the softmax of each row, the weighted
sum of the values; scores stay in the first-level cache, the part's keys and values in the second. What lies in a page, and
the two small matrix products over it, is up to the page format (``kernels.page_format``).

Each part's softmax runs by itself, and the parts are merged in order (Milakov and Gimelshein 2018; Dao et al. 2023,
"Flash-Decoding"). Where a step has too few units for the threads (one sequence that decodes), the parts become units too, and
whoever ends a tile's last part merges them all. So a row's numbers depend on its own query and on the pages before it: not on
the threads, nor on which rows share its tile, its batch or its prompt chunk. Exponentials are powers of two: the base's
logarithm is part of the queries' scale.

What some architectures add (``Variant``) is code of its own: a plain causal attention pays nothing for it. Pages that lie
before what any row of a block sees are not read, nor are their places in the block table.
"""

from __future__ import annotations

import functools
from typing import Any

from gumba.backends.cpu.kernels.attention_layout import (
    GROUP,
    HEAD_DIM,
    K_HEAD,
    K_PAGE,
    MAX_ROWS,
    N_KV_HEADS,
    OF_DISTANCE,
    OF_DISTANCE_ROW,
    PART_PAGES,
    PLAIN,
    Q_ROW,
    REACH,
    SINKS,
    SLOTS_AT,
    SPLIT_UNITS_PER_THREAD,
    TABLE_AT,
    V_DIM,
    V_HEAD,
    V_OFFSET,
    V_PAGE,
    V_ROW,
    WINDOW,
    Variant,
    bounds,
    page_address,
)
from gumba.backends.cpu.kernels.attention_softmax import (
    clear,
    copy,
    inverse,
    row_merge,
    row_sink,
    row_weights,
    scale_copy,
)
from gumba.backends.cpu.kernels.page_format import (
    BLOCK_ROWS,
    PAGE_TOKENS,
    PART_TOKENS,
    S_ROW,
    SCRATCH,
    PageFormat,
    block_rows,
)
from gumba.backends.cpu.kernels.record import (
    N_TILES,
    N_TOKENS,
    SOURCE,
    SPLIT,
    TILE_WORDS,
    TILES,
    Kernel,
    f4,
    first_unit,
    kernel,
    next_unit,
)
from gumba.jit.jit import inline
from gumba.simd.isa import Isa
from gumba.simd.memory import atomic_add, load_f32, load_i32, load_i64, store_f32, store_i64


@functools.cache
def store_kv(isa: Isa, pages: PageFormat) -> Kernel:
    """Write the keys and values of this step's tokens to their places in the cache.

    k, v: float32 [n_tokens, n_kv_heads * head_dim] and [n_tokens, n_kv_heads * v_dim]; ``memory``: this layer's part of the
    cache; ``scratch``: 64-byte aligned, ``scratch_bytes`` for each thread; ``geo``: address of the ``geometry``.
    """
    store = pages.functions(isa).store

    @kernel(variant=f"{isa.name},{pages.name}")
    def store_kv(batch, thread, n_threads, k, v, k_stride, v_stride, memory, geo, scratch, scratch_bytes):
        n = load_i64(batch + N_TOKENS)
        slots = load_i64(batch + load_i64(geo + SLOTS_AT))
        head_dim, v_dim = load_i64(geo + HEAD_DIM), load_i64(geo + V_DIM)
        n_heads = load_i64(geo + N_KV_HEADS)
        t, h, n_units = first_unit(n, n_heads, thread, n_threads)
        slot, keys, values, stored = 0, 0, 0, -1
        for _ in range(n_units):
            if t != stored:
                slot, stored = load_i64(slots + 8 * t), t
                keys = page_address(memory, slot // PAGE_TOKENS, geo, K_PAGE)
                values = page_address(memory + load_i64(geo + V_OFFSET), slot // PAGE_TOKENS, geo, V_PAGE)
            store(k + t * k_stride + h * head_dim * 4, v + t * v_stride + h * v_dim * 4, keys + h * load_i64(geo + K_HEAD),
                  values + h * load_i64(geo + V_HEAD), slot % PAGE_TOKENS, head_dim, v_dim, load_i64(geo + V_ROW),
                  scratch + thread * scratch_bytes)  # fmt: skip
            t, h = next_unit(t, h, n_heads)

    return store_kv


def _attend_block(isa: Isa, pages: PageFormat, variant: Variant) -> Any:
    """A compiled function: one block of rows with one part of the context, from nothing."""
    functions = pages.functions(isa)
    scores, outputs, together = functions.scores, functions.outputs, pages.together
    _, first_key, last_key = bounds(variant)
    weigh, bounded = row_weights(isa, variant), variant.bounded

    @inline
    def attend_block(row, rows, q, table, k_pages, v_pages, geo, part, first_position, edge, of_heads, cap, work, out):
        """``edge``: see ``bounds``; ``work``: memory for scores, then SCRATCH bytes; ``out``: where the rows' results go."""
        group, v_row = load_i64(geo + GROUP), load_i64(geo + V_ROW)
        out_row = 4 * (v_row + 16)
        left = rows - row
        n = block_rows(left)
        last_row = min(row + n, rows) - 1
        n_keys = last_key(first_position, last_row, group, part, geo, edge)
        begin = first_key(first_position, row, group, part, geo, edge)
        for page in range(begin // PAGE_TOKENS, (n_keys + PAGE_TOKENS - 1) // PAGE_TOKENS):
            keys = page_address(k_pages, load_i32(table + 4 * (part * PART_PAGES + page)), geo, K_PAGE)
            columns = (min(PAGE_TOKENS, n_keys - page * PAGE_TOKENS) + 15) // 16 * 16
            scores(left, q, load_i64(geo + Q_ROW), keys, work + page * (4 * PAGE_TOKENS), columns,
                   load_i64(geo + HEAD_DIM))  # fmt: skip
        for r in range(n):
            own = min(row + r, rows - 1)
            first = first_key(first_position, own, group, part, geo, edge)
            last = last_key(first_position, own, group, part, geo, edge)
            clear(out + r * out_row, v_row // 16)
            distance = first_position + own // group - part * PART_TOKENS
            of_head = of_heads + own % group * load_i64(geo + OF_DISTANCE_ROW)
            totals = out + r * out_row + 4 * v_row
            weigh(work + r * S_ROW, first, last, totals, cap, of_head, distance, load_i64(geo + REACH))
        # Keys that every row of the block sees are taken together, those before and after them row by row: a key is
        # multiplied by no weight, not even by zero, for a token that does not see it (zero times infinity would be NaN).
        # Of two keys that are multiplied at once, the first may lie before what is seen, with a weight of zero.
        common = last_key(first_position, row, group, part, geo, edge) // together * together
        common_first = 0
        if bounded:
            common_first = first_key(first_position, last_row, group, part, geo, edge)
            common_first = (common_first + together - 1) // together * together
        lines = min(n, left)
        for step in range(-lines if bounded else 0, lines + 1):
            r, taken, first, last = 0, left, common_first, common
            if step > 0:
                r, taken, first = step - 1, 1, common
                last = last_key(first_position, row + r, group, part, geo, edge)
            if bounded:
                if step < 0:
                    r, taken = step + lines, 1
                    first = first_key(first_position, row + r, group, part, geo, edge) // together * together
                    last = common_first
                if common_first >= common and step != 0:
                    last = last_key(first_position, row + r, group, part, geo, edge)
                    first = first if step < 0 else last
            while first < last:
                page = first // PAGE_TOKENS
                stop = min(last, (page + 1) * PAGE_TOKENS)
                values = page_address(v_pages, load_i32(table + 4 * (part * PART_PAGES + page)), geo, V_PAGE)
                outputs(taken, work + r * S_ROW + 4 * first, values, first % PAGE_TOKENS, stop - first,
                        out + r * out_row, out_row, v_row, work + BLOCK_ROWS * S_ROW)  # fmt: skip
                first = stop

    return attend_block


@functools.cache
def attention(isa: Isa, pages: PageFormat, variant: Variant = PLAIN) -> Kernel:
    """q: float32 [n_tokens, n_kv_heads * group, head_dim] -> out: float32 [n_tokens, n_kv_heads * group, v_dim].

    ``stride``, ``out_stride``: bytes from row to row of each; ``scale``: of the scores (1 / sqrt(head_dim)), times LOG2_E;
    ``cap``: with a soft cap, this times LOG2_E, and ``scale`` is divided by it instead; ``memory``: address of this layer's part
    of the cache; ``geo``: address of the ``geometry``; ``scratch``: 64-byte aligned, ``scratch_bytes`` for each thread;
    ``partials``: ``partials_bytes``, its counters zero (only for a split step).
    """
    query = pages.functions(isa).query
    attend_block, merge, sink_factor = _attend_block(isa, pages, variant), row_merge(isa), row_sink(isa)
    first_seen, first_key, last_key = bounds(variant)
    bounded, window, whole, has_sinks = variant.bounded, variant.window, variant.whole, variant.sinks
    sourced, cross = variant.answer or variant.cross, variant.cross

    @inline
    def gather(q, stride, out, geo, first_token, head, rows, scale):
        """A tile's queries for one KV head, as rows one after the other; zeros to the end of the last block."""
        group, head_dim, q_row = load_i64(geo + GROUP), load_i64(geo + HEAD_DIM), load_i64(geo + Q_ROW)
        for r in range(rows):
            source = q + (first_token + r // group) * stride + (head * group + r % group) * head_dim * 4
            query(source, out + r * q_row, head_dim, scale)
        padded = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
        for i in range((padded - rows) * q_row // 4):
            store_f32(out + rows * q_row + 4 * i, 0.0)

    @inline
    def sees(first_position, row, part, geo, edge):
        """Whether a tile's row sees any key of a part."""
        group = load_i64(geo + GROUP)
        last = last_key(first_position, row, group, part, geo, edge)
        return last > first_key(first_position, row, group, part, geo, edge)

    @inline
    def merge_rows(row, last, part_rows, whole_rows, first_position, part, geo, edge):
        """Rows ``row`` up to ``last`` of a later part, whose first row is at ``part_rows``, to those of the parts before."""
        v_row = load_i64(geo + V_ROW)
        out_row = 4 * (v_row + 16)
        for r in range(row, last):
            if sees(first_position, r, part, geo, edge):
                merge(part_rows + (r - row) * out_row, whole_rows + r * out_row, v_row)

    @inline
    def attend_parts(
        q, rows, table, k_pages, v_pages, geo, first_position, edge, first, last, of_heads, cap, work, out
    ):
        """Parts ``first`` up to ``last`` of the context, in order, for all rows of a tile, whose results go to ``out``.

        ``work``: memory for a block's scores, SCRATCH bytes, and a block's results.
        """
        out_row = 4 * (load_i64(geo + V_ROW) + 16)
        results = work + BLOCK_ROWS * S_ROW + SCRATCH
        for part in range(first, last):
            row = 0
            while row < rows:
                stop = min(row + block_rows(rows - row), rows)
                seen = part == first or sees(first_position, stop - 1, part, geo, edge)
                if bounded and not seen:
                    seen = sees(first_position, row, part, geo, edge)
                if seen:
                    attend_block(row, rows, q + row * load_i64(geo + Q_ROW), table, k_pages, v_pages, geo, part,
                                 first_position, edge, of_heads, cap, work,
                                 out + row * out_row if part == first else results)  # fmt: skip
                if part > first:
                    merge_rows(row, stop, results, out, first_position, part, geo, edge)
                row += block_rows(rows - row)

    @inline
    def scatter(results, out, stride, geo, first_token, head, rows):
        """Outputs divided by their weights' sums, to their tokens and heads."""
        group, v_dim, v_row = load_i64(geo + GROUP), load_i64(geo + V_DIM), load_i64(geo + V_ROW)
        for r in range(rows):
            own = head * group + r % group
            source = results + r * (4 * (v_row + 16))
            target = out + (first_token + r // group) * stride + own * v_dim * 4
            if has_sinks:
                factor = sink_factor(source + 4 * v_row, load_f32(load_i64(geo + SINKS) + 4 * own))
            else:
                factor = inverse(load_f32(source + 4 * v_row))
            scale_copy(source, target, v_dim, factor)

    @kernel(variant=f"{isa.name},{pages.name}{variant.name}")
    def attention(
        batch,
        thread,
        n_threads,
        view,
        q,
        out,
        stride,
        out_stride,
        memory,
        geo,
        scratch,
        scratch_bytes,
        partials,
        scale: f4,
        cap: f4,
    ):
        batch += view
        n_heads, max_rows = load_i64(geo + N_KV_HEADS), load_i64(geo + MAX_ROWS)
        out_row = 4 * (load_i64(geo + V_ROW) + 16)
        split = load_i64(batch + SPLIT)
        parts_each = max(1, split)
        queries = scratch + thread * scratch_bytes
        results = queries + max_rows * load_i64(geo + Q_ROW)
        work = results + max_rows * out_row
        for job in range(thread, load_i64(batch + N_TILES) * n_heads * parts_each, n_threads):
            unit = job // parts_each
            part = job % parts_each
            tile = load_i64(batch + TILES) + unit // n_heads * (8 * TILE_WORDS)
            head = unit % n_heads
            group = load_i64(geo + GROUP)
            first_token, rows = load_i64(tile), load_i64(tile + 8) * group
            first_position, table = load_i64(tile + 16), load_i64(tile + load_i64(geo + TABLE_AT))
            edge = load_i64(tile + SOURCE) if sourced else load_i64(tile + 32)
            begin, context = 0, first_position + load_i64(tile + 8)
            if bounded:
                begin = first_seen(first_position, geo, edge) // PART_TOKENS
            if whole:
                context = min(edge, context - 1 + load_i64(geo + WINDOW)) if window else edge
            if cross:
                context = edge
            n_parts = (context + PART_TOKENS - 1) // PART_TOKENS
            if split != 0 and (part < begin or part >= n_parts):
                continue
            k_pages = memory + head * load_i64(geo + K_HEAD)
            v_pages = memory + load_i64(geo + V_OFFSET) + head * load_i64(geo + V_HEAD)
            gather(q, stride, queries, geo, first_token, head, rows, scale)
            first, last, target = begin, n_parts, results
            # Of a split context: one part, left beside the others' by whoever computes it.
            padded = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
            parts = partials + SPLIT_UNITS_PER_THREAD * n_threads * 64 + unit * split * max_rows * out_row
            if split != 0:
                first, last, target = part, part + 1, parts + part * padded * out_row
            of_heads = load_i64(geo + OF_DISTANCE) + head * group * load_i64(geo + OF_DISTANCE_ROW)
            attend_parts(queries, rows, table, k_pages, v_pages, geo, first_position, edge, first, last, of_heads, cap,
                         work, target)  # fmt: skip
            if split != 0:
                if atomic_add(partials + unit * 64, 1) != n_parts - begin - 1:
                    continue
                store_i64(partials + unit * 64, 0)
                copy(parts + begin * padded * out_row, results, rows * out_row // 64)
                for each in range(begin + 1, n_parts):
                    merge_rows(0, rows, parts + each * padded * out_row, results, first_position, each, geo, edge)
            scatter(results, out, out_stride, geo, first_token, head, rows)

    return attention
