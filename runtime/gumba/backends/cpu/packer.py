"""Packing a file's matrices into one allocation, so that the system can back it with huge pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from gumba.backends.base import Matrix, MatrixShape
from gumba.backends.cpu import packing
from gumba.backends.cpu.packing import PackedMatrix, aligned_empty
from gumba.simd.isa import Isa


class CPUPacker:
    """The CPU's ``gumba.backends.base.Packer``, for the instruction set ``isa``."""

    def __init__(self, isa: Isa, shapes: Iterable[tuple[MatrixShape, int]]) -> None:
        self._isa = isa
        total = 0
        for shape, count in shapes:
            size = self._allocate(shape, lambda n_bytes: np.empty(0, np.uint8))
            total += count * (-(-size.n_groups * size.group_bytes // 64) * 64)
        self._memory = aligned_empty(total)
        self._used = 0

    def _allocate(self, shape: MatrixShape, memory: Callable[[int], np.ndarray]) -> PackedMatrix:
        return packing.allocate_packed(shape.format, shape.rows, shape.columns, self._isa, memory)

    def _take(self, n_bytes: int) -> np.ndarray:
        """Part of the one allocation."""
        start = self._used
        if start + n_bytes > len(self._memory):  # a matrix that is allocated in parts takes more than in one
            return aligned_empty(n_bytes)
        self._used += -(-n_bytes // 64) * 64
        return self._memory[start : start + n_bytes]

    def allocate(self, shape: MatrixShape, scale: float = 1.0) -> PackedMatrix:
        """Allocate a matrix, whose weights are packed later. Only ``pack`` writes to it."""
        matrix = replace(self._allocate(shape, self._take), scale=scale)
        matrix.data.flags.writeable = False
        return matrix

    def prepare(self) -> None:
        """Compile what ``pack`` needs."""
        packing.interleave.compile()

    def row_runs(self, matrix: Matrix) -> Iterator[tuple[int, int]]:
        """The ranges of rows (first, last) that ``pack`` takes: whole groups, about ``packing.CHUNK_BYTES`` each."""
        lanes = self._isa.lanes
        for first, last in packing.chunks(cast(PackedMatrix, matrix)):
            yield first * lanes, min(last * lanes, matrix.rows)

    def pack(self, matrix: Matrix, first: int, rows: np.ndarray) -> None:
        """Pack ``rows``, uint8 [count, bytes of a row], from row ``first`` on, the first row of a group."""
        lanes = self._isa.lanes
        packing.pack(cast(PackedMatrix, matrix), self._isa, rows, first // lanes, -(-(first + len(rows)) // lanes))
