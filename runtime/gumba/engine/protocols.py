"""What the engine needs of a loaded model: its forward pass, pools of KV pages, recurrent states.

``gumba.runner`` provides all of it; the engine names no concrete class, so that tests run it on a model of a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gumba.backends.chunks import Chunk


class PagePool(Protocol):
    """A pool of KV pages that count their owners."""

    @property
    def page_tokens(self) -> int:
        """Tokens per page."""

    @property
    def n_pages(self) -> int:
        """Pages in all."""

    @property
    def n_free(self) -> int:
        """Pages without an owner."""

    def allocate(self, count: int, /) -> list[int]:
        """Take free pages, all or none. Raises ResourceError if there are fewer."""

    def share(self, pages: list[int], /) -> None:
        """Add one owner to each page."""

    def release(self, pages: list[int], /) -> None:
        """Remove one owner from each page; a page without owners is free."""

    def owners(self, page: int, /) -> int:
        """Number of owners of a page."""

    def copy(self, source: int, target: int, /) -> None:
        """Copy the content of one page to another."""

    def read(self, page: int, /, windowed: bool) -> bytes:
        """The content of a page: of the layers with a sliding window, or of those without."""

    def write(self, page: int, data: bytes, /, windowed: bool) -> None:
        """Fill a page with what ``read`` returned."""


class KVPool(PagePool, Protocol):
    """The KV cache of a model. Layers with a sliding window may have a smaller pool of their own, ``window_pool``."""

    @property
    def window_pool(self) -> PagePool | None:
        """The pool of the layers with a sliding window; None: they have none of their own."""

    @property
    def window(self) -> int:
        """Tokens that the longest window of ``window_pool`` spans."""

    @property
    def part_bytes(self) -> dict[bool, int]:
        """Bytes of a page in the layers with a window (True) and in those without (False)."""

    def first_read(self, position: int, /) -> int:
        """Index in the block table of the first window page that a token at ``position`` reads."""


class StatePool(Protocol):
    """Slots for the states of recurrent layers: one slot holds the state of one sequence after a number of tokens."""

    @property
    def n_slots(self) -> int:
        """Slots in all."""

    @property
    def n_free(self) -> int:
        """Slots that are not allocated."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens that went into the state, by slot."""

    def allocate(self) -> int:
        """Take a free slot. Raises ResourceError if there is none."""

    def release(self, slot: int, /) -> None:
        """Free a slot."""

    def copy(self, source: int, target: int, /) -> None:
        """Copy a state to another slot."""

    def read(self, slot: int, /) -> bytes:
        """The state in a slot."""

    def write(self, slot: int, data: bytes, length: int, /) -> None:
        """Fill a slot with what ``read`` returned: the state after ``length`` tokens."""


class Runner(Protocol):
    """A loaded model: ``gumba.runner.model.Model``."""

    @property
    def kv(self) -> KVPool:
        """The KV cache."""

    @property
    def states(self) -> StatePool | None:
        """The states of recurrent layers; None for a model without."""

    @property
    def n_ctx(self) -> int:
        """Context length of one sequence, in tokens."""

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens in one step."""

    @property
    def hidden(self) -> NDArray[np.float32]:
        """Final hidden states of the last step, float32 [rows, n_embd], in the order of its logits."""

    def forward(self, chunks: Sequence[Chunk], /) -> NDArray[np.float32]:
        """Compute one step: logits, float32 [rows, n_vocab], valid until the next step."""

    def close(self) -> None:
        """Free the model."""
