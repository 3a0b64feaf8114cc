"""KV pages owned outside the scheduler, e.g. while a session file is written or read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gumba.engine.block_manager import BlockManager
from gumba.engine.protocols import StatePool


@dataclass
class PageLease:
    """Pages that hold the first ``n_cached`` tokens of a session.

    Attributes:
        pages: Page ids.
        window_pages: Page ids in the window pool, one per page or fewer; -1 before the window.
        n_cached: Number of tokens.
        state: Slot of the recurrent state after these tokens, -1 for none.
        first_window_page: Index of the first page with keys and values of layers with a window.
    """

    pages: list[int] = field(default_factory=list)
    window_pages: list[int] = field(default_factory=list)
    n_cached: int = 0
    state: int = -1
    first_window_page: int = 0

    @property
    def live_window_pages(self) -> list[int]:
        """Page ids in the window pool, without the places before the window."""
        return [page for page in self.window_pages if page >= 0]


class LeaseManager:
    """Leases the cached pages of a prefix, reads and writes leased pages, and puts them into the cache.

    Args:
        blocks: The block manager of the model's pages.
        states: The pool of recurrent states; None for a model without.
    """

    def __init__(self, blocks: BlockManager, states: StatePool | None) -> None:
        self._kv, self._states = blocks.kv, states
        self._cache, self._checkpoints = blocks.prefix_cache, blocks.checkpoints

    def lease(self, tokens: Sequence[int]) -> PageLease:
        """Lease the pages of the longest cached prefix of ``tokens``.

        With recurrent layers there are none if no state slot is free: without a state, no sequence can continue from them.
        """
        lease, kv = PageLease(), self._kv
        if not self._checkpoints.allocate(lease):
            return lease
        match = self._cache.find(tokens, len(tokens))
        lease.pages, lease.window_pages = match.pages[:], match.window_pages[:]
        lease.n_cached = len(match.pages) * kv.page_tokens + match.n_copied
        self._checkpoints.copy(match.state, lease)
        if match.n_copied:
            lease.pages.append(match.source)
            lease.window_pages += [match.window_source] if kv.window_pool is not None else []
        kv.share(lease.pages)
        if kv.window_pool is not None:
            first = kv.first_read(lease.n_cached)
            lease.first_window_page = min(first, len(lease.window_pages))
            lease.window_pages[:first] = [-1] * lease.first_window_page
            kv.window_pool.share(lease.live_window_pages)
        return lease

    def read_page(self, lease: PageLease, index: int) -> bytes:
        """The content of a leased page: layers without a window, those with one where needed, and at the last page the state."""
        kv = self._kv
        data = kv.read(lease.pages[index], windowed=False)
        if index >= lease.first_window_page:
            if kv.window_pool is None:
                data += kv.read(lease.pages[index], windowed=True)
            else:
                data += kv.window_pool.read(lease.window_pages[index], windowed=True)
        is_last = index == len(lease.pages) - 1
        return data + self._states.read(lease.state) if self._states is not None and is_last else data

    def allocate_page(self) -> int:
        """A page for the caller to own. Raises ResourceError if requests hold all pages."""
        self._cache.evict(1)
        return self._kv.allocate(1)[0]

    def write_page(self, lease: PageLease, data: bytes) -> None:
        """Add a page with what ``read_page`` returned. Raises ResourceError if requests hold all pages."""
        kv, states = self._kv, self._states
        index = len(lease.pages)
        lease.pages.append(self.allocate_page())
        kv.write(lease.pages[-1], data[: kv.part_bytes[False]], windowed=False)
        rest = data[kv.part_bytes[False] :]
        if index >= lease.first_window_page:
            windowed, rest = rest[: kv.part_bytes[True]], rest[kv.part_bytes[True] :]
            if kv.window_pool is None:
                kv.write(lease.pages[-1], windowed, windowed=True)
            elif index >= kv.first_read(lease.n_cached):
                self._cache.evict_window(1)
                lease.window_pages += [-1] * (index - len(lease.window_pages)) + kv.window_pool.allocate(1)
                kv.window_pool.write(lease.window_pages[-1], windowed, windowed=True)
        if states is not None and rest and self._checkpoints.allocate(lease):
            states.write(lease.state, rest, lease.n_cached)

    def cache(self, tokens: Sequence[int], lease: PageLease) -> None:
        """Put the pages of a lease, which hold ``tokens``, into the prefix cache, and end the lease."""
        size = self._kv.page_tokens
        node = self._cache.root
        for i, page in enumerate(lease.pages):
            window_page = lease.window_pages[i] if i < len(lease.window_pages) else -1
            node = self._cache.add(node, tuple(tokens[i * size : (i + 1) * size]), page, window_page)
        if self._cache.ends_at(node, len(tokens) - (len(lease.pages) - 1) * size):
            self._checkpoints.move(lease, node)
        self.release(lease)

    def release(self, lease: PageLease) -> None:
        """End a lease: release its pages and its state slot."""
        self._kv.release(lease.pages)
        if self._kv.window_pool is not None:
            self._kv.window_pool.release(lease.live_window_pages)
        self._checkpoints.free(lease)
        lease.pages, lease.window_pages = [], []
