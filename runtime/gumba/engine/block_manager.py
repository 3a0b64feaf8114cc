"""Block tables: which sequence owns which KV pages and which slot for its recurrent state (paged attention, Kwon et al. 2023).

Pages come from the pool of the KV cache and, if layers with a sliding window have a pool of their own, from its window pool.
There a sequence owns pages only for the tokens that its next token attends to; it releases the others as the window moves.
Full pages go into the prefix cache, which keeps them for other sequences until the memory is needed.
"""

from __future__ import annotations

from gumba.engine.prefix_cache import PrefixCache
from gumba.engine.prefix_tree import Match, Node
from gumba.engine.protocols import KVPool, PagePool, StatePool
from gumba.engine.sequence import Sequence
from gumba.engine.state_checkpoints import StateCheckpoints


class BlockManager:
    """Gives pages and state slots to sequences, evicting cached ones if need be.

    Args:
        kv: The KV cache's pool of pages.
        max_batch_tokens: Maximum number of tokens in one step.
        states: The pool of recurrent states; None for a model without.
    """

    def __init__(self, kv: KVPool, *, max_batch_tokens: int, states: StatePool | None = None) -> None:
        self.kv = kv
        self.window_pool = kv.window_pool
        self.checkpoints = StateCheckpoints(states, kv.page_tokens)
        self.prefix_cache = PrefixCache(kv, self.checkpoints)
        #: Maximum number of window pages that a sequence needs at once.
        self._max_window_pages = -(-(kv.window + max_batch_tokens) // kv.page_tokens) + 1

    def n_pages(self, sequence: Sequence) -> int:
        """Number of pages for all tokens of a sequence."""
        return -(-len(sequence.tokens) // self.kv.page_tokens)

    def spare_tokens(self, sequence: Sequence) -> int:
        """Number of further tokens that fit into a sequence's pages and one free page, without evicting any."""
        n_pages = len(sequence.pages) + min(self.kv.n_free, 1)
        if self.window_pool is not None:
            n_pages = min(n_pages, len(sequence.window_pages) + min(self.window_pool.n_free, 1))
        return n_pages * self.kv.page_tokens - len(sequence.tokens)

    def extend(self, sequence: Sequence, end: int) -> None:
        """Allocate pages for the tokens up to ``end``. Raises ResourceError if they are not free."""
        n_pages = -(-end // self.kv.page_tokens)
        missing = n_pages - len(sequence.pages)
        if missing > 0:
            sequence.pages += self.kv.allocate(missing)
        if self.window_pool is not None:
            missing = n_pages - len(sequence.window_pages)
            if missing > 0:
                sequence.window_pages += self.window_pool.allocate(missing)

    def grow(self, sequence: Sequence) -> bool:
        """Allocate the pages that a sequence's tokens lack; False if one is lacking and none can be evicted."""
        n_pages = self.n_pages(sequence)
        while n_pages > len(sequence.pages):
            if not self.prefix_cache.evict(1):
                return False
            sequence.pages += self.kv.allocate(1)
        while self.window_pool is not None and n_pages > len(sequence.window_pages):
            if not self.prefix_cache.evict_window(1):
                return False
            self.extend(sequence, len(sequence.tokens))
        return True

    def grow_window(self, sequence: Sequence, end: int) -> bool:
        """Allocate window pages for the tokens up to ``end``; False if too few can be evicted."""
        if self.window_pool is None:
            return True
        missing = -(-end // self.kv.page_tokens) - len(sequence.window_pages)
        if not self.prefix_cache.evict_window(missing):
            return False
        sequence.window_pages += self.window_pool.allocate(max(0, missing))
        return True

    def admit(self, sequence: Sequence, n_running: int) -> bool:
        """Give a waiting sequence pages for all its tokens and a state slot, starting from its longest cached prefix.

        False if there are too few: each of the ``n_running`` running sequences must be left a page to grow into.
        """
        limit = min(len(sequence.tokens) - 1, sequence.max_cached) if sequence.uses_prefix_cache else 0
        if not self.checkpoints.allocate(sequence):
            return False
        key, size = sequence.cache_key(0, len(sequence.tokens)), self.kv.page_tokens
        match = self.prefix_cache.find(key, limit)
        if len(match.pages) * size + match.n_copied < sequence.n_source:
            match = self.prefix_cache.find((), 0)  # a cached part of a source cannot be reused
        if self._start_from(match, sequence, n_running):
            return True
        # The page to copy may be one of those that have to be evicted.
        limit = limit if len(match.pages) * size >= sequence.n_source else 0
        if match.n_copied:
            match = self.prefix_cache.find(key, limit, copy=False)
            if self._start_from(match, sequence, n_running):
                return True
        self.checkpoints.free(sequence)
        return False

    def _start_from(self, match: Match, sequence: Sequence, n_running: int) -> bool:
        """Give a sequence the pages of ``match``, a copy of the last one, and new pages for the rest; False if too few."""
        kv, window_pool = self.kv, self.window_pool
        source = [match.source] if match.n_copied else []
        window_source = [match.window_source] if source else []
        window_pages = [page for page in match.window_pages if page >= 0]
        kv.share(match.pages + source)  # so that they are not evicted
        if window_pool is not None:
            window_pool.share(window_pages + window_source)
        n_full = len(match.pages)
        started = self._evict_for(sequence, match, n_running)
        if started:
            sequence.pages = match.pages + kv.allocate(self.n_pages(sequence) - n_full)
            sequence.window_pages = match.window_pages[:]
            sequence.n_cached = n_full * kv.page_tokens + match.n_copied
            sequence.prefix_node, sequence.n_prefix_pages = match.node, n_full
            sequence.divergence = match.n_known * kv.page_tokens
            self.checkpoints.copy(match.state, sequence)
            if source:
                kv.copy(match.source, sequence.pages[n_full])
            if source and window_pool is not None:
                sequence.window_pages += window_pool.allocate(1)
                window_pool.copy(match.window_source, sequence.window_pages[n_full])
            if not sequence.started:
                sequence.n_reused = sequence.n_cached
        kv.release(source if started else match.pages + source)
        if window_pool is not None:
            window_pool.release(window_source if started else window_pages + window_source)
        return started

    def _evict_for(self, sequence: Sequence, match: Match, n_running: int) -> bool:
        """Evict pages for a sequence that starts from ``match``, and one for each running one; False if too few."""
        if not self.prefix_cache.evict(self.n_pages(sequence) - len(match.pages) + n_running):
            return False
        present = sum(page >= 0 for page in match.window_pages)
        needed = min(self.n_pages(sequence) - len(match.window_pages) + present, self._max_window_pages)
        return self.prefix_cache.evict_window(needed - present + n_running)

    def hand_over(self, parent: Sequence, child: Sequence) -> None:
        """Move all pages and the state slot of ``parent`` to ``child``, whose tokens begin with the parent's."""
        child.pages, parent.pages = parent.pages, []
        child.window_pages, parent.window_pages = parent.window_pages, []
        child.state, parent.state = parent.state, -1
        self._continue_at(parent, child)

    def evict_for_copy(self, parent: Sequence) -> bool:
        """Free the page that a copy of ``parent`` needs for its last, partial page; False if none can be evicted."""
        partial = parent.n_cached % self.kv.page_tokens
        return not partial or (self.prefix_cache.evict(1) and self.prefix_cache.evict_window(1))

    def copy(self, original: Sequence, child: Sequence) -> bool:
        """Give ``child`` the full pages of ``original``, a copy of its last, partial page, and a copy of its state.

        False if there is no free state slot; a page must be free (``evict_for_copy``).
        """
        if not self.checkpoints.allocate(child):
            return False
        n_full, partial = divmod(original.n_cached, self.kv.page_tokens)
        count = n_full + bool(partial)
        child.pages = _copied(self.kv, original.pages[:count], bool(partial))
        if self.window_pool is not None:
            child.window_pages = _copied(self.window_pool, original.window_pages[:count], bool(partial))
        self.checkpoints.copy(original.state, child)
        self._continue_at(original, child)
        return True

    def _continue_at(self, parent: Sequence, child: Sequence) -> None:
        child.n_cached, child.prefix_node = parent.n_cached, parent.prefix_node
        child.n_prefix_pages = parent.n_prefix_pages

    def on_computed(self, sequence: Sequence) -> None:
        """After a step: cache the sequence's full pages, make a checkpoint if one is due, release pages before the window."""
        self.checkpoints.roll_back(sequence)
        node = self._cache_pages(sequence, partial=sequence.n_cached == sequence.n_prompt)
        if node is not None and self.checkpoints.due(sequence):
            self.checkpoints.add(node, sequence)
        if self.window_pool is not None:
            first = min(self.kv.first_read(sequence.n_cached), len(sequence.window_pages))
            self.window_pool.release([page for page in sequence.window_pages[:first] if page >= 0])
            sequence.window_pages[:first] = [-1] * first

    def retain(self, sequence: Sequence, *, partial: bool) -> None:
        """Cache the pages and the state of a sequence that is about to lose them; with ``partial``, the last page too."""
        node = self._cache_pages(sequence, partial=partial)
        if node is not None:
            self.checkpoints.move(sequence, node)

    def _cache_pages(self, sequence: Sequence, *, partial: bool) -> Node | None:
        """Put a sequence's full pages into the prefix cache; with ``partial``, the last, partial page too.

        Returns the node that ends where the sequence does, None if there is none.
        """
        if not sequence.uses_prefix_cache or not sequence.pages or sequence.shifted:
            return None
        cache, size = self.prefix_cache, self.kv.page_tokens
        node = sequence.prefix_node if sequence.prefix_node is not None else cache.root
        while (sequence.n_prefix_pages + 1) * size <= sequence.n_cached:
            at = sequence.n_prefix_pages
            window_page = -1 if self.window_pool is None else sequence.window_pages[at]
            node = cache.add(node, sequence.cache_key(at * size, (at + 1) * size), sequence.pages[at], window_page)
            # If another sequence computed the same page, one of the two is enough.
            _exchange(self.kv, sequence.pages, at, node.page)
            if self.window_pool is not None:
                _exchange(self.window_pool, sequence.window_pages, at, node.window_page)
            sequence.n_prefix_pages += 1
        sequence.prefix_node = node
        rest = sequence.cache_key(sequence.n_prefix_pages * size, sequence.n_cached)
        if partial and rest:
            at = sequence.n_prefix_pages
            window_page = -1 if self.window_pool is None else sequence.window_pages[at]
            node = cache.add(node, rest, sequence.pages[at], window_page)
        if partial:
            cache.pin_recent(node)
        return node if (partial or not rest) and cache.ends_at(node, len(rest) or size) else None

    def free(self, sequence: Sequence) -> None:
        """Release all pages and state slots of a sequence, which goes back to ``n_cached = 0``."""
        pages, sequence.pages = sequence.pages, []
        window_pages, sequence.window_pages = [page for page in sequence.window_pages if page >= 0], []
        sequence.n_cached, sequence.prefix_node, sequence.n_prefix_pages = 0, None, 0
        self.checkpoints.free(sequence)
        self.checkpoints.free_backup(sequence)
        if pages:
            self.kv.release(pages)
        if window_pages and self.window_pool is not None:
            self.window_pool.release(window_pages)

    def leased(self) -> bool:
        """Whether pages belong neither to the cache nor, while none is running, to a sequence: a lease holds them."""
        pool, cache = self.window_pool, self.prefix_cache
        if pool is not None and pool.n_free + cache.window_evictable() < pool.n_pages:
            return True
        return self.kv.n_free + cache.evictable() < self.kv.n_pages


def _copied(pool: PagePool, pages: list[int], partial: bool) -> list[int]:
    """Pages for one more owner: the same ones, but a copy of the last one if it is ``partial``."""
    shared = pages[:-1] if partial else pages
    pool.share([page for page in shared if page >= 0])
    if not partial:
        return shared[:]
    (copy,) = pool.allocate(1)
    pool.copy(pages[-1], copy)
    return [*shared, copy]


def _exchange(pool: PagePool, pages: list[int], at: int, other: int) -> None:
    """Own page ``other`` in place of ``pages[at]``, if both are pages."""
    if other >= 0 and pages[at] >= 0 and pages[at] != other:
        pool.share([other])
        pool.release([pages[at]])
        pages[at] = other
