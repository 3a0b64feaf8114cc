"""Binary heaps in arrays, the smallest on top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gumba.jit.jit import inline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@inline
def sift(heap: NDArray[np.generic], root: int, size: int) -> None:
    """Restore the heap (smallest on top) of ``heap[:size]`` below ``root``."""
    value = heap[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[root] = heap[child]
        root = child
    heap[root] = value


@inline
def heapify(heap: NDArray[np.generic], size: int) -> None:
    """Make a heap, smallest on top, of ``heap[:size]``."""
    for i in range(size // 2 - 1, -1, -1):
        sift(heap, i, size)
