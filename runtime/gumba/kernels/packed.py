"""Weights as the kernels read them: rows interleaved lane by lane.

At load, ``lanes`` consecutive rows (a group) are woven together, block by block: each element of a block (its scale, then
each 4-byte word of weights) is stored once per row, side by side. One vector load then brings the same element of ``lanes``
rows, each lane sums one output row, and nothing is ever added across lanes. Rows past the last one are zeros.

A block format says in its own file (``gumba.quants``) how its blocks are woven (``PIECES``) and how a woven block becomes
registers (``unpack``); what all formats share is here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from gumba.kernels.jit import entry, inline
from gumba.simd.isa import Isa
from gumba.simd.memory import load_i8, load_i16, load_i32, store_i8, store_i16, store_i32

#: How much of a matrix a thread reads and weaves at a time.
CHUNK_BYTES = 2 << 20
#: Rows of float buffers and packed matrices are padded to this many elements: the widest group of any instruction set.
ROW_ALIGN = 64


@inline
def _copy(target, source, width, mask):
    """One element of 1, 2 or 4 bytes; ``mask`` is XORed into the last kind."""
    if width == 4:
        store_i32(target, load_i32(source) ^ mask)
    elif width == 2:
        store_i16(target, load_i16(source))
    else:
        store_i8(target, load_i8(source))


@entry("void(i8, i8, i8, i8, i8, i8, i8, i8, i8[:, ::1], i8)")
def interleave(source, row_bytes, n_rows, target, first_group, last_group, lanes, n_blocks, pieces, flip):
    """Weave rows ``lanes * first_group`` up to ``lanes * last_group`` into ``target`` (which starts at ``first_group``).

    ``source``: address of row ``lanes * first_group``, rows of ``row_bytes``; ``n_rows``: how many rows the matrix has.
    ``pieces``: int64 [p, 3] of (offset in the block, bytes of an element, elements); ``flip``: XORed into 4-byte elements.
    """
    block_bytes = 0
    for p in range(pieces.shape[0]):
        block_bytes = max(block_bytes, pieces[p, 0] + pieces[p, 1] * pieces[p, 2])
    for g in range(last_group - first_group):
        for b in range(n_blocks):
            for p in range(pieces.shape[0]):
                width = pieces[p, 1]
                for e in range(pieces[p, 2]):
                    at = b * block_bytes + pieces[p, 0] + e * width
                    for lane in range(lanes):
                        row = g * lanes + lane
                        if first_group * lanes + row < n_rows:
                            _copy(target, source + row * row_bytes + at, width, flip)
                        else:
                            for k in range(width):
                                store_i8(target + k, 0)
                        target += width


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix [rows, columns] ready for the kernels.

    ``data``: uint8, one run per group of ``lanes`` rows; ``n_blocks``: blocks (or single columns of a float format) per row.
    """

    format: ModuleType
    rows: int
    columns: int
    n_blocks: int
    n_groups: int
    group_bytes: int
    data: np.ndarray

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)


def aligned_empty(n_bytes: int, alignment: int = 64) -> np.ndarray:
    """Uninitialised uint8 memory whose address is a multiple of ``alignment``."""
    whole = np.empty(n_bytes + alignment, np.uint8)
    start = -whole.ctypes.data % alignment
    return whole[start : start + n_bytes]


def pack(
    format: ModuleType,
    n_rows: int,
    columns: int,
    read: Callable[[int, int], np.ndarray],
    isa: Isa,
    n_threads: int = 1,
) -> PackedMatrix:
    """Weave a matrix of ``n_rows`` rows for ``isa``, a few megabytes at a time on each thread.

    ``read(first, count)`` gives rows in the file's block format, uint8 [count, bytes of a row], C-contiguous; it is called
    from several threads. Checked by the caller: a row's bytes are those of ``columns`` weights.
    """
    woven_size = getattr(format, "WOVEN_BLOCK_SIZE", format.BLOCK_SIZE)
    n_blocks = columns // woven_size
    pieces = np.array(format.PIECES, np.int64)
    row_bytes = n_blocks * int((pieces[:, 1] * pieces[:, 2]).sum())
    group_bytes = row_bytes * isa.lanes
    n_groups = -(-n_rows // isa.lanes)
    data = aligned_empty(n_groups * group_bytes)
    flip = 0 if isa.dot_signed is not None else getattr(format, "FLIP", 0)
    interleave.compile()

    def weave(first: int) -> None:
        last = min(first + step, n_groups)
        first_row = first * isa.lanes
        rows = read(first_row, min(last * isa.lanes, n_rows) - first_row)
        if hasattr(format, "to_woven"):  # a format whose bits are rearranged first, into smaller blocks
            rows = format.to_woven(rows)
        target = data.ctypes.data + first * group_bytes
        interleave(rows.ctypes.data, row_bytes, n_rows, target, first, last, isa.lanes, n_blocks, pieces, flip)

    step = max(1, CHUNK_BYTES // group_bytes)
    starts = range(0, n_groups, step)
    if n_threads == 1 or len(starts) == 1:
        for first in starts:
            weave(first)
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(weave, starts))
    return PackedMatrix(format, n_rows, columns, n_blocks, n_groups, group_bytes, data)
