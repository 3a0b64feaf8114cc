"""From a step's chunks to its batch record: every number is checked, then written to where the kernels read it.

One compiled call: a decoding step fills the caches with weights, so that Python code between two steps runs five times slower
than in a tight loop; this much of it was 6 % of a small model's step.
"""

from __future__ import annotations

from gumba.backends.cpu.kernels.page_format import PAGE_TOKENS, PART_TOKENS
from gumba.backends.cpu.kernels.record import (
    N_OUTPUTS,
    N_TILES,
    N_TOKENS,
    OUTPUT_ROWS,
    POSITIONS,
    SLOTS,
    SOURCE,
    SPLIT,
    TABLE,
    TILE_WORDS,
    TILES,
    TOKENS,
    WINDOW_SLOTS,
    WINDOW_TABLE,
)
from gumba.jit.jit import entry, inline
from gumba.simd.memory import load_i8, load_i64, store_i32, store_i64

#: Words of a chunk: tokens, position of the first, pages, which tokens' logits are needed (OUTPUTS), tokens of the source, pages
#: for layers with a window.
CHUNK_WORDS = 6
OUTPUTS = {"none": 0, "last": 1, "all": 2}

# Byte offsets in the limits, an int64 array.
VOCAB, CONTEXT, PAGES, ROWS, TILE_TOKENS, KV_HEADS, SPLIT_UNITS = 0, 8, 16, 24, 32, 40, 48
# Of the pool for layers with a window: pages, window (0: there is none), address of its ``used``.
WINDOW_PAGES, WINDOW, WINDOW_USED = 56, 64, 72
LIMIT_WORDS = 10


@inline
def _copy_pages(pages, table, n_pages, limit, used):
    """Copy page numbers into a block table; 1 if one is out of range, or held by no sequence."""
    for p in range(n_pages):
        page = load_i64(pages + 8 * p)
        if page < 0 or page >= limit or load_i8(used + page) == 0:
            return 1
        store_i32(table + 4 * p, page)
    return 0


