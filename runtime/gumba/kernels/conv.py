"""Short causal convolutions over a sequence's tokens, column by column (LFM2, Liquid AI 2025).

What a convolution reads of earlier tokens lies in the pages of the KV cache, float32 [PAGE_TOKENS, width] in each: so shared
prefixes, forks and pauses need nothing beside the pages. This step's tokens are read from there as well. A result is summed from
the oldest token to its own, whatever came in which step.
"""

from __future__ import annotations

from gumba.kernels.jit import inline
from gumba.kernels.op import N_TILES, N_TOKENS, TILE_WORDS, TILES, kernel, share
from gumba.kernels.pages import PAGE_TOKENS
from gumba.simd.memory import load_i32, load_i64
from gumba.simd.value import F32, Simd, Value, simd_function


@simd_function("void(i8, i8)")
def _copy(s: Simd, x: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16))


@simd_function("void(i8)")
def _clear(s: Simd, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.zero(F32, 16))


@simd_function("void(i8, i8, i8)")
def _add_product(s: Simd, x: Value, w: Value, out: Value) -> None:
    for i in range(2):
        product = s.load(x + 64 * i, F32, 16) * s.load(w + 64 * i, F32, 16)
        s.store(out + 64 * i, s.load(out + 64 * i, F32, 16) + product)


@inline
def _row(memory, page, place, page_bytes, extent_pages, extent_bytes, row_bytes):
    """A token's row in a page; ``memory``: page 0."""
    return memory + page // extent_pages * extent_bytes + page % extent_pages * page_bytes + place * row_bytes


@kernel(divisible=True)
def store_rows(
    batch, thread, n_threads, x, stride, memory, page_bytes, extent_pages, extent_bytes, row_bytes, n_blocks, slots_at
):
    """This step's rows of x to their places in the cache: ``n_blocks`` of 32 columns, rows ``row_bytes`` apart in a page.

    ``slots_at``: where the batch record says which places.
    """
    n = load_i64(batch + N_TOKENS)
    slots = load_i64(batch + slots_at)
    for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        slot = load_i64(slots + 8 * t)
        page, place = slot // PAGE_TOKENS, slot % PAGE_TOKENS
        out = _row(memory, page, place, page_bytes, extent_pages, extent_bytes, row_bytes)
        for block in range(n_blocks):
            _copy(x + t * stride + block * 128, out + block * 128)


@kernel(divisible=True)
def short_conv(
    batch, thread, n_threads, memory, page_bytes, extent_pages, extent_bytes, row_bytes, weight, weight_stride, n_taps, out,
    stride, n_blocks, table_at,
):  # fmt: skip
    """out[t] = the sum over ``n_taps`` tokens up to t of what ``store_rows`` has stored of each, times a row of ``weight``.

    ``weight``: float32 [n_taps, width], the oldest token's first. Nothing is before a sequence's first token.
    ``table_at``: where a tile says which pages.
    """
    units = load_i64(batch + N_TILES) * n_blocks
    for unit in range(share(units, thread, n_threads), share(units, thread + 1, n_threads)):
        tile = load_i64(batch + TILES) + unit // n_blocks * (8 * TILE_WORDS)
        column = unit % n_blocks * 128
        first_token, first_position, table = load_i64(tile), load_i64(tile + 16), load_i64(tile + table_at)
        for i in range(load_i64(tile + 8)):
            target = out + (first_token + i) * stride + column
            _clear(target)
            for tap in range(n_taps):
                position = first_position + i - n_taps + 1 + tap
                if position >= 0:
                    page, place = load_i32(table + 4 * (position // PAGE_TOKENS)), position % PAGE_TOKENS
                    source = _row(memory, page, place, page_bytes, extent_pages, extent_bytes, row_bytes)
                    _add_product(source + column, weight + tap * weight_stride + column, target)
