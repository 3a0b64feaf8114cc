"""The size of a model's KV cache (number of pages), and the number of slots for recurrent states."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.backends.base import Backend, KVFormat
from gumba.backends.cache_shapes import KVShape, StateShape
from gumba.errors import RequestError
from gumba.memory import available_memory
from gumba.runner.kv_cache import KVCache

#: By default the KV cache holds this many sequences of full length, if memory allows. It takes memory only as it fills.
DEFAULT_SEQUENCES = 4
#: Minimum number of pages if the caller sets no size and memory does not suffice for one full context.
MIN_PAGES = 4
#: Default number of slots for recurrent states, if memory allows: MAX_STATES, or more small ones (up to MAX_SMALL_STATES) in at
#: most STATES_BYTES. They take memory only when used.
MAX_STATES, MAX_SMALL_STATES, STATES_BYTES = 128, 4096, 256 << 20
#: A window pool holds this many times the pages that full contexts need there: for many short sequences, and for shared
#: prefixes.
WINDOW_POOL_FACTOR = 2


class PageBudget:
    """Computes the number of pages of the KV cache, and of its window pool.

    Args:
        shapes: The keys and values of each layer.
        n_ctx: Maximum number of tokens of a sequence.
        n_step: Maximum number of tokens in one step.
        format: The KV format.
        n_sequences: Number of sequences that a window pool must hold at once; 0: no window pool.
    """

    def __init__(self, shapes: Sequence[KVShape], n_ctx: int, n_step: int, format: KVFormat, n_sequences: int) -> None:
        self._n_ctx, self._page_tokens = n_ctx, format.page_tokens
        window = max((shape.window for shape in shapes), default=0) if n_sequences else 0
        #: Minimum size of the window pool: the windows of ``n_sequences`` sequences, and a page each to grow into.
        self._min_window_pages = n_sequences * (-(-window // format.page_tokens) + 2) if window else 0
        #: Maximum number of window pages that one sequence has at once.
        self._sequence_pages = -(-(window + n_step) // format.page_tokens) + 1 if window else 0
        self._page_bytes = KVCache.bytes_per_page([shape for shape in shapes if not (window and shape.window)], format)
        self._window_bytes = KVCache.bytes_per_page(shapes, format) - self._page_bytes

    def window_pages(self, n_pages: int) -> int:
        """Size of the window pool for a KV cache of ``n_pages`` pages; 0 if one pool for all layers is not larger."""
        if not self._sequence_pages:
            return 0
        n_contexts = 1 + -(-n_pages * self._page_tokens // self._n_ctx)
        count = max(self._min_window_pages, WINDOW_POOL_FACTOR * self._sequence_pages * n_contexts)
        return count if count < n_pages else 0

    def _bytes(self, n_pages: int) -> int:
        return n_pages * self._page_bytes + (self.window_pages(n_pages) or n_pages) * self._window_bytes

    def n_pages(self, kv_memory: int | None, states_bytes: int, weights_bytes: int) -> int:
        """Number of pages if the caller did not set one.

        Args:
            kv_memory: Bytes for KV cache and recurrent states; None: the available memory determines the number.
            states_bytes: The part of ``kv_memory`` that the recurrent states take.
            weights_bytes: The part of the available memory that the weights will take.

        Raises RequestError if ``kv_memory`` is too small.
        """
        most, available = -(-DEFAULT_SEQUENCES * self._n_ctx // self._page_tokens), available_memory()
        least = -(-self._n_ctx // self._page_tokens)
        if kv_memory is not None:
            wanted = self._bytes(1) + states_bytes
            if kv_memory < wanted:
                states = " and the states of two sequences" if states_bytes else ""
                raise RequestError(
                    f"kv_memory is {kv_memory}, expected at least {wanted}, for {self._page_tokens} tokens{states}"
                )
            return self._fitting(kv_memory - states_bytes, 1, 1 << 24)
        if available is None:
            return least
        least = self._fitting((available - weights_bytes) // 2, min(least, MIN_PAGES), least)
        return self._fitting(available // 8, least, most)

    def _fitting(self, n_bytes: int, least: int, most: int) -> int:
        """The largest number of pages from ``least`` to ``most`` that fits into ``n_bytes``; ``least`` if none does."""
        while least < most:
            middle = (least + most + 1) // 2
            if self._bytes(middle) <= n_bytes:
                least = middle
            else:
                most = middle - 1
        return least


def state_slots(
    backend: Backend, parts: Sequence[Sequence[StateShape]], n_states: int | None, kv_memory: int | None
) -> tuple[int, int]:
    """Number of slots for recurrent states, and their size in bytes; 0 and 0 for a model without recurrent layers.

    ``n_states``: the caller's setting; None: as many as fit into a quarter of ``kv_memory``, or an eighth of the
    available memory.
    """
    if not any(parts):
        return 0, 0
    each = backend.state_slot_bytes(parts)
    if n_states is None:
        available = available_memory()
        n_states = most = max(MAX_STATES, min(STATES_BYTES // each, MAX_SMALL_STATES))
        if kv_memory is not None:
            n_states = kv_memory // 4 // each
        elif available is not None:
            n_states = available // 8 // each
        n_states = max(2, min(most, n_states))
    return n_states, n_states * each
