"""Finding pages whose keys and values were computed before: common beginnings of requests are computed once.

A tree of pages: the path from the root spells the tokens. A full page is found by its exact tokens (and all before them), and
then shared as it is; the last stretch may match a page in part, which is then copied (copy on write), so that whoever asks
goes on in a page of its own. What a page holds does not depend on how it was computed, so a hit changes no result.

The cache counts as one owner of each of its pages. Pages that nobody else owns are given up when memory is needed: the one not
used for longest goes first, and always the end of a path before its beginning (Kwon et al. 2023; Zheng et al. 2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

#: Pages that are compared with what comes after the last full match.
LOOK_AT = 32
#: Fewer matching tokens than this are not worth the copy of a page.
LEAST_COPY = 4


class Pages(Protocol):
    """What is needed of ``gumba.kv_cache.KVCache``."""

    @property
    def page_tokens(self) -> int: ...

    @property
    def n_free(self) -> int: ...

    def share(self, pages: list[int], /) -> None: ...

    def release(self, pages: list[int], /) -> None: ...

    def owners(self, page: int, /) -> int: ...


@dataclass(eq=False)
class Node:
    """One page: ``tokens`` follow those of ``parent``; fewer than a page's in a part."""

    tokens: tuple[int, ...] = ()
    page: int = -1
    parent: Node | None = None
    full: dict[tuple[int, ...], Node] = field(default_factory=dict)
    parts: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Match:
    """``pages`` hold the first tokens whole; then ``copied`` more tokens are at the beginning of page ``source``."""

    pages: list[int]
    node: Node
    source: int = -1
    copied: int = 0


class PrefixCache:
    """The tree of one model's pages. For the engine's thread alone."""

    def __init__(self, kv: Pages) -> None:
        self._kv = kv
        self.root = Node()
        self._order: OrderedDict[Node, None] = OrderedDict()  # the least recently used first

    @property
    def n_pages(self) -> int:
        """Pages in the tree."""
        return len(self._order)

    def idle(self) -> int:
        """Pages that nobody else owns."""
        return sum(self._kv.owners(node.page) == 1 for node in self._order)

    def find(self, tokens: Sequence[int], most: int) -> Match:
        """What is there of the beginning of ``tokens``, at most ``most`` tokens."""
        node, size = self.root, self._kv.page_tokens
        pages: list[int] = []
        while (len(pages) + 1) * size <= most:
            following = node.full.get(tuple(tokens[len(pages) * size : (len(pages) + 1) * size]))
            if following is None:
                break
            node = following
            pages.append(node.page)
        self._touch(node)
        rest = tokens[len(pages) * size : min((len(pages) + 1) * size, most)]
        best, copied = node, LEAST_COPY - 1
        for other in [*node.parts, *islice(reversed(node.full.values()), LOOK_AT)]:
            common = _common(rest, other.tokens)
            if common > copied:
                best, copied = other, common
        if best is node:
            return Match(pages, node)
        self._touch(best)
        return Match(pages, node, best.page, copied)

    def add(self, node: Node, tokens: tuple[int, ...], page: int) -> Node:
        """Put the page that follows ``node`` into the tree; the node with these tokens, whose page may be another one."""
        if node is not self.root and node not in self._order:  # the tree was cleared since: nobody will find it
            return Node(tokens, page, node)
        if len(tokens) < self._kv.page_tokens:
            for part in node.parts:
                if part.page == page:
                    part.tokens = max(part.tokens, tokens, key=len)
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

    def reclaim(self, n_free: int) -> bool:
        """Give up pages until ``n_free`` are free; False when there are not enough."""
        while self._kv.n_free < n_free:
            for node in self._order:
                if not node.full and not node.parts and self._kv.owners(node.page) == 1:
                    self._drop(node)
                    break
            else:
                return False
        return True

    def clear(self) -> None:
        """Give up everything; what sequences hold stays theirs."""
        for node in list(self._order):
            self._kv.release([node.page])
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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first numbers are equal."""
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count
