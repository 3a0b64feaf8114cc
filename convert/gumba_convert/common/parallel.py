"""Runs jobs in several threads; results come in order, with memory for only a few of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

CHUNK = 1 << 20  # weights per piece: fits a core's cache, and hides the overhead of the queue

Job = Callable[[], np.ndarray]

#: Called with the stage, the bytes written so far, and the total bytes.
Progress = Callable[[str, int, int], None]


def in_order(jobs: Iterable[Job], n_threads: int) -> Generator[np.ndarray, None, None]:
    """Yield the results of the jobs in order. At most a few more than `n_threads` are started and not yet taken.

    Jobs should release the GIL. The first one that fails ends the iteration with its exception. Close the generator when leaving
    early: that waits for started jobs.
    """
    pool = ThreadPoolExecutor(n_threads, "gumba-convert")
    started: deque[Future[np.ndarray]] = deque()
    try:
        for job in jobs:
            started.append(pool.submit(job))
            if len(started) > n_threads + 2:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def row_pieces(n_rows: int, row_length: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of pieces of about CHUNK weights, each a multiple of `unit` rows."""
    step = max(1, CHUNK // (row_length * unit)) * unit
    for first in range(0, n_rows, step):
        yield first, min(step, n_rows - first)
