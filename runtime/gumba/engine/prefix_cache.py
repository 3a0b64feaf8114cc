"""Prefix caching: common prefixes of requests are computed once.

A tree of KV pages, where the path from the root to a node stands for all tokens up to it. A full page is looked up by its exact
tokens, below the node of those before them, and is then shared as it is. The rest may match the beginning of one more page,
which is copied (copy on write), so that the request continues in a page of its own. What a page holds does not depend on how
it was computed, so a hit changes no result.

The cache counts as one owner of each of its pages. When memory is needed, it evicts pages that have no other owner: the least
recently used first, and always the end of a path before its beginning (Kwon et al. 2023, "PagedAttention"; Zheng et al. 2024,
"SGLang").

Where layers with a sliding window have a pool of their own (``KVCache.window_pool``), a node has a page there too, which is
evicted independently, wherever on a path it is: a sequence that continues after a prefix needs only the pages that the window
reaches from there. With recurrent layers, a sequence can continue only at the end of a node that has a checkpoint of the state
(``gumba.engine.state_checkpoints``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from gumba.engine.prefix_tree import CacheKey, Match, Node
from gumba.engine.protocols import KVPool
from gumba.engine.state_checkpoints import StateCheckpoints

#: Maximum number of pages compared with the tokens after the last full match.
MAX_COMPARED = 32
#: Fewer matching tokens than this are not worth the copy of a page.
MIN_COPIED = 4


class PrefixCache:
    """The tree of one model's KV pages. Only the engine's thread may use it.

    Args:
        kv: The pool of pages.
        checkpoints: Checkpoints of recurrent states; None for a model without recurrent layers.
    """

    def __init__(self, kv: KVPool, checkpoints: StateCheckpoints | None = None) -> None:
        self._kv = kv
        self._checkpoints = checkpoints or StateCheckpoints(None, kv.page_tokens)
        self._window_pool = kv.window_pool
        self.root = Node()
        self._nodes: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        # Nodes with a window page: those that requests only passed through, and those where requests ended or continued.
        self._passed: OrderedDict[Node, None] = OrderedDict()
        self._pinned: OrderedDict[Node, None] = OrderedDict()

    @property
    def n_pages(self) -> int:
        """Number of pages in the tree."""
        return len(self._nodes)

    def ends_at(self, node: Node, n_tokens: int) -> bool:
        """Whether a node is in the tree and has ``n_tokens`` tokens."""
        return node in self._nodes and len(node.tokens) == n_tokens

    def evictable(self) -> int:
        """Number of pages without another owner."""
        return sum(self._kv.owners(node.page) == 1 for node in self._nodes)

    def window_evictable(self) -> int:
        """Number of window pages without another owner."""
        pool = self._window_pool
        if pool is None:
            return 0
        return sum(pool.owners(node.window_page) == 1 for node in (*self._passed, *self._pinned))

    def find(self, key: Sequence[int | tuple[int, ...]], limit: int, *, copy: bool = True) -> Match:
        """Longest cached prefix of ``key``, at most ``limit`` tokens; without ``copy``, in full pages only."""
        tokens: CacheKey = tuple(key)
        node, size = self.root, self._kv.page_tokens
        path: list[Node] = []
        while (len(path) + 1) * size <= limit:
            child = node.full.get(tokens[len(path) * size : (len(path) + 1) * size])
            if child is None:
                break
            node = child
            path.append(node)
        n_known = len(path)
        source, n_copied = self._best_partial(path, tokens, limit) if copy else (None, 0)
        if self._checkpoints.needed:
            source, n_copied = self._cut_to_checkpoint(path, tokens, limit if copy else 0)
        elif source is None and self._last_gap(path) > self._first_read(len(path) * size):
            del path[self._n_usable(path) :]
            source, n_copied = self._best_partial(path, tokens, limit) if copy else (None, 0)
        last = path[-1] if path else self.root
        self._touch(last)
        window_pages: list[int] = []
        if self._window_pool is not None:
            first = min(self._first_read(len(path) * size + n_copied), len(path))
            window_pages = [-1] * first + [node.window_page for node in path[first:]]
            for node in path[first:]:
                self._pin(node)
        self._checkpoints.touch(source or last)
        pages, state = [node.page for node in path], (source or last).state
        match = Match(pages, last, window_pages=window_pages, state=state, n_known=n_known)
        if source is None:
            return match
        self._touch(source)
        self._pin(source)
        return replace(match, source=source.page, n_copied=n_copied, window_source=source.window_page)

    def _best_partial(self, path: list[Node], tokens: CacheKey, limit: int) -> tuple[Node | None, int]:
        """The node after ``path`` that shares most of the tokens that follow, and their number."""
        node, size = path[-1] if path else self.root, self._kv.page_tokens
        rest = tokens[len(path) * size : min((len(path) + 1) * size, limit)]
        best, n_copied, gap = None, MIN_COPIED - 1, self._last_gap(path)
        for other in [*node.partial, *islice(reversed(node.full.values()), MAX_COMPARED)]:
            common = _common_length(rest, other.tokens)
            usable = self._window_pool is None or (
                other.window_page >= 0 and self._first_read(len(path) * size + common) >= gap
            )
            if common > n_copied and usable:
                best, n_copied = other, common
        return (best, n_copied) if best is not None else (None, 0)

    def _cut_to_checkpoint(self, path: list[Node], tokens: CacheKey, limit: int) -> tuple[Node | None, int]:
        """Cut ``path`` to the last place with a checkpoint: the end of its last node, or of a partial node after that.

        Returns that partial node, which is copied completely and ends before ``limit`` tokens, and its number of tokens.
        """
        while path:
            source, n_copied = self._partial_with_state(path, tokens, limit)
            complete = self._last_gap(path) <= self._first_read(len(path) * self._kv.page_tokens)
            if source is not None or (path[-1].state >= 0 and complete):
                return source, n_copied
            path.pop()
        return self._partial_with_state(path, tokens, limit)

    def _partial_with_state(self, path: list[Node], tokens: CacheKey, limit: int) -> tuple[Node | None, int]:
        """The longest partial node with a checkpoint whose tokens all follow ``path``, and its number of tokens."""
        node, known, gap = path[-1] if path else self.root, len(path) * self._kv.page_tokens, self._last_gap(path)
        best: Node | None = None
        for partial in node.partial:
            end = known + len(partial.tokens)
            usable = self._window_pool is None or (partial.window_page >= 0 and self._first_read(end) >= gap)
            if partial.state >= 0 and end <= limit and usable and partial.tokens == tokens[known:end]:
                best = max(best or partial, partial, key=lambda node: len(node.tokens))
        return best, len(best.tokens) if best is not None else 0

    def _first_read(self, position: int) -> int:
        """Index of the first window page that a token at ``position`` reads."""
        return 0 if self._window_pool is None else self._kv.first_read(position)

    def _last_gap(self, path: list[Node]) -> int:
        """Number of nodes of ``path`` up to the last one without a window page; 0 if all have one."""
        if self._window_pool is None:
            return 0
        return next((count for count in range(len(path), 0, -1) if path[count - 1].window_page < 0), 0)

    def _n_usable(self, path: list[Node]) -> int:
        """The largest number of nodes of ``path`` after which the window reaches only window pages that exist."""
        n_usable, last_gap = 0, 0
        for count, node in enumerate(path, 1):
            if node.window_page < 0:
                last_gap = count
            if self._first_read(count * self._kv.page_tokens) >= last_gap:
                n_usable = count
        return n_usable

    def add(self, parent: Node, tokens: CacheKey, page: int, window_page: int = -1) -> Node:
        """Add the page that follows ``parent``; returns the node of these tokens, which may have another page already.

        ``window_page``: its page in the window pool, which the node takes if it has none; -1 for none.
        """
        if parent is not self.root and parent not in self._nodes:  # the tree was cleared since: no lookup reaches it
            return Node(tokens, page, parent, window_page)
        node = self._add(parent, tokens, page)
        missing = node.window_page < 0 and len(node.tokens) == len(tokens)
        if self._window_pool is not None and window_page >= 0 and missing:
            # A page has one place in the tree: a partial node that has this one is a prefix of the new node.
            for partial in [partial for partial in parent.partial if partial.window_page == window_page]:
                self._drop(partial)
            self._window_pool.share([window_page])
            node.window_page = window_page
        if node.window_page >= 0 and node not in self._pinned:
            self._passed[node] = None
            self._passed.move_to_end(node)
        return node

    def _add(self, parent: Node, tokens: CacheKey, page: int) -> Node:
        if len(tokens) < self._kv.page_tokens:
            for partial in parent.partial:
                if partial.page == page:
                    if len(tokens) > len(partial.tokens):
                        self._checkpoints.drop(partial)
                        partial.tokens = tokens
                elif partial.tokens[: len(tokens)] != tokens:
                    continue
                self._touch(partial)
                return partial
            while len(parent.partial) >= MAX_COMPARED:
                self._drop(parent.partial[0])
            node = Node(tokens, page, parent)
            parent.partial.append(node)
        else:
            known = parent.full.get(tokens)
            if known is not None:
                self._touch(known)
                return known
            node = parent.full[tokens] = Node(tokens, page, parent)
        self._kv.share([page])
        for partial in [partial for partial in parent.partial if partial.page == page and partial is not node]:
            self._drop(partial)
        self._touch(node)
        return node

    def pin_recent(self, node: Node) -> None:
        """Evict the window pages that a token after ``node`` reads last: a request ended or continues there."""
        if self._window_pool is not None:
            path = [*node.ancestors()][::-1]
            for seen in path[min(self._first_read(len(path) * self._kv.page_tokens), len(path)) :]:
                self._pin(seen)

    def _pin(self, node: Node) -> None:
        if node.window_page >= 0 and (node in self._passed or node in self._pinned):
            self._passed.pop(node, None)
            self._pinned[node] = None
            self._pinned.move_to_end(node)

    def evict(self, n_free: int) -> bool:
        """Evict pages until ``n_free`` are free, least recently used first; False if there are too few."""
        while self._kv.n_free < n_free:
            for node in self._nodes:
                if not node.full and not node.partial and self._kv.owners(node.page) == 1:
                    self._drop(node)
                    break
            else:
                return False
        return True

    def evict_window(self, n_free: int) -> bool:
        """Evict window pages until ``n_free`` are free, those of ``pin_recent`` last; False if there are too few."""
        pool = self._window_pool
        if pool is None or pool.n_free >= n_free:
            return True
        for node in [*self._passed, *self._pinned]:
            if pool.owners(node.window_page) == 1:
                self._drop_window(node)
                if pool.n_free >= n_free:
                    return True
        return False

    def clear(self) -> None:
        """Empty the tree; pages that sequences own stay theirs."""
        for node in list(self._nodes):
            self._kv.release([node.page])
            self._checkpoints.drop(node)
        for node in [*self._passed, *self._pinned]:
            self._drop_window(node)
        self._nodes.clear()
        self.root = Node()

    def _touch(self, node: Node) -> None:
        """Mark a node and all before it as the most recently used; the end of a path counts as older than its beginning."""
        for ancestor in node.ancestors():
            if ancestor in self._nodes:
                self._nodes.move_to_end(ancestor)
            else:
                self._nodes[ancestor] = None

    def _drop(self, node: Node) -> None:
        """Remove a node from the tree, and give up its page, window page and checkpoint."""
        del self._nodes[node]
        parent = node.parent or self.root
        if parent.full.get(node.tokens) is node:
            del parent.full[node.tokens]
        else:
            parent.partial.remove(node)
        self._kv.release([node.page])
        self._checkpoints.drop(node)
        self._drop_window(node)

    def _drop_window(self, node: Node) -> None:
        if self._window_pool is not None and node.window_page >= 0:
            self._passed.pop(node, None)
            self._pinned.pop(node, None)
            self._window_pool.release([node.window_page])
            node.window_page = -1


def _common_length(one: CacheKey, other: CacheKey) -> int:
    """Length of the common prefix."""
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count
