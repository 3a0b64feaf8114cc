"""Which tokens of which sequences the next step computes, and who holds the KV pages.

Continuous batching (Yu et al. 2022, "Orca"): sequences that decode come first, with a token each and what they guess of the
next ones; what is left of the step goes to prompts, a part at a time (Agrawal et al. 2024, "Sarathi-Serve"). While somebody's
answer is streaming, that part is kept so small that the step takes STEP_SECONDS. Everything is in order of priority, then of
arrival. A sequence is let in when pages for all its tokens are there; when a running one needs a page and none is left, the
last in that order gives its pages back and waits to be computed again (what the prefix cache still has of it, is taken from
there). The first in order can therefore always go on, and every sequence ends. Sequences of one request that wait for each
other (``held``) stay where they are as long as there is room; else they make way for the others of the request.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Ordered
from operator import attrgetter
from typing import NamedTuple, Protocol

from gumba.engine.prefix_cache import Match, Node, Pages, PrefixCache
from gumba.engine.sequence import Outputs, Sequence
from gumba.engine.state_checkpoints import Checkpoints, StatePool
from gumba.errors import ResourceError

#: What a step that holds up streams aims at, in seconds, and the least part of a prompt that it takes.
STEP_SECONDS = 0.06
LEAST_PROMPT_PART = 16
#: Prompt tokens of the first such step, before any was measured.
FIRST_PROMPT_PART = 32
#: Sequences decode with guessed tokens while no more than this many decode: beyond, a step is bound by arithmetic.
GUESSING_SEQUENCES = 8

_rank = attrgetter("rank")


class PagePool(Pages, Protocol):
    """What the scheduler needs of ``gumba.runner.kv_cache.KVCache``."""

    @property
    def n_pages(self) -> int: ...

    @property
    def part_bytes(self) -> dict[bool, int]: ...

    def allocate(self, n: int, /) -> list[int]: ...

    def copy(self, source: int, target: int, /) -> None: ...

    def read(self, page: int, /, windowed: bool) -> bytes: ...

    def write(self, page: int, data: bytes, /, windowed: bool) -> None: ...

    @property
    def window(self) -> int: ...


class ScheduledChunk(NamedTuple):
    """Part of a step: tokens of a sequence from ``n_cached`` on, and which rows of logits are wanted."""

    sequence: Sequence
    tokens: list[int]
    outputs: Outputs


class Scheduler:
    """Fills steps of at most ``max_batch_tokens`` tokens from at most ``max_sequences`` sequences at once."""

    def __init__(
        self, kv: PagePool, *, max_batch_tokens: int, max_sequences: int, states: StatePool | None = None
    ) -> None:
        self._kv = kv
        self._window_pool = kv.window_pool
        self._max_batch_tokens = max_batch_tokens
        #: Pages that a sequence has at most in layers with a window.
        self._max_window_pages = -(-(kv.window + max_batch_tokens) // kv.page_tokens) + 1
        # Each decoding sequence needs a token of every step.
        self._max_running = min(max_sequences, max_batch_tokens)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._arrivals = 0
        self._decode_s = 0.0  # of a step without prompts
        self._prompt_s: float | None = None  # of a prompt's token in a step
        self._prompt_tokens, self._decoding = 0, False  # of the step planned last
        self._mixed_tokens = 0  # of prompts, if streams waited for them
        self.checkpoints = Checkpoints(states, kv.page_tokens)
        self.cache = PrefixCache(kv, self.checkpoints)
        #: Whether nothing can go on before somebody outside gives pages back. To be unset by whoever may have changed that.
        self.stuck = False

    @property
    def n_waiting(self) -> int:
        """Sequences that have not been let in."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._arrivals += 1
        sequence.rank = (sequence.priority, self._arrivals)
        insort(self._waiting, sequence, key=_rank)

    def fork(self, parent: Sequence, children: Ordered[Sequence]) -> None:
        """Let ``children``, which begin with the same tokens, run in the place of ``parent``, with its pages.

        The first one takes them over; the others share the full ones and copy the begun one. Those for which there is no room,
        and all when the parent has no pages itself, wait to be computed again. ``parent`` is to be forgotten.
        """
        whole, begun = divmod(parent.n_cached, self._kv.page_tokens)
        room = 0
        if parent in self._running:
            self._running.remove(parent)
            room = self._max_running - len(self._running)
        elif parent in self._waiting:
            self._waiting.remove(parent)
        for index, child in enumerate(children):
            child.rank = parent.rank
            full = index and begun and not (self.cache.evict(1) and self.cache.evict_window(1))
            if index >= room or full or (index and not self.checkpoints.take(child)):
                insort(self._waiting, child, key=_rank)
                continue
            child.pages, child.window_pages = parent.pages, parent.window_pages
            if index:
                child.pages = self._copied(self._kv, parent.pages[: whole + bool(begun)], begun)
                if self._window_pool is not None:
                    child.window_pages = self._copied(
                        self._window_pool, parent.window_pages[: whole + bool(begun)], begun
                    )
                self.checkpoints.copy(children[0].state, child)
            else:
                child.state, parent.state = parent.state, -1
            child.n_cached, child.node, child.n_kept = parent.n_cached, parent.node, parent.n_kept
            insort(self._running, child, key=_rank)
        if room and children:
            parent.pages, parent.window_pages = [], []
        self._free(parent)

    def _copied(self, pool: PagePool, pages: list[int], begun: int) -> list[int]:
        """Pages for another owner: the same, but the last one copied if it is ``begun``."""
        shared = pages[:-1] if begun else pages
        pool.share([page for page in shared if page >= 0])
        if not begun:
            return shared[:]
        (own,) = pool.allocate(1)
        pool.copy(pages[-1], own)
        return [*shared, own]

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, whatever its state; its pages are kept for others as long as there is room."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._leave(sequence, whole=True)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._free(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """The next step; empty when no sequence is here that can go on.

        A step that was planned but not computed may simply be planned again.
        """
        work: list[ScheduledChunk] = []
        budget, streaming = self._max_batch_tokens, False
        self._decoding = False
        ready = [each for each in self._running if each.remaining == 1]
        guessing = len(ready) <= GUESSING_SEQUENCES
        for index, sequence in enumerate(ready):
            if sequence in self._running and self._grow(sequence):
                spare = budget - (len(ready) - index) if guessing and self.checkpoints.may_guess(sequence) else 0
                tokens, outputs = sequence.next_tokens(1 + max(0, min(spare, self._room(sequence))))
                self._extend(sequence, sequence.n_cached + len(tokens))
                if len(tokens) > 1:
                    self.checkpoints.back_up(sequence)
                budget -= len(tokens)
                self._decoding, streaming = True, streaming or sequence.streaming
                work.append(ScheduledChunk(sequence, tokens, outputs))
        room = budget
        if streaming:
            budget = min(budget, self._prompt_part())
        before = budget
        for sequence in self._running[:]:
            if sequence not in self._running:  # it gave way
                continue
            if (
                budget > 0
                and sequence.remaining > 1
                and sequence.min_step_tokens <= (room if budget == before else budget)
            ):
                budget -= self._take(work, sequence, budget)
        for sequence in self._waiting[:]:
            if budget <= 0:
                break
            if sequence.waiting_on_group:
                continue
            if sequence.min_step_tokens > (room if budget == before else budget):
                break  # its turn comes in a step of its own
            leader = sequence.leader
            if leader is not None and not leader.prompt_done and not leader.done:
                continue  # what it would compute is being computed
            if len(self._running) >= self._max_running and not self._preempt_for(sequence):
                break
            admitted = self._admit(sequence)
            while not admitted and self._preempt_for(sequence):
                admitted = self._admit(sequence)
            if not admitted:
                break
            budget -= self._take(work, sequence, budget)
        self._prompt_tokens = before - budget
        self._mixed_tokens = self._prompt_tokens if streaming else 0
        if not work and not self._running and self._waiting:
            head = next((each for each in self._waiting if not each.waiting_on_group), self._waiting[0])
            if self._pages(head) <= self._kv.n_pages and self._lent():
                if self.cache.n_pages:  # whatever is kept shall not be what is missing
                    self.cache.clear()
                    return self.schedule()
                self.stuck = True
            else:
                head.fail(ResourceError(f"{self._pages(head)} KV pages are needed, {self._kv.n_free} are free"))
        return work

    def _lent(self) -> bool:
        """Whether pages are held by none of the sequences, while none is running: a session is being written or read."""
        if (
            self._window_pool is not None
            and self._window_pool.n_free + self.cache.window_evictable() < self._window_pool.n_pages
        ):
            return True
        return self._kv.n_free + self.cache.evictable() < self._kv.n_pages

    def recompute(self, sequence: Sequence) -> None:
        """Compute a running sequence anew, whose tokens are others now."""
        self._running.remove(sequence)
        self._free(sequence)
        insort(self._waiting, sequence, key=_rank)
        sequence.shifted = False

    def on_computed(self, sequence: Sequence) -> None:
        """Take note of a sequence whose tokens have just been computed: others may begin with its full pages."""
        self.checkpoints.undo(sequence)
        node = self.keep(sequence, whole=sequence.n_cached == sequence.n_prompt)
        if node is not None and self.checkpoints.due(sequence):
            self.checkpoints.keep(node, sequence)
        self._trim(sequence)

    def _trim(self, sequence: Sequence) -> None:
        """Give back what lies behind the window, for good: a sequence never goes back."""
        if self._window_pool is not None:
            first = min(self._kv.first_read(sequence.n_cached), len(sequence.window_pages))
            self._window_pool.release([page for page in sequence.window_pages[:first] if page >= 0])
            sequence.window_pages[:first] = [-1] * first

    def observe(self, seconds: float) -> None:
        """Take note of how long the planned step took."""
        if not self._prompt_tokens:
            self._decode_s = seconds if not self._decode_s else 0.75 * self._decode_s + 0.25 * seconds
        elif self._prompt_tokens >= LEAST_PROMPT_PART:
            rest = max(seconds - (self._decode_s if self._decoding else 0.0), 0.2 * seconds)
            each_s = rest / self._prompt_tokens
            self._prompt_s = each_s if self._prompt_s is None else max(each_s, 0.5 * (self._prompt_s + each_s))

    def _prompt_part(self) -> int:
        """Tokens of prompts in a step that streams wait for."""
        if not self._prompt_s:
            return FIRST_PROMPT_PART
        part = int((STEP_SECONDS - self._decode_s) / self._prompt_s)
        # A measurement at another place of the context, or on a busier machine, may promise too much: no leaps.
        return max(LEAST_PROMPT_PART, min(part, 2 * max(self._mixed_tokens, FIRST_PROMPT_PART)))

    def _take(self, work: list[ScheduledChunk], sequence: Sequence, budget: int) -> int:
        # No guesses: there may be no pages for them.
        budget = min(max(budget, sequence.min_step_tokens), self.checkpoints.stop(sequence))
        if not self._grow_window(sequence, sequence.n_cached + budget, [each.sequence for each in work]):
            return 0
        sequence.start()
        tokens, outputs = sequence.next_tokens(budget)
        if tokens:
            work.append(ScheduledChunk(sequence, tokens, outputs))
        return len(tokens)

    def _pages(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self._kv.page_tokens)

    def _room(self, sequence: Sequence) -> int:
        """Further tokens that a sequence's pages hold, or could without taking a page from somebody."""
        size = self._kv.page_tokens
        n_pages = len(sequence.pages) + min(self._kv.n_free, 1)
        if self._window_pool is not None:
            n_pages = min(n_pages, len(sequence.window_pages) + min(self._window_pool.n_free, 1))
        return n_pages * size - len(sequence.tokens)

    def _extend(self, sequence: Sequence, end: int) -> None:
        """Pages for tokens up to ``end``, which there is room for."""
        missing = -(-end // self._kv.page_tokens) - len(sequence.pages)
        if missing > 0:
            sequence.pages += self._kv.allocate(missing)
        if self._window_pool is not None:
            missing = -(-end // self._kv.page_tokens) - len(sequence.window_pages)
            if missing > 0:
                sequence.window_pages += self._window_pool.allocate(missing)

    def _grow_window(self, sequence: Sequence, end: int, planned: Ordered[Sequence]) -> bool:
        """Pages for tokens up to ``end`` in layers with a window; False when the sequence had to give way itself.

        Those who come after it give way before, but for those ``planned`` already: they go on, and end some time.
        """
        if self._window_pool is None:
            return True
        missing = -(-end // self._kv.page_tokens) - len(sequence.window_pages)
        while not self.cache.evict_window(missing):
            last = next((each for each in reversed(self._running) if each not in planned), sequence)
            self._preempt(last)
            if last is sequence:
                return False
        sequence.window_pages += self._window_pool.allocate(max(0, missing))
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence in if its pages are there and leave the running ones a page each to grow into."""
        most = min(len(sequence.tokens) - 1, sequence.max_cached) if sequence.uses_prefix_cache else 0
        if not self.checkpoints.take(sequence):
            return False
        tokens = sequence.cache_key(0, len(sequence.tokens))
        found = self.cache.find(tokens, most)
        if len(found.pages) * self._kv.page_tokens + found.copied < sequence.n_source:
            found = self.cache.find((), 0)  # part of a source is of no use
        if self._begin(sequence, found):
            return True
        # The page that would be copied may be one of those that have to go.
        whole = most if len(found.pages) * self._kv.page_tokens >= sequence.n_source else 0
        if found.copied and self._begin(sequence, self.cache.find(tokens, whole, copy=False)):
            return True
        self.checkpoints.free(sequence)
        return False

    def _begin(self, sequence: Sequence, found: Match) -> bool:
        """Let a waiting sequence in with what was found."""
        source, window_pages = (
            [found.source] if found.copied else [],
            [page for page in found.window_pages if page >= 0],
        )
        window_source = source and [found.window_source]
        self._kv.share(found.pages + source)  # so that they are not given up
        if self._window_pool is not None:
            self._window_pool.share(window_pages + window_source)
        n_found = len(found.pages)
        needed = self._pages(sequence) - n_found
        begun = self._reclaim(sequence, found, needed)
        if begun:
            sequence.pages, sequence.window_pages = found.pages + self._kv.allocate(needed), found.window_pages[:]
            sequence.n_cached = n_found * self._kv.page_tokens + found.copied
            sequence.node, sequence.n_kept = found.node, n_found
            sequence.divergence = found.n_known * self._kv.page_tokens
            self.checkpoints.copy(found.state, sequence)
            if source:
                self._kv.copy(found.source, sequence.pages[n_found])
            if window_source and self._window_pool is not None:
                sequence.window_pages += self._window_pool.allocate(1)
                self._window_pool.copy(found.window_source, sequence.window_pages[n_found])
            if not sequence.started:
                sequence.n_reused = sequence.n_cached
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=_rank)
        self._kv.release(source if begun else found.pages + source)
        if self._window_pool is not None:
            self._window_pool.release(window_source if begun else window_pages + window_source)
        return begun

    def _reclaim(self, sequence: Sequence, found: Match, needed: int) -> bool:
        """Whether there is room for a sequence that comes with what was found, a page for each running one left."""
        if not self.cache.evict(needed + len(self._running)):
            return False
        there = sum(page >= 0 for page in found.window_pages)
        most = min(self._pages(sequence) - len(found.window_pages) + there, self._max_window_pages)
        return self.cache.evict_window(most - there + len(self._running))

    def _grow(self, sequence: Sequence) -> bool:
        """Make sure of a page for the newest token; False when the sequence had to give way itself."""
        while self._pages(sequence) > len(sequence.pages) or self._lacks_window_pages(sequence):
            if self._pages(sequence) > len(sequence.pages):
                if self.cache.evict(1):
                    sequence.pages += self._kv.allocate(1)
                    continue
            elif self.cache.evict_window(1):
                self._extend(sequence, len(sequence.tokens))
                continue
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _lacks_window_pages(self, sequence: Sequence) -> bool:
        return self._window_pool is not None and self._pages(sequence) > len(sequence.window_pages)

    def _preempt_for(self, sequence: Sequence) -> bool:
        """Take place and pages from the last one that has nothing to compute now and does not come before ``sequence``."""
        for last in reversed(self._running):
            if last.waiting_on_group and last.rank >= sequence.rank:
                self._preempt(last)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        """Let a running sequence wait, without its pages."""
        self._running.remove(sequence)
        self._leave(sequence, whole=sequence.waiting_on_group)
        self._free(sequence)
        insort(self._waiting, sequence, key=_rank)

    def _leave(self, sequence: Sequence, *, whole: bool) -> None:
        """As ``keep``, for a sequence that is about to lose its pages, and its state with them."""
        node = self.keep(sequence, whole=whole)
        if node is not None:
            self.checkpoints.give(node, sequence)

    def keep(self, sequence: Sequence, *, whole: bool) -> Node | None:
        """Put a sequence's full pages into the cache; with ``whole`` the begun one too.

        The node that ends where the sequence does; None where there is none.
        """
        if not sequence.uses_prefix_cache or not sequence.pages or sequence.shifted:
            return None
        size = self._kv.page_tokens
        node = sequence.node if sequence.node is not None else self.cache.root
        while (sequence.n_kept + 1) * size <= sequence.n_cached:
            at = sequence.n_kept
            window_page = -1 if self._window_pool is None else sequence.window_pages[at]
            node = self.cache.add(node, sequence.cache_key(at * size, (at + 1) * size), sequence.pages[at], window_page)
            # Where somebody else computed the same, one of the two is enough.
            _exchange(self._kv, sequence.pages, at, node.page)
            if self._window_pool is not None:
                _exchange(self._window_pool, sequence.window_pages, at, node.window_page)
            sequence.n_kept += 1
        sequence.node = node
        rest = sequence.cache_key(sequence.n_kept * size, sequence.n_cached)
        if whole and rest:
            window_page = -1 if self._window_pool is None else sequence.window_pages[sequence.n_kept]
            node = self.cache.add(node, rest, sequence.pages[sequence.n_kept], window_page)
        if whole:
            self.cache.pin_recent(node)
        return node if (whole or not rest) and self.cache.ends_at(node, len(rest) or size) else None

    def _free(self, sequence: Sequence) -> None:
        pages, sequence.pages = sequence.pages, []
        window_pages, sequence.window_pages = [page for page in sequence.window_pages if page >= 0], []
        sequence.n_cached, sequence.node, sequence.n_kept = 0, None, 0
        self.checkpoints.free(sequence)
        self.checkpoints.free_backup(sequence)
        if pages:
            self._kv.release(pages)
        if window_pages and self._window_pool is not None:
            self._window_pool.release(window_pages)


def _exchange(pool: PagePool, pages: list[int], at: int, other: int) -> None:
    """Own page ``other`` in place of ``pages[at]``, if both are pages."""
    if other >= 0 and pages[at] >= 0 and pages[at] != other:
        pool.share([other])
        pool.release([pages[at]])
        pages[at] = other
