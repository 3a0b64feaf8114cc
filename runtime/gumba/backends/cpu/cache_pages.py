"""The memory of a pool of KV pages.

16 consecutive pages of one head of one layer are contiguous: a sequence with consecutive page ids is read in long runs, and
pages that no sequence has used yet take no memory. (With all layers of a page contiguous, the stride from page to page of a
small model is 1.4 MB; decoding at a context of 6144 tokens gained nothing from a second thread.) The layout of a page is in
``kv_pages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gumba.backends.cache_shapes import KVShape
from gumba.backends.cpu.kv_pages import PageFormat
from gumba.backends.cpu.program.operation import KVLayout
from gumba.errors import EngineError, RequestError

#: Maximum number of contiguous pages of one head of one layer.
EXTENT_PAGES = 16


def aligned_zeros(n_bytes: int) -> np.ndarray:
    """Zeroed memory, aligned to 64 bytes, which the system allocates page by page when it is first written."""
    whole = np.zeros(n_bytes + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + n_bytes]


class CPUCachePages:
    """The CPU's ``gumba.backends.base.CachePages``. ``layouts``: the layout of each layer's keys and values, in either pool."""

    def __init__(
        self, shapes: Sequence[KVShape], n_pages: int, pages: PageFormat, beside: CPUCachePages | None, window: int
    ) -> None:
        self._windowed = [shape.window > 0 for shape in shapes]
        n_extents = -(-n_pages // EXTENT_PAGES)
        extent_pages = -(-n_pages // n_extents)
        extent_bytes = extent_pages * sum(shape.bytes_per_page(pages) for shape in shapes)
        self.n_bytes = n_extents * extent_bytes
        memory = aligned_zeros(self.n_bytes)
        self._memory: np.ndarray | None = memory
        self.layouts: list[KVLayout] = []
        first = int(memory.ctypes.data)
        for i, shape in enumerate(shapes):
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
            if beside is not None and beside.layouts[i].n_kv_heads:
                layout = replace(beside.layouts[i], window=window)
            self.layouts.append(layout)
            first += shape.n_kv_heads * (k_head + v_head)

    def copy(self, source: int, target: int) -> None:
        """Copy the content of one page to another."""
        for area in self._areas():
            area[target] = area[source]

    def read(self, page: int, windowed: bool) -> bytes:
        """The content of a page: the layers with a sliding window (``windowed``), or those without."""
        return b"".join(area[page].tobytes() for area in self._areas(windowed))

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill a page with what ``read`` returned. Raises RequestError if its length is wrong."""
        areas = self._areas(windowed)
        if len(data) != (total := sum(area.size for area in areas)):
            raise RequestError(f"a KV page of {len(data)} bytes: expected {total}")
        start = 0
        for area in areas:
            part = area[page]
            part[...] = np.frombuffer(data, np.uint8, part.size, start).reshape(part.shape)
            start += part.size

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        self._memory = None

    def _areas(self, windowed: bool | None = None) -> list[_Area]:
        """All keys, then all values, as bytes, each indexed by page; consecutive layers of one shape are one area.

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
                # A layer of the other pool, or of another shape, may lie between them.
                if layouts[at + alike].pages != first.pages + alike * layer:
                    break
                alike += 1
            start = first.pages - int(self._memory.ctypes.data)
            if first.n_kv_heads and first.k_page:
                keys.append(_Area(self._memory, alike, first, start, first.k_head, first.k_page))
            if first.n_kv_heads:
                values.append(_Area(self._memory, alike, first, start + first.v_offset, first.v_head, first.v_page))
            at += alike
        return keys + values


def _shape(layout: KVLayout) -> tuple[int, int, int, str]:
    return layout.n_kv_heads, layout.head_dim, layout.v_dim, layout.kv_type


class _Area:
    """Keys (or values) of consecutive layers: a view, uint8 [n_layers, n_kv_heads, bytes of a page], of each page."""

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
