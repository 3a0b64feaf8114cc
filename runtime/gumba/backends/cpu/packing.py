"""Packs weights for the kernels: rows interleaved lane by lane.

At load, ``lanes`` consecutive rows (a group) are interleaved, block by block: each element of a block (its scale, then
each 4-byte word of weights) is stored once per row, side by side. One vector load then brings the same element of ``lanes``
rows, each lane sums one output row, and nothing is ever added across lanes. Rows past the last one are zeros.

A block format says in its own file (``gumba.quants``) how its blocks are packed (``pack_fields``) and how a packed block becomes
registers (``unpack``); what all formats share is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from gumba.jit.jit import Intrinsic, entry, inline
from gumba.quants import BlockFormat, DotFormat
from gumba.simd.isa import Isa
from gumba.simd.memory import load_i8, load_i16, load_i32, load_i64, store_i8, store_i16, store_i32
from gumba.simd.value import I16, I32, Simd, Value, simd_function

#: Bytes of a matrix that a thread reads and packs at a time. (Measured: 0.5 MB, which would stay in the second-level cache
#: between the two, loses a tenth to Python's part in each piece.)
CHUNK_BYTES = 2 << 20
#: Rows of float buffers and packed matrices are padded to this many elements: the widest group of any instruction set.
ROW_ALIGN = 64


def _transpose(element: ir.Type, flip_bits: bool) -> Intrinsic[None]:
    """A compiled function: transposes 4 elements of 4 rows; ``flip`` is XORed into 4-byte elements."""

    @simd_function("void(i8, i8, i8, i8, i8)")
    def transpose(s: Simd, source: Value, row_bytes: Value, target: Value, target_bytes: Value, flip: Value) -> None:
        rows = [s.load(source + row_bytes * r, element, 4) for r in range(4)]
        if flip_bits:
            mask = s.splat(flip.to(I32), 4)
            rows = [row ^ mask for row in rows]
        low, high = s.concatenate(rows[0], rows[1]), s.concatenate(rows[2], rows[3])
        for half in range(2):
            i = 2 * half
            a, b = s.shuffle(low, [i, 4 + i, i + 1, 5 + i]), s.shuffle(high, [i, 4 + i, i + 1, 5 + i])
            both = s.concatenate(a, b)
            s.store(target + target_bytes * i, s.shuffle(both, [0, 1, 4, 5]))
            s.store(target + target_bytes * (i + 1), s.shuffle(both, [2, 3, 6, 7]))

    return transpose


_transpose_4_bytes, _transpose_2_bytes = _transpose(I32, True), _transpose(I16, False)


@inline
def _copy(target, source, width, mask):
    """Copy one element of 1, 2 or 4 bytes; ``mask`` is XORed into those of 4."""
    if width == 4:
        store_i32(target, load_i32(source) ^ mask)
    elif width == 2:
        store_i16(target, load_i16(source))
    else:
        store_i8(target, load_i8(source))


@entry("void(i8, i8, i8, i8, i8, i8, i8, i8, i8)")
def interleave(source, row_bytes, target, n_groups, lanes, n_blocks, fields, n_fields, flip):
    """Pack ``n_groups`` groups of ``lanes`` (a multiple of 4) rows at ``source``, ``row_bytes`` each, into ``target``.

    ``fields``: address of int64 [n_fields, 3]: offset in the block, bytes of an element, elements; ``flip``: XORed into 4-byte
    elements.
    """
    block_bytes = 0
    for f in range(n_fields):
        end = load_i64(fields + 24 * f) + load_i64(fields + 24 * f + 8) * load_i64(fields + 24 * f + 16)
        block_bytes = max(block_bytes, end)
    for _ in range(n_groups):
        for b in range(n_blocks):
            for f in range(n_fields):
                at = source + b * block_bytes + load_i64(fields + 24 * f)
                width = load_i64(fields + 24 * f + 8)
                count = load_i64(fields + 24 * f + 16)
                e = 0
                if width > 1:
                    while e + 4 <= count:
                        for lane in range(0, lanes, 4):
                            from_rows = at + lane * row_bytes + e * width
                            if width == 4:
                                _transpose_4_bytes(from_rows, row_bytes, target + lane * 4, lanes * 4, flip)
                            else:
                                _transpose_2_bytes(from_rows, row_bytes, target + lane * 2, lanes * 2, flip)
                        e += 4
                        target += 4 * lanes * width
                while e < count:
                    for lane in range(lanes):
                        _copy(target, at + lane * row_bytes + e * width, width, flip)
                        target += width
                    e += 1
        source += lanes * row_bytes


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix [rows, columns] ready for the kernels.

    ``data``: uint8, one run for each group of ``lanes`` rows; ``n_blocks``: blocks (or single columns of a float format) per row;
    ``scale``: factor of the numbers that the blocks stand for.
    """

    format: BlockFormat
    rows: int
    columns: int
    n_blocks: int
    n_groups: int
    group_bytes: int
    data: np.ndarray
    scale: float = 1.0

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)


