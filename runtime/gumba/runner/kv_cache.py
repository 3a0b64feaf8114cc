"""The KV cache: a pool of pages, each holding PAGE_TOKENS tokens of one sequence for every layer.

A sequence owns a list of page ids (its block table); position p lies in page ``table[p // 64]``, place ``p % 64``
(vLLM, Kwon et al. 2023). In memory, 16 neighbouring pages of one head of one layer lie one after the other: a sequence whose
pages are neighbours is read in long runs, and what no sequence has come to yet takes no memory. (With all layers of a page
side by side, a small model's step from page to page is 1.4 MB; decoding at a context of 6144 tokens gained nothing from a
second thread.) This module hands pages out and takes them back; ``backends.cpu.kv_pages`` says what lies in a page.

Layers with a sliding window may have a smaller pool of their own, ``window_pool``: there a sequence has pages for what its next
token sees, and releases earlier ones as it advances. Its block table for them is as long as the other, with unused entries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gumba.backends.cpu.kv_pages import PAGE_FORMATS, PAGE_TOKENS, PageFormat
from gumba.backends.cpu.program.builder import KVLayout
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.memory import shortage

#: Pages of one head of one layer that lie one after the other, at most.
EXTENT_PAGES = 16


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps of a token: ``head_dim`` elements of a key and ``v_dim`` of a value for each KV head.

    0 heads: nothing. ``window``: of the tokens before, only those less than so many away are
    read; 0: all.
    """

    n_kv_heads: int
    head_dim: int
    v_dim: int
    window: int = 0

    def bytes_per_page(self, kv_type: str) -> int:
        """Memory of a page in this layer. Raises RequestError for an unknown ``kv_type``."""
        pages = _format(kv_type)
        return self.n_kv_heads * (pages.key_bytes(self.head_dim) + pages.value_bytes(self.v_dim))


NOTHING = KVShape(0, 0, 0)


