"""How attention's pages, tiles and results lie in memory, and which keys a token sees.

Kernels read it from a geometry, an int64 array, through the offsets named here. ``Variant`` says what an attention is beside
plain: its code is made for that, so that a plain causal attention pays nothing for what others ask for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gumba.backends.cpu.kernels.page_format import BLOCK_ROWS, PAGE_TOKENS, PART_TOKENS, S_ROW, SCRATCH, PageFormat
from gumba.backends.cpu.kernels.record import SLOTS, TABLE, WINDOW_SLOTS, WINDOW_TABLE
from gumba.jit.jit import inline
from gumba.simd.memory import load_i64

PART_PAGES = PART_TOKENS // PAGE_TOKENS
#: Rows that a tile aims at: enough to use each part of the context often while it is in the second-level cache.
TILE_ROWS = 48
SPLIT_UNITS_PER_THREAD = 4
#: Factor of the scores' scale: softmax is computed with powers of two.
LOG2_E = math.log2(math.e)

# Byte offsets in the geometry, a constant int64 array that says how things lie.
K_PAGE, V_PAGE, K_HEAD, V_HEAD, V_OFFSET = 0, 8, 16, 24, 32
N_KV_HEADS, GROUP, HEAD_DIM, V_ROW, Q_ROW, MAX_ROWS = 40, 48, 56, 64, 72, 80
EXTENT_PAGES, EXTENT_BYTES, V_DIM, WINDOW, SINKS = 88, 96, 104, 112, 120
OF_DISTANCE, OF_DISTANCE_ROW, REACH = 128, 136, 144
SLOTS_AT, TABLE_AT = 152, 160  # where the batch record and a tile say which pages


@dataclass(frozen=True)
class Variant:
    """What an attention is beside plain, each with code of its own.

    ``whole``: a token sees all of its sequence, not only what comes before it; ``window``: of that, only what is less than a
    number of tokens away (Beltagy et al. 2020); ``chunk``: only what is in the same run of so many tokens (Llama 4, 2025);
    ``answer``: only what comes after its sequence's source; ``cross``: all of the source, and nothing else (both of
    encoder-decoders, Vaswani et al. 2017); ``softcap``: scores go through cap * tanh(score / cap) (Gemma 2, 2024); ``slopes``:
    from each score its distance times the head's slope is taken (ALiBi, Press et al. 2021); ``bias``: to each score a number of
    the head and the distance is added (T5, Raffel et al. 2019); ``sinks``: one more logit for each head takes part in the
    softmax, but has no value (gpt-oss, OpenAI 2025).
    """

    whole: bool = False
    window: bool = False
    chunk: bool = False
    answer: bool = False
    cross: bool = False
    softcap: bool = False
    slopes: bool = False
    bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.window + self.chunk + self.answer + self.cross > 1 or (self.whole and (self.chunk or self.answer)):
            raise ValueError(f"attention{self.name}: these limits of what a token sees do not go together")
        if self.slopes and self.bias:
            raise ValueError("attention with both slopes and a bias")

    @property
    def bounded(self) -> bool:
        """Whether the first key that a token sees is another than the sequence's first."""
        return self.window or self.chunk or self.answer

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
    window: int = 0, sinks: int = 0, of_distance: int = 0, of_distance_row: int = 0, reach: int = 0,
    windowed: bool = False,
) -> np.ndarray:  # fmt: skip
    """How pages and a tile's rows lie: int64, read by the kernels through the offsets above.

    ``group``: query heads per KV head. Bytes from one page to the next (``k_page``, ``v_page``) and from one head to the next
    (``k_head``, ``v_head``), of keys and of values; ``v_offset``: from the first keys of a layer to its first values, in
    each extent of ``extent_pages`` pages; ``extent_bytes``: from one extent to the next. ``window``: tokens, of a window or a
    chunk; ``sinks``: address of float32 [n_kv_heads * group]; ``of_distance``: address of the heads' slopes, or of their biases
    as ``bias_table`` lays them out, ``of_distance_row`` bytes for each head; all times LOG2_E. ``reach``: of the biases;
    ``windowed``: the pages are those for layers with a window.
    """
    rows = [pages.v_row(v_dim), pages.query_bytes(head_dim), tile_rows(group)]
    rest = [extent_pages, extent_bytes, v_dim, window, sinks, of_distance, of_distance_row, reach, *pages_at(windowed)]
    return np.array([k_page, v_page, k_head, v_head, v_offset, n_kv_heads, group, head_dim, *rows, *rest], np.int64)


def bias_table(biases: np.ndarray) -> np.ndarray:
    """Biases of each head by distance, padded so that those of any 16 keys in a row lie side by side.

    ``biases``: float32 [n_heads, 2 * reach + 1], of keys ``reach`` tokens before the query, up to as many after it; those
    further away have the outermost numbers.
    """
    return np.ascontiguousarray(np.pad(biases, ((0, 0), (16, 15)), mode="edge"), np.float32)


def pages_at(windowed: bool) -> tuple[int, int]:
    """Where the batch record says in which places this step's tokens go, and where a tile says which pages its sequence has."""
    return (WINDOW_SLOTS, WINDOW_TABLE) if windowed else (SLOTS, TABLE)


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
    return SPLIT_UNITS_PER_THREAD * n_threads


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


def bounds(variant: Variant) -> tuple[Any, Any, Any]:
    """Compiled functions: the first key that the token at a position sees; of a part, the first and last (exclusive) of a row.

    ``edge``: where the keys end that a sequence has (``whole``), where its source ends (``cross``, ``answer``).
    """
    window, chunk, answer, unbounded = variant.window, variant.chunk, variant.answer, not variant.bounded
    whole = variant.whole or variant.cross

    @inline
    def first_seen(position, geo, edge):
        if window:
            return max(position - load_i64(geo + WINDOW) + 1, 0)
        if chunk:
            return position // load_i64(geo + WINDOW) * load_i64(geo + WINDOW)
        return edge if answer else 0

    @inline
    def first_key(first_position, row, group, part, geo, edge):
        if unbounded:
            return 0
        return min(max(first_seen(first_position + row // group, geo, edge) - part * PART_TOKENS, 0), PART_TOKENS)

    @inline
    def last_key(first_position, row, group, part, geo, edge):
        position = first_position + row // group
        if not whole:
            seen = position + 1
        elif window:
            seen = min(edge, position + load_i64(geo + WINDOW))
        else:
            seen = edge
        return min(max(seen - part * PART_TOKENS, 0), PART_TOKENS)

    return first_seen, first_key, last_key
