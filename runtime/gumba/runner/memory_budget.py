"""How much memory a model takes for its sequences: pages of the KV cache, and slots for recurrent states."""

from __future__ import annotations

from collections.abc import Sequence

from gumba.backends.base import Backend, KVFormat
from gumba.backends.cache_shapes import KVShape, StateShape
from gumba.errors import RequestError
from gumba.memory import available_memory
from gumba.runner.kv_cache import KVCache

#: Sequences of the whole context that the KV cache has room for, where memory allows. It takes memory only as it fills.
USUAL_CONTEXTS = 4
#: Pages that a KV cache has where the memory does not allow one whole context, and no size is named.
LEAST_PAGES = 4
#: Slots for recurrent states, where memory allows; of small ones more, but in no more than so many bytes. They take memory only
#: when used.
MOST_STATES, MOST_SMALL_STATES, STATES_BYTES = 128, 4096, 256 << 20
#: A pool of pages for layers with a window holds so many times what whole contexts need there, for many short sequences and for
#: what requests have in common.
WINDOW_POOL_FACTOR = 2


class PageBudget:
    """How many pages there are, for all layers and for those with a window.

    ``n_ctx``, ``n_step``: most tokens of a sequence and of a step; ``n_sequences``: that a pool for layers with a window must
    hold at once, 0 for no such pool.
    """

    def __init__(self, shapes: Sequence[KVShape], n_ctx: int, n_step: int, format: KVFormat, n_sequences: int) -> None:
        self._n_ctx, self._page_tokens = n_ctx, format.page_tokens
        window = max((shape.window for shape in shapes), default=0) if n_sequences else 0
        #: For so many sequences at once, a page each to grow into.
        self._least = n_sequences * (-(-window // format.page_tokens) + 2) if window else 0
        #: Pages that a sequence has at once for the layers with a window.
        self._each = -(-(window + n_step) // format.page_tokens) + 1 if window else 0
        self._page_bytes = KVCache.bytes_per_page([shape for shape in shapes if not (window and shape.window)], format)
        self._window_bytes = KVCache.bytes_per_page(shapes, format) - self._page_bytes

    def window_pages(self, n_pages: int) -> int:
        """Pages of the pool for layers with a window, beside ``n_pages`` for the others; 0 where one pool for all is as small."""
        if not self._each:
            return 0
        count = max(self._least, WINDOW_POOL_FACTOR * self._each * (1 + -(-n_pages * self._page_tokens // self._n_ctx)))
        return count if count < n_pages else 0

    def _bytes(self, n_pages: int) -> int:
        return n_pages * self._page_bytes + (self.window_pages(n_pages) or n_pages) * self._window_bytes

    def n_pages(self, kv_memory: int | None, states_bytes: int, weights_bytes: int) -> int:
        """Pages where the caller names no number. Raises RequestError when ``kv_memory`` is too little for any.

        ``states_bytes``: of that memory, what the recurrent states take. ``weights_bytes``: what the weights are going to take
        of the memory there is.
        """
        most, there_is = -(-USUAL_CONTEXTS * self._n_ctx // self._page_tokens), available_memory()
        least = -(-self._n_ctx // self._page_tokens)
        if kv_memory is not None:
            wanted = self._bytes(1) + states_bytes
            if kv_memory < wanted:
                states = " and the states of two sequences" if states_bytes else ""
                raise RequestError(
                    f"kv_memory is {kv_memory}, expected at least {wanted}, for {self._page_tokens} tokens{states}"
                )
            return self._fitting(kv_memory - states_bytes, 1, 1 << 24)
        if there_is is None:
            return least
        least = self._fitting((there_is - weights_bytes) // 2, min(least, LEAST_PAGES), least)
        return self._fitting(there_is // 8, least, most)

    def _fitting(self, n_bytes: int, least: int, most: int) -> int:
        """The largest number of pages from ``least`` to ``most`` that fits ``n_bytes``; ``least`` where none does."""
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
    """Slots for recurrent states, and their bytes; none for a model without recurrent layers.

    ``n_states``: as given; None: as many as fit a quarter of ``kv_memory``, or an eighth of what the machine has to spare.
    """
    if not any(parts):
        return 0, 0
    each = backend.state_slot_bytes(parts)
    if n_states is None:
        there_is = available_memory()
        n_states = most = max(MOST_STATES, min(STATES_BYTES // each, MOST_SMALL_STATES))
        if kv_memory is not None:
            n_states = kv_memory // 4 // each
        elif there_is is not None:
            n_states = there_is // 8 // each
        n_states = max(2, min(most, n_states))
    return n_states, n_states * each
