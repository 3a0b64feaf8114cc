"""Attention over a paged KV cache, with grouped heads, for one and for many tokens.

The unit of work is (tile of consecutive query tokens of one sequence, KV head): its rows are the queries of all heads of the
group, so every page is read once for all of them. The context is cut into parts of PART_TOKENS at fixed places. For each
part, rows are taken in blocks of BLOCK_ROWS: their scores with all keys of the part, the softmax of each row, the weighted
sum of the values; scores stay in the first-level cache, the part's keys and values in the second. What lies in a page, and
the two small matrix products over it, is the page format's affair (``gumba.kernels.pages``).

Each part's softmax runs by itself, and the parts are merged in order (Milakov and Gimelshein 2018; Dao et al. 2023,
"Flash-Decoding"). Where a step has too few units for the threads (one sequence that decodes), the parts become units too, and
whoever ends a tile's last part merges them all. So a row's numbers depend on its own query and on the pages before it: not on
the threads, nor on which rows share its tile, its batch or its prompt chunk. Exponentials are powers of two: the base's
logarithm is part of the queries' scale.

What some architectures add (``Variant``) is code of its own: a plain causal attention pays nothing for it. Pages that lie
before the window of all rows of a block are not read, nor are their places in the block table.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gumba.kernels.jit import inline
from gumba.kernels.op import N_TILES, N_TOKENS, SLOTS, SPLIT, TILE_WORDS, TILES, Kernel, f4, kernel, share
from gumba.kernels.pages import BLOCK_ROWS, PAGE_TOKENS, PART_TOKENS, S_ROW, SCRATCH, PageFormat, block_rows
from gumba.simd.isa import Isa
from gumba.simd.maths import exp2, tanh
from gumba.simd.memory import atomic_add, load_f32, load_i32, load_i64, store_f32, store_i64
from gumba.simd.value import F32, I32, Simd, Value, simd_function

PART_PAGES = PART_TOKENS // PAGE_TOKENS
#: Rows that a tile aims at: enough to use each part of the context often while it is in the second-level cache.
TILE_ROWS = 48
_SPLIT_UNITS_PER_THREAD = 4
#: Factor of the scores' scale: softmax is computed with powers of two.
LOG2_E = math.log2(math.e)

# Byte offsets in the geometry, a constant int64 array that says how things lie.
K_PAGE, V_PAGE, K_HEAD, V_HEAD, V_OFFSET = 0, 8, 16, 24, 32
N_KV_HEADS, GROUP, HEAD_DIM, V_ROW, Q_ROW, MAX_ROWS = 40, 48, 56, 64, 72, 80
EXTENT_PAGES, EXTENT_BYTES, V_DIM, WINDOW, SINKS, SLOPES = 88, 96, 104, 112, 120, 128


@dataclass(frozen=True)
class Variant:
    """What an attention is beside plain, each with code of its own.

    ``whole``: a token sees all of its sequence, not only what comes before it; ``window``: of that, only what is less than a
    number of tokens away (Beltagy et al. 2020); ``softcap``: scores go through cap * tanh(score / cap) (Gemma 2, 2024);
    ``slopes``: from each score its distance times the head's slope is taken (ALiBi, Press et al. 2021); ``sinks``: one more
    logit for each head takes part in the softmax, but has no value (gpt-oss, OpenAI 2025).
    """

    whole: bool = False
    window: bool = False
    softcap: bool = False
    slopes: bool = False
    sinks: bool = False

    @property
    def name(self) -> str:
        """For the kernel's name; empty where nothing is asked for."""
        return "".join(f",{f.name}" for f in fields(self) if getattr(self, f.name))


PLAIN = Variant()