@inline
def _slot(pages, position, skipped):
    """Where the token at a position goes: page * PAGE_TOKENS + place. ``pages``: from the sequence's page ``skipped`` on."""
    return load_i64(pages + 8 * (position // PAGE_TOKENS - skipped)) * PAGE_TOKENS + position % PAGE_TOKENS


@inline
def _write_tokens(batch, row, tokens, n, first, vocab, pages, window_pages, skipped):
    """A chunk's tokens, positions and slots, from row ``row`` of the batch on; 1 if a token is out of range.

    ``window_pages``: 0 where no layer has a window.
    """
    for i in range(n):
        token = load_i64(tokens + 8 * i)
        if token < 0 or token >= vocab:
            return 1
        store_i32(load_i64(batch + TOKENS) + 4 * (row + i), token)
        store_i32(load_i64(batch + POSITIONS) + 4 * (row + i), first + i)
        store_i64(load_i64(batch + SLOTS) + 8 * (row + i), _slot(pages, first + i, 0))
        if window_pages != 0:
            store_i64(load_i64(batch + WINDOW_SLOTS) + 8 * (row + i), _slot(window_pages, first + i, skipped))
    return 0


@inline
def _write_outputs(batch, n_outputs, row, n, outputs):
    """The rows of a chunk whose logits are needed; the number of such rows of the batch so far."""
    for i in range(n):
        if outputs == 2 or (outputs == 1 and i == n - 1):
            store_i32(load_i64(batch + OUTPUT_ROWS) + 4 * n_outputs, row + i)
            n_outputs += 1
    return n_outputs


@inline
def _write_tiles(tile, tile_tokens, row, n, first, source, table, window_table):
    """A chunk's tiles, of up to ``tile_tokens`` tokens each; the address after the last one."""
    done = 0
    while done < n:
        store_i64(tile, row + done)
        store_i64(tile + 8, min(tile_tokens, n - done))
        store_i64(tile + 16, first + done)
        store_i64(tile + TABLE, table)
        store_i64(tile + 32, first + n)
        store_i64(tile + SOURCE, source)
        store_i64(tile + WINDOW_TABLE, window_table)
        done += tile_tokens
        tile += 8 * TILE_WORDS
    return tile


@entry("i8(i8, i8, i8, i8, i8, i8)")
def gather(numbers, n_chunks, limits, used, tables, batch):
    """Fill the batch record and the arrays that it points to. Returns 0, or 1 when a number is out of range.

    ``numbers``: int64, the words of the ``n_chunks`` chunks, then the tokens of all chunks, then their pages, then those for
    layers with a window, from the first that is read; ``used``: a byte for each page, 0 where no sequence holds it;
    ``tables``: int32, room for all pages, read by the kernels of this step;
    ``batch``: the batch record, whose arrays have room for as many tokens as ``limits`` allows. Counts are below 2**31.
    """
    n_tokens, n_tables = 0, 0
    for c in range(n_chunks):
        n_tokens += load_i64(numbers + 8 * CHUNK_WORDS * c)
        n_tables += load_i64(numbers + 8 * CHUNK_WORDS * c + 16)
    if n_tokens > load_i64(limits + ROWS):
        return 1
    token = numbers + 8 * CHUNK_WORDS * n_chunks
    page = token + 8 * n_tokens
    window_page = page + 8 * n_tables
    window = load_i64(limits + WINDOW)
    start, n_outputs, longest = 0, 0, 0
    tile = load_i64(batch + TILES)
    for c in range(n_chunks):
        words = numbers + 8 * CHUNK_WORDS * c
        n, first, source = load_i64(words), load_i64(words + 8), load_i64(words + 32)
        n_pages, outputs, n_window_pages = load_i64(words + 16), load_i64(words + 24), load_i64(words + 40)
        if first < 0 or first > load_i64(limits + CONTEXT) - n or n_pages * PAGE_TOKENS < first + n:
            return 1
        if source < 0 or source > first:
            return 1
        skipped = max(0, first - window + 1) // PAGE_TOKENS if window > 0 else 0
        if window > 0 and (skipped + n_window_pages) * PAGE_TOKENS < first + n:
            return 1
        window_table = tables + 4 * n_pages
        if _copy_pages(page, tables, n_pages, load_i64(limits + PAGES), used) != 0:
            return 1
        if _copy_pages(window_page, window_table, n_window_pages, load_i64(limits + WINDOW_PAGES),
                       load_i64(limits + WINDOW_USED)) != 0:  # fmt: skip
            return 1
        if _write_tokens(batch, start, token, n, first, load_i64(limits + VOCAB), page,
                         window_page if window > 0 else 0, skipped) != 0:  # fmt: skip
            return 1
        n_outputs = _write_outputs(batch, n_outputs, start, n, outputs)
        tile = _write_tiles(
            tile, load_i64(limits + TILE_TOKENS), start, n, first, source, tables, window_table - 4 * skipped
        )
        longest = max(longest, first + n)
        start += n
        token += 8 * n
        page += 8 * n_pages
        window_page += 8 * n_window_pages
        tables += 4 * (n_pages + n_window_pages)
    # With too few units for the threads, the context is split: threads take parts of it.
    n_tiles, split = (tile - load_i64(batch + TILES)) // (8 * TILE_WORDS), 0
    if n_tiles * load_i64(limits + KV_HEADS) < load_i64(limits + SPLIT_UNITS) and longest > PART_TOKENS:
        split = (longest + PART_TOKENS - 1) // PART_TOKENS
    store_i64(batch + N_TOKENS, n_tokens)
    store_i64(batch + N_TILES, n_tiles)
    store_i64(batch + N_OUTPUTS, n_outputs)
    store_i64(batch + SPLIT, split)
    return 0
