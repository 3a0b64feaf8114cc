"""The KV cache: a pool of pages, each holding ``page_tokens`` tokens of one sequence for every layer.

A sequence owns a list of page ids (its block table); position p lies in page ``table[p // page_tokens]``, place
``p % page_tokens`` (vLLM, Kwon et al. 2023). This module allocates and frees pages; their memory belongs to the backend
(``gumba.backends.base.CachePages``).

Layers with a sliding window may have a smaller pool of their own, ``window_pool``: there a sequence has pages only for the tokens
that its next token attends to, and releases earlier ones as it advances. Its block table for that pool is as long as the other
one; the entries before the window are unused.
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
    """A pool of ``n_pages`` pages that counts the owners of each page.

    Args:
        backend: Allocates the memory.
        shapes: The keys and values of each layer.
        n_pages: Number of pages.
        kv_type: Name of one of the backend's KV formats, e.g. "f16".
        n_window_pages: Number of pages of ``window_pool``, the pool of the layers with a sliding window; 0: no such pool.
        window: Longest window of ``window_pool``, in tokens; computed from ``shapes`` if there is such a pool.

    Raises RequestError for an unknown ``kv_type``, ResourceError if there is not enough memory.
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
        #: Bytes of a page in the layers with a window (True) and in those without (False), in whichever pool they are.
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
        #: Whether each page is allocated, bool [n_pages].
        self.used = np.zeros(n_pages, np.bool_)

    @staticmethod
    def bytes_per_page(shapes: Sequence[KVShape], format: KVFormat) -> int:
        """Size of a page in bytes, over all layers."""
        return sum(shape.bytes_per_page(format) for shape in shapes)

    @property
    def n_free(self) -> int:
        """Number of pages without an owner."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Allocate ``count`` pages, all or none. Raises ResourceError if fewer are free."""
        if count < 0:
            raise RequestError(f"{count} pages: expected 0 or more")
        with self._lock:
            if self._closed:
                raise EngineError("the model is closed")
            if count > len(self._free):
                raise ResourceError(f"{count} KV pages requested, {len(self._free)} of {self.n_pages} are free")
            pages = [self._free.pop() for _ in range(count)]
            self.used[pages] = True
            for page in pages:
                self._owners[page] = 1
            return pages

    def share(self, pages: Sequence[int]) -> None:
        """Add one owner to each page, all or none. Raises EngineError for a page that is not allocated."""
        with self._lock:
            self._check(pages)
            for page in pages:
                self._owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Remove one owner from each page, all or none; a page without owners is free.

        Raises EngineError for a page that is not allocated or occurs twice.
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
                raise EngineError(f"KV page {page} is not allocated")
            named.add(page)

    def owners(self, page: int) -> int:
        """Number of owners of a page."""
        return self._owners[page]

    def copy(self, source: int, target: int) -> None:
        """Copy the content of one allocated page to another."""
        with self._lock:
            self._check([source, target])
            self.memory.copy(source, target)

    def read(self, page: int, windowed: bool) -> bytes:
        """The content of an allocated page: the layers with a window (``windowed``), or those without.

        The order of the bytes depends only on ``kv_type`` and the program, not on the pools.
        """
        with self._lock:
            self._check([page])
            return self.memory.read(page, windowed)

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill an allocated page with what ``read`` returned. Raises RequestError if its length is wrong."""
        with self._lock:
            self._check([page])
            self.memory.write(page, data, windowed)

    def close(self) -> None:
        """Free the memory. ``allocate`` raises EngineError from then on."""
        with self._lock:
            self._closed = True
            self.memory.close()
        if self.window_pool is not None:
            self.window_pool.close()

    def first_read(self, position: int) -> int:
        """Index in the block table of the first window page that a token at ``position`` reads."""
        return max(0, position - self.window + 1) // self.page_tokens

    def owns(self, pages: np.ndarray) -> bool:
        """Whether all page ids (integers) are in range and allocated."""
        return bool(((pages >= 0) & (pages < self.n_pages)).all() and self.used[pages].all())
