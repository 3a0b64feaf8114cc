"""Nodes of the prefix cache's tree of pages, and the match that a lookup returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

#: What identifies a run of tokens in the tree: token ids; at its beginning, the whole source of an encoder-decoder as one entry.
CacheKey: TypeAlias = tuple[int | tuple[int, ...], ...]


@dataclass(eq=False)
class Node:
    """One KV page; the path from the root to it stands for all tokens that its keys and values depend on.

    Attributes:
        tokens: The page's tokens, which follow those of ``parent``; fewer than a full page's for a partial page.
        page: Its page id.
        parent: The node before it; None for the root.
        window_page: Page id in the window pool, -1 for none.
        state: Slot of the recurrent layers' state at its end, -1 for none.
        full: Children with a full page, by their tokens.
        partial: Children with a partial page.
    """

    tokens: CacheKey = ()
    page: int = -1
    parent: Node | None = None
    window_page: int = -1
    state: int = -1
    full: dict[CacheKey, Node] = field(default_factory=dict)
    partial: list[Node] = field(default_factory=list)

    def ancestors(self) -> Iterator[Node]:
        """The node itself and all before it, up to the first page: the root is none."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(frozen=True)
class Match:
    """The longest cached prefix of a sequence: full pages, then the first tokens of one more page, which is to be copied.

    Attributes:
        pages: Ids of the full pages.
        node: The node of the last one, or the root.
        source: Id of the page to copy, -1 for none.
        n_copied: Tokens to take over from ``source``.
        window_pages: Ids in the window pool, one per full page; -1 before the window.
        window_source: The window pool's page to copy, -1 for none.
        state: Slot of the recurrent layers' state after all of these tokens, -1 for none.
        n_known: Full pages in the tree that match, including those that cannot be used.
    """

    pages: list[int]
    node: Node
    source: int = -1
    n_copied: int = 0
    window_pages: list[int] = field(default_factory=list)
    window_source: int = -1
    state: int = -1
    n_known: int = 0
