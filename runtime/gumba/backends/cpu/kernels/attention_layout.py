"""How attention's pages, tiles and results lie in memory, and which keys a token attends to.

Kernels read it from a ``GEOMETRY`` record. ``Variant`` says what an attention adds to plain causal attention: code is made for
each variant, so that plain causal attention pays nothing for what others need.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from gumba.backends.cpu.kernels.page_format import BLOCK_ROWS, PAGE_TOKENS, PART_TOKENS, S_ROW, SCRATCH, PageFormat
from gumba.backends.cpu.kernels.record import SLOTS, TABLE, WINDOW_SLOTS, WINDOW_TABLE
from gumba.jit.jit import Inline, inline, record_at

PART_PAGES = PART_TOKENS // PAGE_TOKENS
#: Target number of rows of a tile: enough to use each part of the context often while it is in the second-level cache.
TILE_ROWS = 48
SPLIT_UNITS_PER_THREAD = 4
#: Factor of the scores' scale: softmax is computed with powers of two.
LOG2_E = 1.4426950408889634

#: What a layer's pages and heads look like, constant from step to step: a record that compiled functions read by its fields.
GEOMETRY = np.dtype(
    [
        (name, "<i8")
        for name in (
            "k_page",  # bytes from one page's keys to the next page's
            "v_page",
            "k_head",  # bytes from one head's keys in a page to the next head's
            "v_head",
            "v_offset",  # bytes from a layer's first keys in an extent to its first values
            "n_kv_heads",
            "group",  # query heads for each KV head
            "head_dim",
            "v_row",  # elements of a token's values, padding included
            "q_row",  # bytes of a query row
            "max_rows",  # rows of a whole tile, padded to whole blocks
            "extent_pages",  # pages in an extent of memory
            "extent_bytes",  # bytes from one extent to the next
            "v_dim",
            "window",  # tokens of a window or a chunk
            "sinks",  # address of float32 [n_heads], times LOG2_E
            "of_distance",  # address of each head's slope, or of its biases (``bias_table``), times LOG2_E
            "of_distance_row",  # bytes from one head's to the next
            "reach",  # of the biases
            "slots_at",  # where the batch record has the cache slots of this step's tokens (vLLM: slot mapping)
            "table_at",  # where a tile has the block table of its sequence
        )
    ]
)
#: A compiled function: the geometry at an address.
geometry_at = record_at(GEOMETRY)


@dataclass(frozen=True)
class Variant:
    """What an attention adds to plain causal attention, each with code of its own.

    ``bidirectional``: a token attends to all of its sequence, not only to earlier tokens; ``window``: only to tokens less
    than this far away (Beltagy et al. 2020); ``chunk``: only within its chunk of so many tokens (Llama 4, 2025);
    ``target``: only to what comes after its sequence's source; ``cross``: only to the source, and to all of it (both of
    encoder-decoders, Vaswani et al. 2017); ``softcap``: scores go through cap * tanh(score / cap) (Gemma 2, 2024);
    ``slopes``: the distance times the head's slope is subtracted from each score (ALiBi, Press et al. 2021); ``bias``: a
    number that depends on head and distance is added to each score (T5, Raffel et al. 2019); ``sinks``: one more logit for
    each head takes part in the softmax, but has no value (gpt-oss, OpenAI 2025).
    """

    bidirectional: bool = False
    window: bool = False
    chunk: bool = False
    target: bool = False
    cross: bool = False
    softcap: bool = False
    slopes: bool = False
    bias: bool = False
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.window + self.chunk + self.target + self.cross > 1 or (
            self.bidirectional and (self.chunk or self.target)
        ):
            raise ValueError(f"attention{self.name}: these limits of what a token attends to do not go together")
        if self.slopes and self.bias:
            raise ValueError("attention with both slopes and a bias")

    @property
    def bounded(self) -> bool:
        """Whether the first key that a token attends to is another than the sequence's first."""
        return self.window or self.chunk or self.target

    @property
    def name(self) -> str:
        """For the kernel's name; empty for plain causal attention."""
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
    """The GEOMETRY record of a layer, int64 array [1]; see the comments there.

    ``window`` is of a window or a chunk; ``windowed``: the pages are those for layers with a window.
    """
    slots_at, table_at = (WINDOW_SLOTS, WINDOW_TABLE) if windowed else (SLOTS, TABLE)
    fields = {
        "k_page": k_page, "v_page": v_page, "k_head": k_head, "v_head": v_head, "v_offset": v_offset,
        "n_kv_heads": n_kv_heads, "group": group, "head_dim": head_dim, "v_row": pages.v_row(v_dim),
        "q_row": pages.query_bytes(head_dim), "max_rows": tile_rows(group), "extent_pages": extent_pages,
        "extent_bytes": extent_bytes, "v_dim": v_dim, "window": window, "sinks": sinks, "of_distance": of_distance,
        "of_distance_row": of_distance_row, "reach": reach, "slots_at": slots_at, "table_at": table_at,
    }  # fmt: skip
    return np.array([tuple(fields[name] for name in GEOMETRY.names or ())], GEOMETRY)