class KVCache:
    """A pool of ``n_pages`` pages, each with any number of owners.

    ``shapes``: of each layer; ``kv_type``: "f16", "bf16", "f32" or "q8_0"; ``n_window_pages``: pages of ``window_pool``, the pool
    of layers with a window (0: no such pool). ``layouts``: where each layer's keys and values lie, in either pool; ``window``:
    the longest window of ``window_pool``. Raises ResourceError when there is not enough memory.
    """

    def __init__(
        self, shapes: Sequence[KVShape], n_pages: int, kv_type: str = "f16", n_window_pages: int = 0, window: int = 0
    ) -> None:
        _format(kv_type)
        #: Of each layer: whether it has a window, in whichever pool it is; and what its page has, of those with one and without.
        self._windowed = [shape.window > 0 for shape in shapes]
        self.part_bytes = {
            windowed: self.bytes_per_page([shape for shape in shapes if (shape.window > 0) == windowed], kv_type)
            for windowed in (False, True)
        }
        self.longest_window = max((shape.window for shape in shapes), default=0)
        self.window = max((shape.window for shape in shapes), default=0) if n_window_pages else window
        self.window_pool: KVCache | None = None
        if n_window_pages:
            behind = [shape if shape.window else NOTHING for shape in shapes]
            self.window_pool = KVCache(behind, n_window_pages, kv_type, window=self.window)
            shapes = [NOTHING if shape.window else shape for shape in shapes]
        n_extents = -(-n_pages // EXTENT_PAGES)
        extent_pages = -(-n_pages // n_extents)
        self.page_tokens = PAGE_TOKENS
        self.n_pages = n_pages
        self.kv_type = kv_type
        self.page_bytes = self.bytes_per_page(shapes, kv_type)
        extent_bytes = extent_pages * self.page_bytes
        self.n_bytes = n_extents * extent_bytes
        try:
            memory = aligned_zeros(self.n_bytes)
        except MemoryError:
            tokens = n_pages * PAGE_TOKENS
            raise ResourceError(
                f"{shortage(f'a KV cache of {tokens} tokens needs', self.n_bytes)}: choose a smaller one (kv_memory) or a "
                "smaller context (n_ctx)"
            ) from None
        self._memory: np.ndarray | None = memory
        self.layouts: list[KVLayout] = []
        first = int(memory.ctypes.data)
        for shape in shapes:
            pages = _format(kv_type)
            k_page, v_page = pages.key_bytes(shape.head_dim), pages.value_bytes(shape.v_dim)
            k_head, v_head = extent_pages * k_page, extent_pages * v_page
            layout = KVLayout(
                pages=first,
                k_page=k_page,
                v_page=v_page,
                k_head=k_head,
                v_head=v_head,
                v_offset=shape.n_kv_heads * k_head,
                extent_pages=extent_pages,
                extent_bytes=extent_bytes,
                n_kv_heads=shape.n_kv_heads,
                head_dim=shape.head_dim,
                v_dim=shape.v_dim,
                kv_type=pages.name,
            )
            if self.window_pool is not None and self.window_pool.layouts[len(self.layouts)].n_kv_heads:
                layout = replace(self.window_pool.layouts[len(self.layouts)], window=self.window)
            self.layouts.append(layout)
            first += shape.n_kv_heads * (k_head + v_head)
        self._lock = threading.Lock()
        self._free = list(range(n_pages - 1, -1, -1))
        self._owners = [0] * n_pages
        #: Which pages are taken, a byte for each.
        self.used = np.zeros(n_pages, np.bool_)

    @staticmethod
    def bytes_per_page(shapes: Sequence[KVShape], kv_type: str) -> int:
        """Memory of a page, for all layers. Raises RequestError for an unknown ``kv_type``."""
        return sum(shape.bytes_per_page(kv_type) for shape in shapes)

    @property
    def n_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages; all or none. Raises ResourceError when fewer are free."""
        if count < 0:
            raise RequestError(f"{count} pages: expected 0 or more")
        with self._lock:
            if self._memory is None:
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
            for area in self._areas():
                area[target] = area[source]

    def read(self, page: int, windowed: bool) -> bytes:
        """What a taken page of this pool holds of the layers with a window, or of those without.

        The order depends on ``kv_type`` and the program alone, not on the pools.
        """
        with self._lock:
            self._check([page])
            return b"".join(area[page].tobytes() for area in self._areas(windowed))

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill a taken page with what ``read`` gave. Raises RequestError when that has another length."""
        areas = self._areas(windowed)
        if len(data) != (total := sum(area.size for area in areas)):
            raise RequestError(f"a KV page of {len(data)} bytes: expected {total}")
        with self._lock:
            self._check([page])
            start = 0
            for area in areas:
                part = area[page]
                part[...] = np.frombuffer(data, np.uint8, part.size, start).reshape(part.shape)
                start += part.size

    def _areas(self, windowed: bool | None = None) -> list[_Area]:
        """All keys, then all values, as bytes, each indexed by page; layers of one shape that follow each other are one area.

        ``windowed``: only those of layers with a window, or without.
        """
        if self._memory is None:
            raise EngineError("the model is closed")
        keys: list[_Area] = []
        values: list[_Area] = []
        at = 0
        layouts = [
            layout
            for layout, has in zip(self.layouts, self._windowed, strict=True)
            if not layout.window and windowed in (None, has)
        ]
        while at < len(layouts):
            first = layouts[at]
            alike, layer = 1, first.n_kv_heads * (first.k_head + first.v_head)
            while at + alike < len(layouts) and _shape(layouts[at + alike]) == _shape(first):
                if layouts[at + alike].pages != first.pages + alike * layer:  # another one lies between
                    break
                alike += 1
            start = first.pages - int(self._memory.ctypes.data)
            if first.n_kv_heads and first.k_page:
                keys.append(_Area(self._memory, alike, first, start, first.k_head, first.k_page))
            if first.n_kv_heads:
                values.append(_Area(self._memory, alike, first, start + first.v_offset, first.v_head, first.v_page))
            at += alike
        return keys + values

    def close(self) -> None:
        """Let go of the memory; nothing can be allocated any more."""
        with self._lock:
            self._memory = None
        if self.window_pool is not None:
            self.window_pool.close()

    def first_read(self, position: int) -> int:
        """The first page of ``window_pool`` that a sequence's token at ``position`` reads, as an index in its block table."""
        return max(0, position - self.window + 1) // self.page_tokens

    def owns(self, pages: np.ndarray) -> bool:
        """Whether all page ids (integers) are in range and taken."""
        return bool(((pages >= 0) & (pages < self.n_pages)).all() and self.used[pages].all())


def aligned_zeros(n_bytes: int) -> np.ndarray:
    """Zeroed memory at a 64-byte boundary, that the system gives page by page when first touched."""
    whole = np.zeros(n_bytes + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + n_bytes]


def _format(kv_type: object) -> PageFormat:
    formats = PAGE_FORMATS
    if not isinstance(kv_type, str) or kv_type not in formats:
        raise RequestError(f"kv_type {kv_type!r}: expected one of {', '.join(formats)}")
    return formats[kv_type]


def _shape(layout: KVLayout) -> tuple[int, int, int, str]:
    return layout.n_kv_heads, layout.head_dim, layout.v_dim, layout.kv_type


class _Area:
    """Keys (or values) of some layers: bytes [n_layers, n_kv_heads, page] of each page, as a view."""

    def __init__(self, memory: np.ndarray, n_layers: int, at: KVLayout, offset: int, head: int, page: int) -> None:
        self._memory, self._at, self._offset, self._page = memory, at, offset, page
        layer = at.n_kv_heads * (at.k_head + at.v_head)
        self._shape, self._strides = (n_layers, at.n_kv_heads, page), (layer, head, 1)
        self.size = n_layers * at.n_kv_heads * page

    def __getitem__(self, page: int) -> np.ndarray:
        extent, place = divmod(page, self._at.extent_pages)
        start = extent * self._at.extent_bytes + self._offset + place * self._page
        return np.ndarray(self._shape, np.uint8, self._memory.data, start, self._strides)

    def __setitem__(self, page: int, values: np.ndarray) -> None:
        self[page][...] = values