def tile_tokens(group: int) -> int:
    """Query tokens of a tile, for ``group`` query heads per KV head."""
    return max(1, TILE_ROWS // group)


def tile_rows(group: int) -> int:
    """Rows of a whole tile, padded to whole blocks."""
    return -(-tile_tokens(group) * group // BLOCK_ROWS) * BLOCK_ROWS


def geometry(
    pages: PageFormat, n_kv_heads: int, group: int, head_dim: int, v_dim: int, *,
    k_page: int, v_page: int, k_head: int, v_head: int, v_offset: int, extent_pages: int, extent_bytes: int,
    window: int = 0, sinks: int = 0, slopes: int = 0,
) -> np.ndarray:  # fmt: skip
    """How pages and a tile's rows lie: int64, read by the kernels through the offsets above.

    ``group``: query heads per KV head. Bytes from one page to the next (``k_page``, ``v_page``) and from one head to the next
    (``k_head``, ``v_head``), of keys and of values; ``v_offset``: from the first keys of a layer to its first values, in
    each extent of ``extent_pages`` pages; ``extent_bytes``: from one extent to the next. ``window``: tokens; ``sinks``,
    ``slopes``: addresses of float32 [n_kv_heads * group], both times LOG2_E.
    """
    rows = [pages.v_row(v_dim), pages.query_bytes(head_dim), tile_rows(group)]
    rest = [extent_pages, extent_bytes, v_dim, window, sinks, slopes]
    return np.array([k_page, v_page, k_head, v_head, v_offset, n_kv_heads, group, head_dim, *rows, *rest], np.int64)


def _result_bytes(v_row: int) -> int:
    """Of a row's result: its output, and a cache line with the sum of its weights (+0) and its largest score (+4)."""
    return 4 * (v_row + 16)


def scratch_bytes(pages: PageFormat, group: int, head_dim: int, v_dim: int) -> int:
    """Scratch per thread: a tile's queries and results; a block's scores and results of one part; what the format needs."""
    row = _result_bytes(pages.v_row(v_dim))
    tile = tile_rows(group) * (-(-pages.query_bytes(head_dim) // 4) * 4 + row)
    return -(-max(tile + BLOCK_ROWS * (S_ROW + row) + SCRATCH, 4 * max(head_dim, v_dim)) // 64) * 64 + 64


def split_units(n_threads: int) -> int:
    """With fewer units than this (tiles times KV heads) the context is split among the threads."""
    return _SPLIT_UNITS_PER_THREAD * n_threads


def partials_bytes(group: int, v_row: int, n_threads: int, n_ctx: int) -> int:
    """Memory in which threads leave the parts of a split context: a counter for each unit, then the parts' rows."""
    units = split_units(n_threads)
    parts = -(-n_ctx // PART_TOKENS)
    return units * 64 + units * parts * tile_rows(group) * _result_bytes(v_row)


@inline
def page_address(first, page, geo, stride):
    """A head's keys (``stride``: K_PAGE) or values (V_PAGE) in a page; ``first``: those in page 0."""
    extent = load_i64(geo + EXTENT_PAGES)
    return first + page // extent * load_i64(geo + EXTENT_BYTES) + page % extent * load_i64(geo + stride)


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
        slots = load_i64(batch + SLOTS)
        head_dim, v_dim = load_i64(geo + HEAD_DIM), load_i64(geo + V_DIM)
        for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
            slot = load_i64(slots + 8 * t)
            keys = page_address(memory, slot // PAGE_TOKENS, geo, K_PAGE)
            values = page_address(memory + load_i64(geo + V_OFFSET), slot // PAGE_TOKENS, geo, V_PAGE)
            for h in range(load_i64(geo + N_KV_HEADS)):
                store(k + t * k_stride + h * head_dim * 4, v + t * v_stride + h * v_dim * 4, keys, values,
                      slot % PAGE_TOKENS, head_dim, v_dim, load_i64(geo + V_ROW),
                      scratch + thread * scratch_bytes)  # fmt: skip
                keys += load_i64(geo + K_HEAD)
                values += load_i64(geo + V_HEAD)

    return store_kv


def _softmax(isa: Isa):
    """Softmax of the first ``visible`` scores of a part: scores to weights in place; their sum (+0) and maximum (+4).

    Scores after the last visible one, up to a whole vector, become 0.
    """

    @simd_function("void(i8, i8, i8)")
    def softmax(s: Simd, scores: Value, visible: Value, out: Value) -> None:
        full = visible >> 4
        rest = (visible & 15).to(I32)
        tail = scores + (visible & -16) * 4
        below = s.constant(float("-inf"), F32, 16)
        place = s.constant(list(range(16)), I32, 16)
        seen = place.compare("<", s.splat(rest, 16))
        top = s.variable(below)
        with s.loop(full) as i:
            top.set(s.maximum(top.get(), s.load(scores + i * 64, F32, 16)))
        with s.when(rest.compare(">", 0)):
            top.set(s.maximum(top.get(), s.select(seen, s.load(tail, F32, 16), below)))
        now = s.reduce(top.get(), s.maximum)
        s.store(out + 4, now)
        shift = s.splat(now, 16)
        sums = s.variable(s.zero(F32, 16))
        with s.loop(full) as i:
            weights = exp2(s, isa, s.load(scores + i * 64, F32, 16) - shift)
            s.store(scores + i * 64, weights)
            sums.set(sums.get() + weights)
        with s.when(rest.compare(">", 0)):
            weights = exp2(s, isa, s.load(tail, F32, 16) - shift)
            weights = s.select(seen, weights, s.zero(F32, 16))
            s.store(tail, weights)
            sums.set(sums.get() + weights)
        s.store(out, s.reduce(sums.get(), lambda a, b: a + b))

    return softmax


def _merge(isa: Isa):
    """Add a part's row to that of the parts before it, both outputs of ``v_row`` elements with sum and maximum after them."""

    @simd_function("void(i8, i8, i8)")
    def merge(s: Simd, part: Value, whole: Value, v_row: Value) -> None:
        total, to_total = part + v_row * 4, whole + v_row * 4
        ours, theirs = s.load(to_total + 4, F32), s.load(total + 4, F32)
        now = s.maximum(ours, theirs)
        s.store(to_total + 4, now)
        factors = exp2(s, isa, s.concatenate(s.splat(ours - now, 4), s.splat(theirs - now, 4)))
        keep, add = s.lane(factors, 0), s.lane(factors, 4)
        s.store(to_total, s.load(to_total, F32) * keep + s.load(total, F32) * add)
        keep, add = s.splat(keep, 16), s.splat(add, 16)
        with s.loop(v_row >> 4) as i:
            at = i * 64
            s.store(whole + at, s.load(whole + at, F32, 16) * keep + s.load(part + at, F32, 16) * add)

    return merge


@simd_function("void(i8, i8, i8)")
def _copy(s: Simd, x: Value, out: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(out + i * 64, s.load(x + i * 64, F32, 16))


@simd_function("void(i8, i8, i8, f4)")
def _scale_copy(s: Simd, x: Value, out: Value, n: Value, factor: Value) -> None:
    with s.loop(n) as i:
        s.store(out + i * 4, s.load(x + i * 4, F32) * factor)


@simd_function("f4(f4)")
def _inverse(s: Simd, x: Value) -> Value:
    return s.constant(1.0, F32) / x


@simd_function("void(i8, i8)")
def _clear(s: Simd, x: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(x + i * 64, s.zero(F32, 16))


@simd_function("void(i8, i8, f4)")
def _overwrite(s: Simd, x: Value, n: Value, number: Value) -> None:
    """The first ``n`` of a vector's 16 numbers."""
    chosen = s.constant(list(range(16)), I32, 16).compare("<", s.splat(n.to(I32), 16))
    s.store(x, s.select(chosen, s.splat(number, 16), s.load(x, F32, 16)))


def _adjust(isa: Isa, variant: Variant) -> Any:
    """A compiled function: soft cap and slope for ``n_vectors`` of a row's scores, which begin ``distance`` keys before it."""

    @simd_function("void(i8, i8, f4, f4, i8)")
    def adjust(s: Simd, scores: Value, n_vectors: Value, cap: Value, slope: Value, distance: Value) -> None:
        lanes = s.constant([float(i) for i in range(16)], F32, 16)
        with s.loop(n_vectors) as i:
            score = s.load(scores + i * 64, F32, 16)
            if variant.softcap:
                score = tanh(s, isa, score) * s.splat(cap, 16)
            if variant.slopes:
                away = s.absolute(s.splat((distance - i * 16).to(F32), 16) - lanes)
                score = score - away * s.splat(slope, 16)
            s.store(scores + i * 64, score)

    return adjust


def _sink(isa: Isa) -> Any:
    """A compiled function: what a row is multiplied by at the end, when a sink takes part in the sum at ``totals``."""

    @simd_function("f4(i8, f4)")
    def factor(s: Simd, totals: Value, sink: Value) -> Value:
        total, top = s.load(totals, F32), s.load(totals + 4, F32)
        now = s.maximum(top, sink)
        powers = exp2(s, isa, s.concatenate(s.splat(top - now, 4), s.splat(sink - now, 4)))
        ours = s.lane(powers, 0)
        return ours / (total * ours + s.lane(powers, 4))

    return factor


def _bounds(variant: Variant) -> tuple[Any, Any]:
    """Compiled functions: first and last (exclusive) key of a part that a tile's row sees. ``end``: tokens of the sequence."""
    window, whole = variant.window, variant.whole

    @inline
    def first_key(first_position, row, group, part, geo):
        if window:
            before = first_position + row // group - load_i64(geo + WINDOW) + 1
            return min(max(before - part * PART_TOKENS, 0), PART_TOKENS)
        return 0

    @inline
    def last_key(first_position, row, group, part, geo, end):
        position = first_position + row // group
        if not whole:
            seen = position + 1
        elif window:
            seen = min(end, position + load_i64(geo + WINDOW))
        else:
            seen = end
        return min(max(seen - part * PART_TOKENS, 0), PART_TOKENS)

    return first_key, last_key


def _weigh(isa: Isa, variant: Variant) -> Any:
    """A compiled function: of one row, scores with a part's keys ``first`` up to ``last`` to weights, see ``_softmax``.

    Scores are there, and weights are left, for whole vectors; what is none of the row's becomes 0.
    """
    softmax, adjust = _softmax(isa), _adjust(isa, variant)
    adjusts, slopes, window = variant.softcap or variant.slopes, variant.slopes, variant.window
    minus_infinity, zero = np.float32(-np.inf), np.float32(0)

    @inline
    def weigh(scores, first, last, out, cap, slope, distance):
        begin = first // 16 * 16 if window else 0
        if adjusts:
            adjust(
                scores + 4 * begin,
                (last - begin + 15) // 16,
                cap,
                load_f32(slope) if slopes else zero,
                distance - begin,
            )
        if window and begin < first:
            _overwrite(scores + 4 * begin, first - begin, minus_infinity)
        softmax(scores + 4 * begin, last - begin, out)
        if window and begin < first:
            _overwrite(scores + 4 * begin, first - begin, zero)

    return weigh


def _attend_block(isa: Isa, pages: PageFormat, variant: Variant) -> Any:
    """A compiled function: one block of rows with one part of the context, from nothing."""
    functions = pages.functions(isa)
    scores, outputs, together = functions.scores, functions.outputs, pages.together
    first_key, last_key = _bounds(variant)
    weigh, window = _weigh(isa, variant), variant.window

    @inline
    def attend_block(row, rows, q, table, k_pages, v_pages, geo, part, first_position, end, slopes, cap, work, out):
        """``work``: memory for a block's scores, then SCRATCH bytes; ``out``: where the rows' results go."""
        group, v_row = load_i64(geo + GROUP), load_i64(geo + V_ROW)
        out_row = 4 * (v_row + 16)
        left = rows - row
        n = block_rows(left)
        last_row = min(row + n, rows) - 1
        n_keys = last_key(first_position, last_row, group, part, geo, end)
        begin = first_key(first_position, row, group, part, geo)
        for page in range(begin // PAGE_TOKENS, (n_keys + PAGE_TOKENS - 1) // PAGE_TOKENS):
            keys = page_address(k_pages, load_i32(table + 4 * (part * PART_PAGES + page)), geo, K_PAGE)
            columns = (min(PAGE_TOKENS, n_keys - page * PAGE_TOKENS) + 15) // 16 * 16
            scores(left, q, load_i64(geo + Q_ROW), keys, work + page * (4 * PAGE_TOKENS), columns,
                   load_i64(geo + HEAD_DIM))  # fmt: skip
        for r in range(n):
            own = min(row + r, rows - 1)
            first = first_key(first_position, own, group, part, geo)
            last = last_key(first_position, own, group, part, geo, end)
            _clear(out + r * out_row, v_row // 16)
            distance = first_position + own // group - part * PART_TOKENS
            weigh(work + r * S_ROW, first, last, out + r * out_row + 4 * v_row, cap, slopes + own % group * 4, distance)
        # Keys that every row of the block sees are taken together, those before and after them row by row: a key is
        # multiplied by no weight, not even by zero, for a token that does not see it (zero times infinity would be NaN).
        # Of two keys that are multiplied at once, the first may lie before the window, with a weight of zero.
        common = last_key(first_position, row, group, part, geo, end) // together * together
        common_first = 0
        if window:
            common_first = first_key(first_position, last_row, group, part, geo)
            common_first = (common_first + together - 1) // together * together
        lines = min(n, left)
        for step in range(-lines if window else 0, lines + 1):
            r, taken, first, last = 0, left, common_first, common
            if step > 0:
                r, taken, first = step - 1, 1, common
                last = last_key(first_position, row + r, group, part, geo, end)
            if window:
                if step < 0:
                    r, taken = step + lines, 1
                    first = first_key(first_position, row + r, group, part, geo) // together * together
                    last = common_first
                if common_first >= common and step != 0:
                    last = last_key(first_position, row + r, group, part, geo, end)
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
    attend_block, merge, sink_factor = _attend_block(isa, pages, variant), _merge(isa), _sink(isa)
    first_key, last_key = _bounds(variant)
    window, whole, has_sinks = variant.window, variant.whole, variant.sinks

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
    def sees(first_position, row, part, geo, end):
        """Whether a tile's row sees any key of a part."""
        group = load_i64(geo + GROUP)
        last = last_key(first_position, row, group, part, geo, end)
        return last > first_key(first_position, row, group, part, geo)

    @inline
    def merge_rows(row, last, part_rows, whole_rows, first_position, part, geo, end):
        """Rows ``row`` up to ``last`` of a later part, whose first row is at ``part_rows``, to those of the parts before."""
        v_row = load_i64(geo + V_ROW)
        out_row = 4 * (v_row + 16)
        for r in range(row, last):
            if sees(first_position, r, part, geo, end):
                merge(part_rows + (r - row) * out_row, whole_rows + r * out_row, v_row)

    @inline
    def attend_parts(q, rows, table, k_pages, v_pages, geo, first_position, end, first, last, slopes, cap, work, out):
        """Parts ``first`` up to ``last`` of the context, in order, for all rows of a tile, whose results go to ``out``.

        ``work``: memory for a block's scores, SCRATCH bytes, and a block's results.
        """
        out_row = 4 * (load_i64(geo + V_ROW) + 16)
        results = work + BLOCK_ROWS * S_ROW + SCRATCH
        for part in range(first, last):
            row = 0
            while row < rows:
                stop = min(row + block_rows(rows - row), rows)
                seen = part == first or sees(first_position, stop - 1, part, geo, end)
                if window and not seen:
                    seen = sees(first_position, row, part, geo, end)
                if seen:
                    attend_block(row, rows, q + row * load_i64(geo + Q_ROW), table, k_pages, v_pages, geo, part,
                                 first_position, end, slopes, cap, work,
                                 out + row * out_row if part == first else results)  # fmt: skip
                if part > first:
                    merge_rows(row, stop, results, out, first_position, part, geo, end)
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
                factor = _inverse(load_f32(source + 4 * v_row))
            _scale_copy(source, target, v_dim, factor)

    @kernel(variant=f"{isa.name},{pages.name}{variant.name}")
    def attention(
        batch,
        thread,
        n_threads,
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
            first_position, table, end = load_i64(tile + 16), load_i64(tile + 24), load_i64(tile + 32)
            begin, context = 0, first_position + load_i64(tile + 8)
            if window:
                begin = max(first_position - load_i64(geo + WINDOW) + 1, 0) // PART_TOKENS
            if whole:
                context = min(end, context - 1 + load_i64(geo + WINDOW)) if window else end
            n_parts = (context + PART_TOKENS - 1) // PART_TOKENS
            if split != 0 and (part < begin or part >= n_parts):
                continue
            k_pages = memory + head * load_i64(geo + K_HEAD)
            v_pages = memory + load_i64(geo + V_OFFSET) + head * load_i64(geo + V_HEAD)
            gather(q, stride, queries, geo, first_token, head, rows, scale)
            first, last, target = begin, n_parts, results
            # Of a split context: one part, left beside the others' by whoever computes it.
            padded = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
            parts = partials + _SPLIT_UNITS_PER_THREAD * n_threads * 64 + unit * split * max_rows * out_row
            if split != 0:
                first, last, target = part, part + 1, parts + part * padded * out_row
            attend_parts(queries, rows, table, k_pages, v_pages, geo, first_position, end, first, last,
                         load_i64(geo + SLOPES) + 4 * head * group, cap, work, target)  # fmt: skip
            if split != 0:
                if atomic_add(partials + unit * 64, 1) != n_parts - begin - 1:
                    continue
                store_i64(partials + unit * 64, 0)
                _copy(parts + begin * padded * out_row, results, rows * out_row // 64)
                for each in range(begin + 1, n_parts):
                    merge_rows(0, rows, parts + each * padded * out_row, results, first_position, each, geo, end)
            scatter(results, out, out_stride, geo, first_token, head, rows)

    return attention
