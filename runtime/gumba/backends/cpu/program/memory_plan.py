"""Where a written program waits, where its buffers lie, and how finely its work is cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels.record import MAX_CHUNKS, SPLIT_FACTOR, split_factor
from gumba.backends.cpu.packing import aligned_empty
from gumba.backends.cpu.program.operation import Buffer, Operation
from gumba.errors import ResourceError
from gumba.memory import shortage

#: A chunk of a small step's product reads at least so much, or is not cut further.
CHUNK_BYTES = 1 << 20


def place_barriers(operations: Sequence[Operation]) -> list[bool]:
    """Whether a barrier follows each operation; numbers the phases between barriers."""
    after = [False] * len(operations)
    begin, phase = 0, 0
    for i, op in enumerate(operations):
        if any(op.waits_for(earlier) for earlier in operations[begin:i]):
            after[i - 1] = True
            begin, phase = i, phase + 1
        op.phase = phase
    if after:
        after[-1] = True
    return after


def place_buffers(operations: Sequence[Operation], keep: Sequence[Buffer], max_rows: int) -> np.ndarray:
    """One arena for all buffers: first fit, sharing memory between buffers that are never alive in the same phase."""
    buffers: list[Buffer] = []
    for op in operations:
        for b in [*op.reads, *op.writes]:
            if b.first_use < 0:
                b.first_use = op.phase
                buffers.append(b)
            b.last_use = op.phase
    for b in keep:
        b.last_use = operations[-1].phase
    placed: list[tuple[int, int, Buffer]] = []
    for b in sorted(buffers, key=lambda b: -b.row_bytes):
        size = -(-b.row_bytes * max_rows // 64) * 64  # a multiple of a cache line
        start = 0
        for low, high, other in sorted(placed, key=lambda p: p[0]):
            if other.last_use < b.first_use or b.last_use < other.first_use:
                continue
            if start + size <= low:
                break
            start = max(start, high)
        placed.append((start, start + size, b))
    total = max((high for _, high, _ in placed), default=0)
    try:
        arena = aligned_empty(total + 64)
    except MemoryError:
        raise ResourceError(shortage("the working buffers need", total)) from None
    for low, _, b in placed:
        b.address = int(arena.ctypes.data) + low
    return arena


def plan_splits(operations: Sequence[Operation], n_threads: int, records: np.ndarray) -> None:
    """How finely the shares of each phase are cut, where all its operations allow it.

    In a small step only as far as a chunk still reads CHUNK_BYTES of weights: a new run of memory costs a third of a
    microsecond until it streams.
    """
    for phase in range(operations[-1].phase + 1 if operations else 0):
        members = [i for i, op in enumerate(operations) if op.phase == phase]
        if all(operations[i].kernel.stealable for i in members):
            weights = sum(operations[i].work.weights for i in members)
            small = min(MAX_CHUNKS, max(1, weights // (n_threads * CHUNK_BYTES)))
            records[members[0], SPLIT_FACTOR] = split_factor(1 << small.bit_length() - 1, MAX_CHUNKS)
