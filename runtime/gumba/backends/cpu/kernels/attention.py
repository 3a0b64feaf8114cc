"""Attention over a paged KV cache, with grouped heads, for one and for many tokens.

The unit of work is (tile of consecutive query tokens of one sequence, KV head): its rows are the queries of all heads of the
group, so every page is read once for all of them. The context is cut into parts of PART_TOKENS at fixed places. For each
part, rows are taken in blocks of BLOCK_ROWS: their scores with all keys of the part, the softmax of each row, the weighted
sum of the values; scores stay in the first-level cache, the part's keys and values in the second-level cache. What lies in
a page, and the two small matrix products over it, is up to the page format (``kernels.page_format``).

Each part's softmax runs by itself, and the parts are merged in order (Milakov and Gimelshein 2018; Dao et al. 2023,
"Flash-Decoding"). Where a step has too few units for the threads (one sequence that decodes), the parts become units too, and
the thread that ends a tile's last part merges them all. So a row's numbers depend on its own query and on the pages before
it: not on the threads, nor on which rows share its tile, its batch or its prompt chunk. Exponentials are powers of two: the
base's logarithm is part of the queries' scale.

What some architectures add (``Variant``) is code of its own: a plain causal attention pays nothing for it. Pages that lie
before the first key that any row of a block attends to are not read, nor are their places in the block table.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.attention_block import block_attention
from gumba.backends.cpu.kernels.attention_layout import (
    PLAIN,
    SPLIT_UNITS_PER_THREAD,
    Tile,
    Variant,
    bounds,
    geometry_at,
    page_address,
    result_row_bytes,
)
from gumba.backends.cpu.kernels.attention_softmax import copy, inverse, row_merge, row_sink
from gumba.backends.cpu.kernels.page_format import (
    BLOCK_ROWS,
    PAGE_TOKENS,
    PART_TOKENS,
    S_ROW,
    SCRATCH,
    PageFormat,
    scale_copy,
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
from gumba.jit.jit import Inline, inline
from gumba.simd.isa import Isa
from gumba.simd.memory import atomic_add, load_f32, load_i64, store_f32, store_i64


@functools.cache
def store_kv(isa: Isa, pages: PageFormat) -> Kernel:
    """Write the keys and values of this step's tokens to their places in the cache pages.

    k, v: float32 [n_tokens, n_kv_heads * head_dim] and [n_tokens, n_kv_heads * v_dim]; ``memory``: this layer's part of the
    cache; ``scratch``: 64-byte aligned, ``scratch_bytes`` for each thread; ``geo``: address of the GEOMETRY record.
    """
    store = pages.functions(isa).store

    @kernel(variant=f"{isa.name},{pages.name}")
    def store_kv(batch, thread, n_threads, k, v, k_stride, v_stride, memory, geo, scratch, scratch_bytes):
        geometry = geometry_at(geo)
        n = load_i64(batch + N_TOKENS)
        slots = load_i64(batch + geometry.slots_at)
        head_dim, v_dim = geometry.head_dim, geometry.v_dim
        n_heads = geometry.n_kv_heads
        t, h, n_units = first_unit(n, n_heads, thread, n_threads)
        slot, keys, values, stored = 0, 0, 0, -1
        for _ in range(n_units):
            if t != stored:
                slot, stored = load_i64(slots + 8 * t), t
                keys = page_address(memory, slot // PAGE_TOKENS, geometry, geometry.k_page)
                values = page_address(memory + geometry.v_offset, slot // PAGE_TOKENS, geometry, geometry.v_page)
            store(k + t * k_stride + h * head_dim * 4, v + t * v_stride + h * v_dim * 4, keys + h * geometry.k_head,
                  values + h * geometry.v_head, slot % PAGE_TOKENS, head_dim, v_dim, geometry.v_row,
                  scratch + thread * scratch_bytes)  # fmt: skip
            t, h = next_unit(t, h, n_heads)

    return store_kv


def _gather(isa: Isa, pages: PageFormat) -> Inline[None]:
    """A compiled function: a tile's queries for one KV head, as rows one after the other; zeros to the end of the last block."""
    query = pages.functions(isa).query

    @inline
    def gather(q, stride, out, geometry, first_token, head, rows, scale):
        group, head_dim, q_row = geometry.group, geometry.head_dim, geometry.q_row
        for r in range(rows):
            source = q + (first_token + r // group) * stride + (head * group + r % group) * head_dim * 4
            query(source, out + r * q_row, head_dim, scale)
        padded = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
        for i in range((padded - rows) * q_row // 4):
            store_f32(out + rows * q_row + 4 * i, 0.0)

    return gather


def _scatter(isa: Isa, variant: Variant) -> Inline[None]:
    """A compiled function: a tile's results, divided by the sums of their weights, to their tokens and heads."""
    sink_factor, has_sinks = row_sink(isa), variant.sinks

    @inline
    def scatter(results, out, stride, geometry, first_token, head, rows):
        group, v_dim, v_row = geometry.group, geometry.v_dim, geometry.v_row
        for r in range(rows):
            own = head * group + r % group
            source = results + r * result_row_bytes(geometry)
            target = out + (first_token + r // group) * stride + own * v_dim * 4
            if has_sinks:
                factor = sink_factor(source + 4 * v_row, load_f32(geometry.sinks + 4 * own))
            else:
                factor = inverse(load_f32(source + 4 * v_row))
            scale_copy(source, target, v_dim, factor)

    return scatter


@functools.cache
def _attends(variant: Variant) -> Inline[bool]:
    """A compiled function: whether a tile's row attends to any key of a part."""
    limits = bounds(variant)
    first_key, last_key = limits.first_key, limits.last_key

    @inline
    def attends(tile, geometry, row, part):
        return last_key(tile, geometry, row, part) > first_key(tile, geometry, row, part)

    return attends


def _merge_rows(isa: Isa, variant: Variant) -> Inline[None]:
    """A compiled function: merges rows ``row`` up to ``last`` of a later part, the first of them at ``part_rows``, into those of
    the parts before, ``whole_rows``."""
    merge, attends = row_merge(isa), _attends(variant)

    @inline
    def merge_rows(row, last, part_rows, whole_rows, tile, geometry, part):
        v_row, out_row = geometry.v_row, result_row_bytes(geometry)
        for r in range(row, last):
            if attends(tile, geometry, r, part):
                merge(part_rows + (r - row) * out_row, whole_rows + r * out_row, v_row)

    return merge_rows


def _attend_parts(isa: Isa, pages: PageFormat, variant: Variant) -> Inline[None]:
    """A compiled function: the results, at ``out``, of all rows of a tile with parts ``first`` up to ``last``, in order.

    ``work``: memory for a block's scores, SCRATCH bytes, and a block's results.
    """
    attend_block, merge_rows = block_attention(isa, pages, variant), _merge_rows(isa, variant)
    attends, bounded = _attends(variant), variant.bounded

    @inline
    def attend_parts(q, tile, geometry, first, last, work, out):
        out_row = result_row_bytes(geometry)
        results = work + BLOCK_ROWS * S_ROW + SCRATCH
        for part in range(first, last):
            for row in range(0, tile.rows, BLOCK_ROWS):
                stop = min(row + BLOCK_ROWS, tile.rows)
                attended = part == first or attends(tile, geometry, stop - 1, part)
                if bounded and not attended:
                    attended = attends(tile, geometry, row, part)
                if attended:
                    target = out + row * out_row if part == first else results
                    attend_block(row, q + row * geometry.q_row, tile, geometry, part, work, target)
                if part > first:
                    merge_rows(row, stop, results, out, tile, geometry, part)

    return attend_parts


def _parts_of_context(variant: Variant) -> Inline[tuple[int, int]]:
    """A compiled function: the first part that holds a key that a tile's tokens attend to, and the last one (exclusive)."""
    first_attended = bounds(variant).first_attended
    bounded, window, bidirectional, cross = variant.bounded, variant.window, variant.bidirectional, variant.cross

    @inline
    def parts_of_context(first_position, n_tokens, edge, geometry):
        begin, context = 0, first_position + n_tokens
        if bounded:
            begin = first_attended(first_position, geometry, edge) // PART_TOKENS
        if bidirectional:
            context = min(edge, context - 1 + geometry.window) if window else edge
        if cross:
            context = edge
        return begin, (context + PART_TOKENS - 1) // PART_TOKENS

    return parts_of_context


@functools.cache
def attention(isa: Isa, pages: PageFormat, variant: Variant = PLAIN) -> Kernel:
    """q: float32 [n_tokens, n_kv_heads * group, head_dim] -> out: float32 [n_tokens, n_kv_heads * group, v_dim].

    ``stride``, ``out_stride``: bytes from row to row of each; ``scale``: of the scores (1 / sqrt(head_dim)), times LOG2_E;
    ``cap``: with a soft cap, this times LOG2_E, and ``scale`` is divided by it instead; ``memory``: address of this layer's part
    of the cache; ``geo``: address of the GEOMETRY record; ``scratch``: 64-byte aligned, ``scratch_bytes`` for each thread;
    ``partials``: ``partials_bytes``, its counters zero (only for a split step).
    """
    gather, scatter, attend_parts = _gather(isa, pages), _scatter(isa, variant), _attend_parts(isa, pages, variant)
    merge_rows, parts_of_context = _merge_rows(isa, variant), _parts_of_context(variant)
    sourced = variant.target or variant.cross

    @kernel(variant=f"{isa.name},{pages.name}{variant.name}", inline_first=True)
    def attention(
        batch, thread, n_threads, view, q, out, stride, out_stride, memory, geo, scratch, scratch_bytes, partials,
        scale: f4, cap: f4,
    ):  # fmt: skip
        batch += view
        geometry = geometry_at(geo)
        n_heads, group, max_rows, out_row = (
            geometry.n_kv_heads,
            geometry.group,
            geometry.max_rows,
            result_row_bytes(geometry),
        )
        split = load_i64(batch + SPLIT)
        parts_each = max(1, split)
        queries = scratch + thread * scratch_bytes
        results = queries + max_rows * geometry.q_row
        work = results + max_rows * out_row
        for job in range(thread, load_i64(batch + N_TILES) * n_heads * parts_each, n_threads):
            unit, part = job // parts_each, job % parts_each
            at, head = load_i64(batch + TILES) + unit // n_heads * (8 * TILE_WORDS), unit % n_heads
            first_token, rows, first_position = load_i64(at), load_i64(at + 8) * group, load_i64(at + 16)
            edge = load_i64(at + SOURCE) if sourced else load_i64(at + 32)
            begin, n_parts = parts_of_context(first_position, load_i64(at + 8), edge, geometry)
            if split != 0 and (part < begin or part >= n_parts):
                continue
            gather(q, stride, queries, geometry, first_token, head, rows, scale)
            tile = Tile(rows, first_position, edge, load_i64(at + geometry.table_at), memory + head * geometry.k_head,
                        memory + geometry.v_offset + head * geometry.v_head,
                        geometry.of_distance + head * group * geometry.of_distance_row, cap)  # fmt: skip
            # Of a split context: one part, left beside the tile's others by the thread that computes it.
            first, last, target = begin, n_parts, results
            part_bytes = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS * out_row
            parts = partials + SPLIT_UNITS_PER_THREAD * n_threads * 64 + unit * split * max_rows * out_row
            if split != 0:
                first, last, target = part, part + 1, parts + part * part_bytes
            attend_parts(queries, tile, geometry, first, last, work, target)
            if split != 0:
                if atomic_add(partials + unit * 64, 1) != n_parts - begin - 1:
                    continue
                store_i64(partials + unit * 64, 0)
                copy(parts + begin * part_bytes, results, rows * out_row // 64)
                for later in range(begin + 1, n_parts):
                    merge_rows(0, rows, parts + later * part_bytes, results, tile, geometry, later)
            scatter(results, out, out_stride, geometry, first_token, head, rows)

    return attention
