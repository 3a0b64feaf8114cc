"""The KV cache: a pool of pages, each holding ``page_tokens`` tokens of one sequence for every layer.

A sequence owns a list of page ids (its block table); position p lies in page ``table[p // page_tokens]``, place
``p % page_tokens`` (vLLM, Kwon et al. 2023). This module hands pages out and takes them back; their memory is the backend's
(``gumba.backends.base.CachePages``).

Layers with a sliding window may have a smaller pool of their own, ``window_pool``: there a sequence has pages for what its next
token sees, and releases earlier ones as it advances. Its block table for them is as long as the other, with unused entries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from gumba.backends.base import Backend, CachePages, KVFormat
from gumba.backends.cache_shapes import NOTHING, KVShape
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.memory import shortage


class KVCache:
    """A pool of ``n_pages`` pages, each with any number of owners.

    ``shapes``: of each layer; ``kv_type``: a KV format of the backend, e.g. "f16"; ``n_window_pages``: pages of
    ``window_pool``, the pool of layers with a window (0: no such pool). ``memory``: what the pages hold; ``window``: the longest
    window of ``window_pool``. Raises RequestError for an unknown ``kv_type``, ResourceError when there is not enough memory.
    """

    def __init__(
        self,
        backend: Backend,
        shapes: Sequence[KVShape],
        n_pages: int,
        kv_type: str = "f16",
        n_window_pages: int = 0,
        window: int = 0,
    ) -> None:
        format = backend.kv_format(kv_type)
        #: What a page has of the layers with a window and without, in whichever pool they are.
        self.part_bytes = {
            windowed: self.bytes_per_page([shape for shape in shapes if (shape.window > 0) == windowed], format)
            for windowed in (False, True)
        }
        self.longest_window = max((shape.window for shape in shapes), default=0)
        self.window = self.longest_window if n_window_pages else window
        self.window_pool: KVCache | None = None
        if n_window_pages:
            windowed = [shape if shape.window else NOTHING for shape in shapes]
            self.window_pool = KVCache(backend, windowed, n_window_pages, kv_type, window=self.window)
            shapes = [NOTHING if shape.window else shape for shape in shapes]
        self.page_tokens = format.page_tokens
        self.n_pages = n_pages
        self.kv_type = kv_type
        self.page_bytes = self.bytes_per_page(shapes, format)
        beside = None if self.window_pool is None else self.window_pool.memory
        try:
            self.memory: CachePages = backend.cache_pages(shapes, n_pages, format, beside, self.window)
        except MemoryError:
            tokens = n_pages * self.page_tokens
            need = shortage(f"a KV cache of {tokens} tokens needs", n_pages * self.page_bytes)
            raise ResourceError(f"{need}: choose a smaller one (kv_memory) or a smaller context (n_ctx)") from None
        self.n_bytes = self.memory.n_bytes
        self._closed = False
        self._lock = threading.Lock()
        self._free = list(range(n_pages - 1, -1, -1))
        self._owners = [0] * n_pages
        #: Which pages are taken, a byte for each.
        self.used = np.zeros(n_pages, np.bool_)

    @staticmethod
    def bytes_per_page(shapes: Sequence[KVShape], format: KVFormat) -> int:
        """Memory of a page, for all layers."""
        return sum(shape.bytes_per_page(format) for shape in shapes)

    @property
    def n_free(self) -> int:
        """Pages without an owner."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages; all or none. Raises ResourceError when fewer are free."""
        if count < 0:
            raise RequestError(f"{count} pages: expected 0 or more")
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed")
            if count > len(self._free):
                raise ResourceError(f"{count} KV pages wanted, {len(self._free)} of {self.n_pages} are free")
            pages = [self._free.pop() for _ in range(count)]
            self.used[pages] = True
            for page in pages:
                self._owners[page] = 1
            return pages

    def share(self, pages: Sequence[int]) -> None:
        """Count one more owner of each page; all or none. Raises EngineError for a page that is not taken."""
        with self._lock:
            self._check(pages)
            for page in pages:
                self._owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back, free when their last owner does; all or none.

        Raises EngineError for a page that is not taken, or named twice.
        """
        with self._lock:
            self._check(pages)
            for page in pages:
                self._owners[page] -= 1
                if not self._owners[page]:
                    self.used[page] = False
                    self._free.append(page)

    def _check(self, pages: Sequence[int]) -> None:
        named: set[int] = set()
        for page in pages:
            if not 0 <= page < self.n_pages or not self._owners[page] or page in named:
                raise EngineError(f"KV page {page} is released or shared but was not taken")
            named.add(page)

    def owners(self, page: int) -> int:
        """How many hold a page."""
        return self._owners[page]

    def copy(self, source: int, target: int) -> None:
        """Make one taken page hold what another one holds."""
        with self._lock:
            self._check([source, target])
            self.memory.copy(source, target)

    def read(self, page: int, windowed: bool) -> bytes:
        """What a taken page of this pool holds of the layers with a window, or of those without.

        The order depends on ``kv_type`` and the program alone, not on the pools.
        """
        with self._lock:
            self._check([page])
            return self.memory.read(page, windowed)

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill a taken page with what ``read`` gave. Raises RequestError when that has another length."""
        with self._lock:
            self._check([page])
            self.memory.write(page, data, windowed)

    def close(self) -> None:
        """Free the memory; nothing can be allocated any more."""
        with self._lock:
            self._closed = True
            self.memory.close()
        if self.window_pool is not None:
            self.window_pool.close()

    def first_read(self, position: int) -> int:
        """The first page of ``window_pool`` that a sequence's token at ``position`` reads, as an index in its block table."""
        return max(0, position - self.window + 1) // self.page_tokens

    def owns(self, pages: np.ndarray) -> bool:
        """Whether all page ids (integers) are in range and taken."""
        return bool(((pages >= 0) & (pages < self.n_pages)).all() and self.used[pages].all())
