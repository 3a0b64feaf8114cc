"""Causal attention over a paged KV cache, with grouped heads, for one and for many tokens.

A page holds PAGE_TOKENS tokens of one sequence. Within a page, per layer and KV head, keys lie transposed and values plain:

    keys    [kv_head][head_dim][PAGE_TOKENS]        a vector = the same element of neighbouring tokens
    values  [kv_head][PAGE_TOKENS][v_row]           a vector = neighbouring elements of one token (v_row: padded head_dim)

so that scores (Q times K) and outputs (P times V) are both small matrix products in which a lane sums one result.

The unit of work is (tile of consecutive query tokens of one sequence, KV head): its rows are the queries of all heads of the
group, so every page is read once for all of them. Pages are taken in order with an online softmax (Milakov and Gimelshein
2018, Rabe and Staats 2021): per row a running maximum, a running sum and a running output.

The context is cut into parts of PART_TOKENS at fixed places. Each part's softmax runs by itself, and the parts are merged in
order (Dao et al. 2023, "Flash-Decoding"). Where a step has too few units for the threads (one sequence that decodes), the
parts become units too, and whoever ends a tile's last part merges them all. So a row's numbers depend on its own query and on
the pages before it: not on the threads, nor on which rows share its tile, its batch or its prompt chunk.
"""

from __future__ import annotations

import functools

from gumba.kernels.jit import inline
from gumba.kernels.op import N_TILES, N_TOKENS, SLOTS, SPLIT, TILES, Kernel, f4, kernel, share
from gumba.simd.isa import Isa
from gumba.simd.maths import exp
from gumba.simd.memory import atomic_add, load_f32, load_i32, load_i64, store_f32, store_i64
from gumba.simd.value import F16, F32, I32, Simd, Value, simd_function

PAGE_TOKENS = 64
#: Tokens of context whose softmax runs by itself: fixed, since it decides the order of sums.
PART_TOKENS = 256
PART_PAGES = PART_TOKENS // PAGE_TOKENS
#: A tile's rows (query tokens times heads of the group) are padded to a multiple of this.
ROW_TILE = 8
#: Rows that a tile aims at: enough to use each page often, few enough for the scratch to stay in the first-level cache.
TILE_ROWS = 32
V_ALIGN = 16
_SPLIT_UNITS_PER_THREAD = 4
ELEMENT_BYTES = {"f16": 2, "f32": 4}