def bias_table(biases: np.ndarray) -> np.ndarray:
    """Biases of each head by distance, padded so that those of any 16 keys in a row lie side by side.

    ``biases``: float32 [n_heads, 2 * reach + 1], of keys ``reach`` tokens before the query, up to as many after it; those
    further away have the outermost numbers.
    """
    return np.ascontiguousarray(np.pad(biases, ((0, 0), (16, 15)), mode="edge"), np.float32)


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


class Tile(NamedTuple):
    """What all rows of a tile for one KV head share: numbers in registers of a compiled function.

    ``edge``: where the keys end that a sequence has (bidirectional), or where its source ends (target, cross); ``table``: address
    of the block table; ``k_pages``, ``v_pages``: the head's keys and values in page 0; ``of_heads``: slopes or biases of the
    group's first head; ``cap``: of the scores.
    """

    rows: int
    first_position: int
    edge: int
    table: int
    k_pages: int
    v_pages: int
    of_heads: int
    cap: float


@inline
def page_address(first, page, geometry, page_bytes):
    """A head's keys or values in a page; ``first``: those in page 0; ``page_bytes``: ``k_page`` or ``v_page``."""
    return first + page // geometry.extent_pages * geometry.extent_bytes + page % geometry.extent_pages * page_bytes


@inline
def result_row_bytes(geometry):
    """Bytes of a row's result: see ``_result_bytes``."""
    return 4 * (geometry.v_row + 16)


class Bounds(NamedTuple):
    """Compiled functions: which keys a token attends to in a variant of attention.

    ``first_attended(position, geometry, edge)``: the first key that the token at a position attends to; ``first_key(tile,
    geometry, row, part)``, ``last_key(...)``: the first key and the last one (exclusive) of a part that a row attends to.
    """

    first_attended: Inline[int]
    first_key: Inline[int]
    last_key: Inline[int]


@functools.cache
def bounds(variant: Variant) -> Bounds:
    """Which keys tokens attend to. Cached: compiled once for all functions of a kernel, and for all kernels of a variant."""
    window, chunk, target, unbounded = variant.window, variant.chunk, variant.target, not variant.bounded
    bidirectional = variant.bidirectional or variant.cross

    @inline
    def first_attended(position, geometry, edge):
        if window:
            return max(position - geometry.window + 1, 0)
        if chunk:
            return position // geometry.window * geometry.window
        return edge if target else 0

    @inline
    def first_key(tile, geometry, row, part):
        if unbounded:
            return 0
        position = tile.first_position + row // geometry.group
        return min(max(first_attended(position, geometry, tile.edge) - part * PART_TOKENS, 0), PART_TOKENS)

    @inline
    def last_key(tile, geometry, row, part):
        position = tile.first_position + row // geometry.group
        if not bidirectional:
            stop = position + 1
        elif window:
            stop = min(tile.edge, position + geometry.window)
        else:
            stop = tile.edge
        return min(max(stop - part * PART_TOKENS, 0), PART_TOKENS)

    return Bounds(first_attended, first_key, last_key)
