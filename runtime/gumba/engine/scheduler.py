"""Which tokens of which sequences the next step computes, and who holds the KV pages.

Continuous batching: sequences that decode come first with one token each, what is left of the step goes to prompts, a
part at a time. Everything is in order of arrival. A sequence is let in when pages for all its tokens are free; when a
running one needs a page and none is left, the one let in last gives its pages back and waits to be computed again.
The oldest sequence can therefore always go on, and every sequence ends.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from gumba.engine.sequence import Outputs, Sequence
from gumba.errors import ResourceError


class PagePool(Protocol):
    """What the scheduler needs of ``gumba.kv_cache.KVCache``."""

    @property
    def page_tokens(self) -> int: ...

    @property
    def n_pages(self) -> int: ...

    @property
    def n_free(self) -> int: ...

    def allocate(self, n: int, /) -> list[int]: ...

    def release(self, pages: list[int], /) -> None: ...


class Work(NamedTuple):
    """Part of a step: the next ``n_tokens`` tokens of a sequence, and which rows of logits are wanted."""

    sequence: Sequence
    n_tokens: int
    outputs: Outputs


class Scheduler:
    """Fills steps of at most ``max_batch_tokens`` tokens from at most ``max_sequences`` sequences at once."""

    def __init__(self, kv: PagePool, *, max_batch_tokens: int, max_sequences: int) -> None:
        self._kv = kv
        self._max_batch_tokens = max_batch_tokens
        # Each decoding sequence needs a token of every step.
        self._max_running = min(max_sequences, max_batch_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, whatever its state, and free its pages."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._free(sequence)

    def plan(self) -> list[Work]:
        """The next step; empty when no sequence is here.

        A step that was planned but not computed, because it was interrupted, may simply be planned again.
        """
        work: list[Work] = []
        budget = self._max_batch_tokens
        for sequence in [each for each in self._running if each.remaining == 1]:
            if sequence in self._running and self._grow(sequence):
                work.append(Work(sequence, *sequence.share(1)))
                budget -= 1
        for sequence in self._running:
            if budget and sequence.remaining > 1:
                work.append(self._share(sequence, budget))
                budget -= work[-1].n_tokens
        while budget and self._waiting and len(self._running) < self._max_running and self._admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            work.append(self._share(sequence, budget))
            budget -= work[-1].n_tokens
        if not work and self._waiting:
            head = self._waiting[0]
            head.fail(ResourceError(f"{self._pages(head)} KV pages are needed, {self._kv.n_free} are free"))
        return work

    def _share(self, sequence: Sequence, budget: int) -> Work:
        sequence.start()
        return Work(sequence, *sequence.share(budget))

    def _pages(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self._kv.page_tokens)

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence in if its pages are free and leave the running ones a page each to grow into."""
        needed = self._pages(sequence)
        if self._kv.n_free < needed + len(self._running):
            return False
        sequence.pages += self._kv.allocate(needed)
        self._running.append(sequence)
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Make sure of a page for the newest token; False when the sequence had to give way itself."""
        while self._pages(sequence) > len(sequence.pages):
            if self._kv.n_free:
                sequence.pages += self._kv.allocate(1)
                continue
            last = self._running.pop()
            self._free(last)
            last.n_cached = 0
            self._waiting.appendleft(last)
            if last is sequence:
                return False
        return True

    def _free(self, sequence: Sequence) -> None:
        pages, sequence.pages = sequence.pages, []
        if pages:
            self._kv.release(pages)