def tile_tokens(group: int) -> int:
    """Query tokens of a tile, for ``group`` query heads per KV head."""
    return max(1, TILE_ROWS // group)


def tile_rows(group: int) -> int:
    """Rows of a whole tile, padded."""
    return -(-tile_tokens(group) * group // ROW_TILE) * ROW_TILE


def scratch_bytes(group: int, head_dim: int, v_row: int) -> int:
    """Scratch per thread: a tile's queries and scores, and twice (part and whole) its outputs, sums (16 lanes) and maxima."""
    return -(-tile_rows(group) * 4 * (head_dim + PAGE_TOKENS + 2 * (v_row + 16 + 1)) // 64) * 64


def split_units(n_threads: int) -> int:
    """With fewer units than this (tiles times KV heads) the context is split among the threads."""
    return _SPLIT_UNITS_PER_THREAD * n_threads


def partials_bytes(group: int, v_row: int, n_threads: int, n_ctx: int) -> int:
    """Memory in which threads leave the parts of a split context: a counter for each unit, then the parts' rows."""
    units = split_units(n_threads)
    parts = -(-n_ctx // PART_TOKENS)
    return units * 64 + units * parts * tile_rows(group) * 4 * (v_row + 16 + 1)


def _load(s: Simd, isa: Isa, kv_type: str, address: Value) -> Value:
    if kv_type == "f32":
        return s.load(address, F32, isa.lanes)
    return isa.from_f16(s, s.load(address, F16, isa.lanes))


@functools.cache
def store_kv(isa: Isa, kv_type: str) -> Kernel:
    """Write the keys and values of this step's tokens to their places in the cache."""
    size = ELEMENT_BYTES[kv_type]

    @simd_function("void(i8, i8, i8, i8)")
    def scatter(s: Simd, x: Value, out: Value, out_stride: Value, n: Value) -> None:
        with s.loop(n) as i:
            value = s.load(x + i * 4, F32)
            s.store(out + i * out_stride, value if kv_type == "f32" else isa.to_f16(s, value))

    @kernel(variant=f"{isa.name},{kv_type}")
    def store_kv(
        batch, thread, n_threads, k, v, k_stride, v_stride, n_kv_heads, head_dim, v_row, pages, page_bytes, v_offset
    ):
        n = load_i64(batch + N_TOKENS)
        slots = load_i64(batch + SLOTS)
        for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
            slot = load_i64(slots + 8 * t)
            page = pages + slot // PAGE_TOKENS * page_bytes
            place = slot % PAGE_TOKENS
            for h in range(n_kv_heads):
                keys = page + (h * head_dim * PAGE_TOKENS + place) * size
                scatter(k + t * k_stride + h * head_dim * 4, keys, PAGE_TOKENS * size, head_dim)
                values = page + v_offset + (h * PAGE_TOKENS + place) * v_row * size
                scatter(v + t * v_stride + h * head_dim * 4, values, size, head_dim)

    return store_kv


def _scores(isa: Isa, kv_type: str, rows: int):
    """S[r, key] = sum over d of Q[r, d] * K[d, key], for one page."""
    size = ELEMENT_BYTES[kv_type]
    vectors = 2 if isa.lanes >= 16 else 1

    @simd_function("void(i8, i8, i8, i8)")
    def scores(s: Simd, q: Value, keys: Value, out: Value, head_dim: Value) -> None:
        width = vectors * isa.lanes
        for c in range(PAGE_TOKENS // width):
            accs = [[s.variable(s.zero(F32, isa.lanes)) for _ in range(vectors)] for _ in range(rows)]
            with s.loop(head_dim) as d:
                row = keys + d * (PAGE_TOKENS * size) + c * width * size
                k = [_load(s, isa, kv_type, row + v * isa.lanes * size) for v in range(vectors)]
                for r in range(rows):
                    x = s.splat(s.load(q + head_dim * (4 * r) + d * 4, F32), isa.lanes)
                    for v in range(vectors):
                        accs[r][v].set(isa.multiply_add(s, x, k[v], accs[r][v].get()))
            for r in range(rows):
                for v in range(vectors):
                    s.store(out + r * PAGE_TOKENS * 4 + (c * width + v * isa.lanes) * 4, accs[r][v].get())

    return scores


def _outputs(isa: Isa, kv_type: str, rows: int):
    """O[r, :] += sum over keys of P[r, key] * V[key, :], for the first ``n_keys`` keys of a page."""
    size = ELEMENT_BYTES[kv_type]

    @simd_function("void(i8, i8, i8, i8, i8)")
    def outputs(s: Simd, p: Value, values: Value, out: Value, v_row: Value, n_keys: Value) -> None:
        with s.loop(v_row, step=isa.lanes) as c:
            accs = [s.variable(s.load(out + v_row * (4 * r) + c * 4, F32, isa.lanes)) for r in range(rows)]
            with s.loop(n_keys) as key:
                v = _load(s, isa, kv_type, values + key * v_row * size + c * size)
                for r in range(rows):
                    x = s.splat(s.load(p + r * PAGE_TOKENS * 4 + key * 4, F32), isa.lanes)
                    accs[r].set(isa.multiply_add(s, x, v, accs[r].get()))
            for r in range(rows):
                s.store(out + v_row * (4 * r) + c * 4, accs[r].get())

    return outputs


def _softmax(isa: Isa):
    """One page of the online softmax of one row: scores to weights in place; returns the factor for what came before."""

    @simd_function("f4(i8, i8, i8, i8)")
    def softmax(s: Simd, scores: Value, maximum: Value, total: Value, visible: Value) -> Value:
        n = PAGE_TOKENS // 16
        below = s.constant(float("-inf"), F32, 16)
        limit = s.splat(visible.to(I32), 16)
        x = []
        for i in range(n):
            place = s.constant([16 * i + j for j in range(16)], I32, 16)
            x.append(s.select(place.compare("<", limit), s.load(scores + 64 * i, F32, 16), below))
        top = x[0]
        for part in x[1:]:
            top = s.maximum(top, part)
        before = s.load(maximum, F32)
        now = s.maximum(before, s.reduce(top, s.maximum))
        s.store(maximum, now)
        parts = [exp(s, isa, v - s.splat(now, 16)) for v in x]
        for i, part in enumerate(parts):
            s.store(scores + 64 * i, part)
        factor = s.lane(exp(s, isa, s.splat(before - now, 4)), 0)
        sums = s.load(total, F32, 16) * s.splat(factor, 16)
        for part in parts:
            sums = sums + part
        s.store(total, sums)
        return factor

    return softmax


@simd_function("void(i8, i8, f4)")
def _scale_row(s: Simd, x: Value, n_vectors: Value, factor: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(x + i * 64, s.load(x + i * 64, F32, 16) * s.splat(factor, 16))


def _merge(isa: Isa):
    """Add a part's row (maximum, sums, output) to that of the parts before it."""

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8)")
    def merge(
        s: Simd, m: Value, total: Value, o: Value, to_m: Value, to_total: Value, to_o: Value, n_vectors: Value
    ) -> None:
        ours, theirs = s.load(to_m, F32), s.load(m, F32)
        now = s.maximum(ours, theirs)
        s.store(to_m, now)
        keep = s.splat(s.lane(exp(s, isa, s.splat(ours - now, 4)), 0), 16)
        add = s.splat(s.lane(exp(s, isa, s.splat(theirs - now, 4)), 0), 16)
        s.store(to_total, s.load(to_total, F32, 16) * keep + s.load(total, F32, 16) * add)
        with s.loop(n_vectors) as i:
            at = i * 64
            s.store(to_o + at, s.load(to_o + at, F32, 16) * keep + s.load(o + at, F32, 16) * add)

    return merge


@simd_function("void(i8, i8, i8)")
def _copy(s: Simd, x: Value, out: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(out + i * 64, s.load(x + i * 64, F32, 16))


@simd_function("void(i8, i8, i8, f4)")
def _scale_copy(s: Simd, x: Value, out: Value, n: Value, factor: Value) -> None:
    with s.loop(n) as i:
        s.store(out + i * 4, s.load(x + i * 4, F32) * factor)


@simd_function("f4(i8)")
def _inverse_total(s: Simd, total: Value) -> Value:
    return s.constant(1.0, F32) / s.reduce(s.load(total, F32, 16), lambda a, b: a + b)


@simd_function("void(i8, i8)")
def _clear(s: Simd, x: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(x + i * 64, s.zero(F32, 16))


@functools.cache
def attention(isa: Isa, kv_type: str) -> Kernel:
    """q: float32 [n_tokens, n_kv_heads * group, head_dim] -> out, the same shape. ``scale``: of the scores, 1 / sqrt(head_dim).

    ``pages``: address of this layer's part of page 0; ``v_offset``: from a page's keys to its values; ``scratch``: 64-byte
    aligned, ``scratch_bytes`` for each thread; ``partials``: ``partials_bytes``, its counters zero (only for a split step).
    """
    size = ELEMENT_BYTES[kv_type]
    scores_8, scores_4, scores_1 = (_scores(isa, kv_type, n) for n in (8, 4, 1))
    outputs_8, outputs_4, outputs_1 = (_outputs(isa, kv_type, n) for n in (8, 4, 1))
    softmax, merge = _softmax(isa), _merge(isa)

    @inline
    def one_page(q, s, o, totals, maxima, rows, keys, values, head_dim, v_row, first_visible, group, n_keys):
        """``first_visible``: keys of this page that the tile's first query token sees (the next one sees one more)."""
        r = 0
        while r < rows:
            left = rows - r
            if left > 4:
                scores_8(q + r * head_dim * 4, keys, s + r * (4 * PAGE_TOKENS), head_dim)
                r += 8
            elif left > 1:
                scores_4(q + r * head_dim * 4, keys, s + r * (4 * PAGE_TOKENS), head_dim)
                r += 4
            else:
                scores_1(q + r * head_dim * 4, keys, s + r * (4 * PAGE_TOKENS), head_dim)
                r += 1
        for r in range(rows):
            visible = min(first_visible + r // group, PAGE_TOKENS)
            row = s + r * (4 * PAGE_TOKENS)
            if visible > 0:
                factor = softmax(row, maxima + 4 * r, totals + 64 * r, visible)
                if factor != 1.0:
                    _scale_row(o + r * v_row * 4, v_row // 16, factor)
            else:
                _clear(row, PAGE_TOKENS // 16)
        r = 0
        while r < rows:
            left = rows - r
            together = 8 if left > 4 else 4 if left > 1 else 1
            # Keys that every row of these sees are taken together, later ones row by row: a key is multiplied by no weight,
            # not even by zero, for a token that comes before it (zero times infinity would be NaN).
            common = max(0, min(first_visible + r // group, n_keys))
            p = s + r * (4 * PAGE_TOKENS)
            if together == 8:
                outputs_8(p, values, o + r * v_row * 4, v_row, common)
            elif together == 4:
                outputs_4(p, values, o + r * v_row * 4, v_row, common)
            else:
                outputs_1(p, values, o + r * v_row * 4, v_row, common)
            if common < n_keys:
                for k in range(r + 1, min(r + together, rows)):
                    own = min(first_visible + k // group, n_keys)
                    if own > common:
                        outputs_1(s + k * (4 * PAGE_TOKENS) + 4 * common, values + common * v_row * size,
                                  o + k * v_row * 4, v_row, own - common)  # fmt: skip
            r += together

    @inline
    def begin_rows(o, totals, maxima, rows, v_row):
        """No keys seen yet."""
        _clear(o, rows * v_row // 16)
        _clear(totals, rows)
        for r in range(rows):
            store_f32(maxima + 4 * r, -float("inf"))

    @inline
    def one_part(q, s, o, totals, maxima, rows, part, table, pages, page_bytes, k_offset, v_offset, head_dim, v_row,
                 first_position, n_context, group):  # fmt: skip
        """The pages of one part of the context, from nothing."""
        begin_rows(o, totals, maxima, rows, v_row)
        last = min((part + 1) * PART_PAGES, (n_context + PAGE_TOKENS - 1) // PAGE_TOKENS)
        for page in range(part * PART_PAGES, last):
            base = pages + load_i32(table + 4 * page) * page_bytes
            n_keys = min(PAGE_TOKENS, n_context - page * PAGE_TOKENS)
            first_visible = first_position + 1 - page * PAGE_TOKENS
            one_page(q, s, o, totals, maxima, rows, base + k_offset, base + v_offset, head_dim, v_row, first_visible,
                     group, n_keys)  # fmt: skip

    @inline
    def merge_rows(o, totals, maxima, to_o, to_totals, to_maxima, rows, v_row):
        for r in range(rows):
            merge(maxima + 4 * r, totals + 64 * r, o + r * v_row * 4,
                  to_maxima + 4 * r, to_totals + 64 * r, to_o + r * v_row * 4, v_row // 16)  # fmt: skip

    @kernel(variant=f"{isa.name},{kv_type}")
    def attention(
        batch, thread, n_threads, q, out, stride, pages, page_bytes, v_offset, n_kv_heads, group, head_dim, v_row,
        scratch, scratch_bytes, partials, scale: f4,
    ):  # fmt: skip
        tiles = load_i64(batch + TILES)
        n_units = load_i64(batch + N_TILES) * n_kv_heads
        split = load_i64(batch + SPLIT)
        parts_each = max(1, split)
        max_rows = max(1, TILE_ROWS // group) * group
        max_rows = (max_rows + ROW_TILE - 1) // ROW_TILE * ROW_TILE
        row_bytes = 4 * (v_row + 16 + 1)  # of a row in partials: output, sums, maximum, each for all rows together
        q_rows = scratch + thread * scratch_bytes
        o_rows = q_rows + max_rows * head_dim * 4
        s_rows = o_rows + max_rows * v_row * 4
        totals = s_rows + max_rows * (4 * PAGE_TOKENS)
        whole_o = totals + max_rows * 64
        whole_totals = whole_o + max_rows * v_row * 4
        maxima = whole_totals + max_rows * 64
        whole_maxima = maxima + max_rows * 4
        for job in range(thread, n_units * parts_each, n_threads):
            unit = job // parts_each
            tile = tiles + unit // n_kv_heads * 32
            head = unit % n_kv_heads
            first_token = load_i64(tile)
            rows = load_i64(tile + 8) * group
            first_position = load_i64(tile + 16)
            table = load_i64(tile + 24)
            n_context = first_position + load_i64(tile + 8)
            n_parts = (n_context + PART_TOKENS - 1) // PART_TOKENS
            k_offset = head * head_dim * (PAGE_TOKENS * size)
            v_at = v_offset + head * v_row * (PAGE_TOKENS * size)
            if job % parts_each >= n_parts:
                continue
            _clear(q_rows, max_rows * head_dim // 16)
            for r in range(rows):
                source = q + (first_token + r // group) * stride + (head * group + r % group) * head_dim * 4
                _scale_copy(source, q_rows + r * head_dim * 4, head_dim, scale)
            if split != 0:
                parts = partials + _SPLIT_UNITS_PER_THREAD * n_threads * 64 + unit * split * max_rows * row_bytes
                own = parts + job % parts_each * max_rows * row_bytes
                one_part(q_rows, s_rows, o_rows, totals, maxima, rows, job % parts_each, table, pages, page_bytes,
                         k_offset, v_at, head_dim, v_row, first_position, n_context, group)  # fmt: skip
                _copy(o_rows, own, rows * v_row // 16)
                _copy(totals, own + max_rows * v_row * 4, rows)
                for r in range(rows):
                    store_f32(own + (max_rows * (v_row + 16) + r) * 4, load_f32(maxima + 4 * r))
                if atomic_add(partials + unit * 64, 1) != n_parts - 1:
                    continue
                store_i64(partials + unit * 64, 0)
                begin_rows(whole_o, whole_totals, whole_maxima, rows, v_row)
                for part in range(n_parts):
                    own = parts + part * max_rows * row_bytes
                    merge_rows(own, own + max_rows * v_row * 4, own + max_rows * (v_row + 16) * 4,
                               whole_o, whole_totals, whole_maxima, rows, v_row)  # fmt: skip
            else:
                begin_rows(whole_o, whole_totals, whole_maxima, rows, v_row)
                for part in range(n_parts):
                    one_part(q_rows, s_rows, o_rows, totals, maxima, rows, part, table, pages, page_bytes,
                             k_offset, v_at, head_dim, v_row, first_position, n_context, group)  # fmt: skip
                    merge_rows(o_rows, totals, maxima, whole_o, whole_totals, whole_maxima, rows, v_row)
            for r in range(rows):
                target = out + (first_token + r // group) * stride + (head * group + r % group) * head_dim * 4
                _scale_copy(whole_o + r * v_row * 4, target, head_dim, _inverse_total(whole_totals + 64 * r))

    return attention
