"""Finding pages whose keys and values were computed before: common beginnings of requests are computed once.

A tree of pages: the path from the root spells the tokens. A full page is found by its exact tokens (and all before them), and
then shared as it is; the last stretch may match a page in part, which is then copied (copy on write), so that whoever asks
goes on in a page of its own. What a page holds does not depend on how it was computed, so a hit changes no result.

The cache counts as one owner of each of its pages. Pages that nobody else owns are given up when memory is needed: the one not
used for longest goes first, and always the end of a path before its beginning (Kwon et al. 2023; Zheng et al. 2024).

Where layers with a window have a pool of their own (``KVCache.window_pool``), a node has a page there too, evicted by itself,
wherever on a path it is: a sequence that continues from some place needs only the pages that the window reaches from there. With
recurrent layers, a sequence can continue only at the end of a node that has a state (``gumba.engine.state_checkpoints``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from gumba.engine.state_checkpoints import Checkpoints

#: Pages that are compared with what comes after the last full match.
LOOK_AT = 32
#: Fewer matching tokens than this are not worth the copy of a page.
LEAST_COPY = 4


class Pages(Protocol):
    """What is needed of ``gumba.runner.kv_cache.KVCache``."""

    @property
    def page_tokens(self) -> int: ...

    @property
    def n_free(self) -> int: ...

    def share(self, pages: list[int], /) -> None: ...

    def release(self, pages: list[int], /) -> None: ...

    def owners(self, page: int, /) -> int: ...

    @property
    def window_pool(self) -> Any:
        """``Pages`` for layers with a window; None: they have no pool of their own."""

    def first_read(self, position: int, /) -> int: ...


@dataclass(eq=False)
class Node:
    """One page: ``tokens`` follow those of ``parent``; fewer than a page's in a part.

    ``window_page``: the page for layers with a window; ``state``: the slot of the recurrent layers' state at its end; -1: none.
    """

    tokens: tuple[Any, ...] = ()
    page: int = -1
    parent: Node | None = None
    window_page: int = -1
    state: int = -1
    full: dict[tuple[Any, ...], Node] = field(default_factory=dict)
    parts: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Match:
    """``pages`` hold the first tokens whole; then ``copied`` more tokens are at the beginning of page ``source``.

    ``window_pages``, ``window_source``: the same for layers with a window; -1 where the window does not reach. ``state``: the
    slot of the recurrent layers' state after all that, -1 for none; ``n_known``: how many pages of the tree begin alike,
    whatever of use.
    """

    pages: list[int]
    node: Node
    source: int = -1
    copied: int = 0
    window_pages: list[int] = field(default_factory=list)
    window_source: int = -1
    state: int = -1
    n_known: int = 0


class PrefixCache:
    """The tree of one model's pages. For the engine's thread alone. ``checkpoints``: of a model with recurrent layers."""

    def __init__(self, kv: Pages, checkpoints: Checkpoints | None = None) -> None:
        self._kv = kv
        self._checkpoints = checkpoints or Checkpoints(None, kv.page_tokens)
        self._window_pool: Pages | None = kv.window_pool
        self.root = Node()
        self._order: OrderedDict[Node, None] = OrderedDict()  # the least recently used first
        # Of nodes with a page there: those that somebody has only passed by, and those where requests ended or went on.
        self._passed: OrderedDict[Node, None] = OrderedDict()
        self._pinned: OrderedDict[Node, None] = OrderedDict()

    @property
    def n_pages(self) -> int:
        """Pages in the tree."""
        return len(self._order)

    def ends_at(self, node: Node, n_tokens: int) -> bool:
        """Whether a node is in the tree, and stands for so many tokens."""
        return node in self._order and len(node.tokens) == n_tokens

    def evictable(self) -> int:
        """Pages that nobody else owns."""
        return sum(self._kv.owners(node.page) == 1 for node in self._order)

    def window_evictable(self) -> int:
        """As ``evictable``, of the pages for layers with a window."""
        window_pool = self._window_pool
        return (
            0
            if window_pool is None
            else sum(window_pool.owners(node.window_page) == 1 for node in (*self._passed, *self._pinned))
        )

    def find(self, tokens: Sequence[Any], most: int, *, copy: bool = True) -> Match:
        """What is there of the beginning of ``tokens``, at most ``most`` tokens; without ``copy``, in full pages only."""
        node, size = self.root, self._kv.page_tokens
        path: list[Node] = []
        while (len(path) + 1) * size <= most:
            following = node.full.get(tuple(tokens[len(path) * size : (len(path) + 1) * size]))
            if following is None:
                break
            node = following
            path.append(node)
        n_known = len(path)
        source, copied = self._part(path, tokens, most) if copy else (None, 0)
        if self._checkpoints.needed:
            source, copied = self._cut_to_state(path, tokens, most if copy else 0)
        elif source is None and self._gap(path) > self._first_read(len(path) * size):
            del path[self._complete(path) :]
            source, copied = self._part(path, tokens, most) if copy else (None, 0)
        self._touch(path[-1] if path else self.root)
        window_pages: list[int] = []
        if self._window_pool is not None:
            first = min(self._first_read(len(path) * size + copied), len(path))
            window_pages = [-1] * first + [each.window_page for each in path[first:]]
            for each in path[first:]:
                self._pin(each)
        last = path[-1] if path else self.root
        self._checkpoints.use(source or last)
        found = Match(
            [each.page for each in path], last, window_pages=window_pages, state=(source or last).state, n_known=n_known
        )
        if source is None:
            return found
        self._touch(source)
        self._pin(source)
        return replace(found, source=source.page, copied=copied, window_source=source.window_page)

    def _part(self, path: list[Node], tokens: Sequence[int], most: int) -> tuple[Node | None, int]:
        """The page that has most of what follows ``path``, and how many tokens."""
        node, size = path[-1] if path else self.root, self._kv.page_tokens
        rest = tokens[len(path) * size : min((len(path) + 1) * size, most)]
        best, copied, gap = None, LEAST_COPY - 1, self._gap(path)
        for other in [*node.parts, *islice(reversed(node.full.values()), LOOK_AT)]:
            common = _common(rest, other.tokens)
            seen = self._window_pool is None or (
                other.window_page >= 0 and self._first_read(len(path) * size + common) >= gap
            )
            if common > copied and seen:
                best, copied = other, common
        return (best, copied) if best is not None else (None, 0)

    def _cut_to_state(self, path: list[Node], tokens: Sequence[int], most: int) -> tuple[Node | None, int]:
        """Cut ``path`` to where the state is there: at the end of its last node, or of a part that follows, and of its tokens.

        A part is copied whole, and ends before ``most`` tokens.
        """
        while path:
            source, copied = self._part_with_state(path, tokens, most)
            complete = self._gap(path) <= self._first_read(len(path) * self._kv.page_tokens)
            if source is not None or (path[-1].state >= 0 and complete):
                return source, copied
            path.pop()
        return self._part_with_state(path, tokens, most)

    def _part_with_state(self, path: list[Node], tokens: Sequence[int], most: int) -> tuple[Node | None, int]:
        """The longest part with a state of which all follows ``path``, and its tokens."""
        node, known, gap = path[-1] if path else self.root, len(path) * self._kv.page_tokens, self._gap(path)
        best: Node | None = None
        for part in node.parts:
            end = known + len(part.tokens)
            seen = self._window_pool is None or (part.window_page >= 0 and self._first_read(end) >= gap)
            if part.state >= 0 and end <= most and seen and part.tokens == tuple(tokens[known:end]):
                best = max(best or part, part, key=lambda each: len(each.tokens))
        return best, len(best.tokens) if best is not None else 0

    def _first_read(self, position: int) -> int:
        """The first page that must be there for layers with a window."""
        return 0 if self._window_pool is None else self._kv.first_read(position)

    def _gap(self, path: list[Node]) -> int:
        """After how many nodes of ``path`` the last page for layers with a window is missing; 0: none is."""
        if self._window_pool is None:
            return 0
        return next((count for count in range(len(path), 0, -1) if path[count - 1].window_page < 0), 0)

    def _complete(self, path: list[Node]) -> int:
        """The largest number of nodes of ``path`` after which all that windows reach is there."""
        found, last_gap = 0, 0
        for count, node in enumerate(path, 1):
            if node.window_page < 0:
                last_gap = count
            if self._first_read(count * self._kv.page_tokens) >= last_gap:
                found = count
        return found

    def add(self, node: Node, tokens: tuple[Any, ...], page: int, window_page: int = -1) -> Node:
        """Put the page that follows ``node`` into the tree; the node with these tokens, whose page may be another one.

        ``window_page``: the page for layers with a window, if there is one; it fills a gap.
        """
        if node is not self.root and node not in self._order:  # the tree was cleared since: nobody will find it
            return Node(tokens, page, node, window_page)
        made = self._add(node, tokens, page)
        if (
            self._window_pool is not None
            and window_page >= 0
            and made.window_page < 0
            and len(made.tokens) == len(tokens)
        ):
            # A page has one place in the tree. A part that has this one is the beginning of what was found.
            for part in [part for part in node.parts if part.window_page == window_page]:
                self._drop(part)
            self._window_pool.share([window_page])
            made.window_page = window_page
        if made.window_page >= 0 and made not in self._pinned:
            self._passed[made] = None
            self._passed.move_to_end(made)
        return made

    def pin_recent(self, node: Node) -> None:
        """Note that a request ended after ``node`` or goes on from there: what windows reach of its path goes last."""
        if self._window_pool is not None:
            path = [*self.path(node)][::-1]
            for each in path[min(self._first_read(len(path) * self._kv.page_tokens), len(path)) :]:
                self._pin(each)

    def _pin(self, node: Node) -> None:
        if node.window_page >= 0 and (node in self._passed or node in self._pinned):
            self._passed.pop(node, None)
            self._pinned[node] = None
            self._pinned.move_to_end(node)

    def _add(self, node: Node, tokens: tuple[int, ...], page: int) -> Node:
        if len(tokens) < self._kv.page_tokens:
            for part in node.parts:
                if part.page == page:
                    if len(tokens) > len(part.tokens):
                        self._checkpoints.drop(part)
                        part.tokens = tokens
                elif part.tokens[: len(tokens)] != tokens:
                    continue
                self._touch(part)
                return part
            while len(node.parts) >= LOOK_AT:
                self._drop(node.parts[0])
            made = Node(tokens, page, node)
            node.parts.append(made)
        else:
            found = node.full.get(tokens)
            if found is not None:
                self._touch(found)
                return found
            made = node.full[tokens] = Node(tokens, page, node)
        self._kv.share([page])
        for part in [part for part in node.parts if part.page == page and part is not made]:
            self._drop(part)
        self._touch(made)
        return made

    def evict(self, n_free: int) -> bool:
        """Give up pages until ``n_free`` are free; False when there are not enough."""
        while self._kv.n_free < n_free:
            for node in self._order:
                if not node.full and not node.parts and self._kv.owners(node.page) == 1:
                    self._drop(node)
                    break
            else:
                return False
        return True

    def evict_window(self, n_free: int) -> bool:
        """Give up pages for layers with a window until ``n_free`` are free; False when there are not enough."""
        window_pool = self._window_pool
        if window_pool is None or window_pool.n_free >= n_free:
            return True
        for node in [*self._passed, *self._pinned]:
            if window_pool.owners(node.window_page) == 1:
                self._drop_window(node)
                if window_pool.n_free >= n_free:
                    return True
        return False

    def clear(self) -> None:
        """Give up everything; what sequences hold stays theirs."""
        for node in list(self._order):
            self._kv.release([node.page])
            self._checkpoints.drop(node)
        for node in [*self._passed, *self._pinned]:
            self._drop_window(node)
        self._order.clear()
        self.root = Node()

    def path(self, node: Node) -> Iterator[Node]:
        """From ``node`` up to the first page."""
        while node.parent is not None:
            yield node
            node = node.parent

    def _touch(self, node: Node) -> None:
        """Note that a page is in use, and so are all before it; the end of a path counts as older than its beginning."""
        for each in self.path(node):
            if each in self._order:
                self._order.move_to_end(each)
            else:
                self._order[each] = None

    def _drop(self, node: Node) -> None:
        del self._order[node]
        parent = node.parent or self.root
        if parent.full.get(node.tokens) is node:
            del parent.full[node.tokens]
        else:
            parent.parts.remove(node)
        self._kv.release([node.page])
        self._checkpoints.drop(node)
        self._drop_window(node)

    def _drop_window(self, node: Node) -> None:
        if self._window_pool is not None and node.window_page >= 0:
            self._passed.pop(node, None)
            self._pinned.pop(node, None)
            self._window_pool.release([node.window_page])
            node.window_page = -1


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first numbers are equal."""
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count