def aligned_empty(n_bytes: int, alignment: int = 64) -> np.ndarray:
    """Uninitialised uint8 memory whose address is a multiple of ``alignment``. (Large ones: numpy asks for huge pages.)"""
    whole = np.empty(n_bytes + alignment, np.uint8)
    start = -whole.ctypes.data % alignment
    return whole[start : start + n_bytes]


def allocate_packed(
    format: BlockFormat, n_rows: int, columns: int, isa: Isa, memory: Callable[[int], np.ndarray] = aligned_empty
) -> PackedMatrix:
    """A matrix whose data is not packed yet. ``memory(n)`` allocates n bytes, 64-byte aligned."""
    n_blocks = columns // format.packed_block_size
    group_bytes = n_blocks * format.packed_block_bytes * isa.lanes
    n_groups = -(-n_rows // isa.lanes)
    return PackedMatrix(format, n_rows, columns, n_blocks, n_groups, group_bytes, memory(n_groups * group_bytes))


def chunks(matrix: PackedMatrix) -> Iterator[tuple[int, int]]:
    """(first, last) group of runs of about CHUNK_BYTES."""
    step = max(1, CHUNK_BYTES // max(1, matrix.group_bytes))
    for first in range(0, matrix.n_groups, step):
        yield first, min(first + step, matrix.n_groups)


def pack(matrix: PackedMatrix, isa: Isa, rows: np.ndarray, first: int, last: int) -> None:
    """Pack groups ``first`` up to ``last``. ``rows``: their rows as the file has them, uint8 [count, bytes of a row]."""
    format, lanes, flip = matrix.format, isa.lanes, 0
    if isinstance(format, DotFormat):
        rows = rows if format.to_packed is None else format.to_packed(rows)
        flip = 0 if isa.dot_signed is not None else format.sign_flip
    short = (last - first) * lanes - len(rows)
    if short:
        rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), np.uint8)])
    rows = np.ascontiguousarray(rows)
    fields, n_blocks = np.array(format.pack_fields, np.int64), matrix.n_blocks
    if len(fields) == 1:  # a run of equal elements: the whole row at once
        fields[0, 2] *= n_blocks
        n_blocks = 1
    interleave(
        int(rows.ctypes.data), rows.shape[1], matrix.address + first * matrix.group_bytes, last - first, lanes, n_blocks,
        int(fields.ctypes.data), len(fields), flip,
    )  # fmt: skip


def pack_matrix(
    format: BlockFormat, n_rows: int, columns: int, read: Callable[[int, int], np.ndarray], isa: Isa
) -> PackedMatrix:
    """Pack a whole matrix of ``n_rows`` rows for ``isa``, on this thread.

    ``read(first, count)`` gives rows in the file's block format, uint8 [count, bytes of a row]. Checked by the caller: a row's
    bytes are those of ``columns`` weights.
    """
    matrix = allocate_packed(format, n_rows, columns, isa)
    for first, last in chunks(matrix):
        first_row = first * isa.lanes
        pack(matrix, isa, read(first_row, min(last * isa.lanes, n_rows) - first_row), first, last)
    return matrix
