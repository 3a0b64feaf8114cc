"""The scheduler: which tokens of which sequences the next step computes.

Continuous batching (Yu et al. 2022, "Orca"): sequences that decode come first, with one token each and their draft tokens. The
rest of the step goes to prompts, in chunks (chunked prefill: Agrawal et al. 2024, "Sarathi-Serve"). While an answer is streaming,
these chunks are kept so small that the step takes about STEP_SECONDS. Everything goes in order of priority, then of arrival.

A sequence is admitted when there are pages for all its tokens. When a running one needs a page and none can be evicted, the last
one in that order is preempted: it releases its pages and waits to be recomputed (the part that the prefix cache still has is
not computed again). The first in order can therefore always continue, and every sequence ends. Branches of one request that
wait for each other (``waiting_on_group``) keep their pages as long as there are enough; otherwise they are preempted for the
other branches.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from gumba.engine.block_manager import BlockManager
from gumba.engine.protocols import KVPool, StatePool
from gumba.engine.sequence import Fork, Outputs, Sequence
from gumba.errors import ResourceError

#: Target duration of a step that delays streams, in seconds, and the minimum number of prompt tokens in it.
STEP_SECONDS = 0.06
MIN_PREFILL_CHUNK = 16
#: Prompt tokens of the first such step, before any was measured.
FIRST_PREFILL_CHUNK = 32
#: Sequences decode with draft tokens while at most this many decode: beyond that, a step is bound by arithmetic.
MAX_DRAFTING_SEQUENCES = 8

_rank = attrgetter("rank")


class ScheduledChunk(NamedTuple):
    """Part of a step: tokens of a sequence from ``n_cached`` on, and which of them get logits."""

    sequence: Sequence
    tokens: list[int]
    outputs: Outputs


@dataclass
class _PrefillBudget:
    """Prompt tokens that a step can still take: ``left`` of ``total``, or ``step`` for its first chunk alone."""

    total: int
    left: int
    step: int

    def fits(self, sequence: Sequence) -> bool:
        """Whether the minimum number of tokens of a sequence fits; the first chunk may exceed ``total`` for that."""
        return sequence.min_step_tokens <= (self.step if self.left == self.total else self.left)


class Scheduler:
    """Fills the steps of one model from the sequences that run and wait.

    Args:
        kv: The KV cache's pool of pages.
        max_batch_tokens: Maximum number of tokens in one step.
        max_sequences: Maximum number of running sequences.
        states: The pool of recurrent states; None for a model without.
    """

    def __init__(
        self, kv: KVPool, *, max_batch_tokens: int, max_sequences: int, states: StatePool | None = None
    ) -> None:
        self.blocks = BlockManager(kv, max_batch_tokens=max_batch_tokens, states=states)
        self._max_batch_tokens = max_batch_tokens
        # Each decoding sequence needs a token of every step.
        self._max_running = min(max_sequences, max_batch_tokens)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._arrivals = 0
        self._decode_s = 0.0  # duration of a step without prompts
        self._prompt_s: float | None = None  # duration per prompt token
        self._prompt_tokens, self._decoding = 0, False  # of the last step
        self._mixed_tokens = 0  # prompt tokens of the last step, if it delayed streams
        #: True while all progress is blocked on pages held by a lease; cleared when any command arrives.
        self.blocked_on_lease = False

    @property
    def n_waiting(self) -> int:
        """Number of sequences that wait for admission."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there are no sequences."""
        return not self._waiting and not self._running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._arrivals += 1
        sequence.rank = (sequence.priority, self._arrivals)
        insort(self._waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence in any state; the prefix cache keeps its pages as long as there is memory."""
        if sequence in self._running:
            self._running.remove(sequence)
            self.blocks.retain(sequence, partial=True)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self.blocks.free(sequence)

    def fork(self, fork: Fork) -> None:
        """Run the children of a branch in its place, and forget the branch.

        The first child takes over its pages; the others share the full ones and copy the last, partial one. Children for which
        pages or places are lacking wait to be recomputed, as do all children of a parent that does not run.
        """
        parent, children = fork
        places = 0
        if parent in self._running:
            self._running.remove(parent)
            places = self._max_running - len(self._running)
        elif parent in self._waiting:
            self._waiting.remove(parent)
        for index, child in enumerate(children):
            child.rank = parent.rank
            has_page = not index or self.blocks.evict_for_copy(parent)
            if index >= places or not has_page:
                runs = False
            elif index:
                runs = self.blocks.copy(children[0], child)
            else:
                self.blocks.hand_over(parent, child)
                runs = True
            insort(self._running if runs else self._waiting, child, key=_rank)
        self.blocks.free(parent)

    def schedule(self) -> list[ScheduledChunk]:
        """The chunks of the next step; none if no sequence can continue.

        A step that was scheduled but not computed may simply be scheduled again.
        """
        chunks: list[ScheduledChunk] = []
        left, streaming = self._schedule_decodes(chunks)
        total = min(left, self._prefill_chunk()) if streaming else left
        budget = _PrefillBudget(total, total, left)
        for sequence in self._running[:]:
            if sequence not in self._running:  # it was preempted
                continue
            if budget.left > 0 and sequence.remaining > 1 and budget.fits(sequence):
                budget.left -= self._add_chunk(chunks, sequence, budget.left)
        self._schedule_waiting(chunks, budget)
        self._prompt_tokens = total - budget.left
        self._mixed_tokens = self._prompt_tokens if streaming else 0
        if not chunks and not self._running and self._waiting:
            return self._unblock()
        return chunks

    def _schedule_decodes(self, chunks: list[ScheduledChunk]) -> tuple[int, bool]:
        """Schedule the sequences that decode; the tokens left in the step, and whether one of the sequences is streaming."""
        budget, streaming = self._max_batch_tokens, False
        self._decoding = False
        ready = [sequence for sequence in self._running if sequence.remaining == 1]
        drafting = len(ready) <= MAX_DRAFTING_SEQUENCES
        blocks = self.blocks
        for index, sequence in enumerate(ready):
            if sequence in self._running and self._grow(sequence):
                spare = budget - (len(ready) - index) if drafting and blocks.checkpoints.can_draft(sequence) else 0
                tokens, outputs = sequence.next_tokens(1 + max(0, min(spare, blocks.spare_tokens(sequence))))
                blocks.extend(sequence, sequence.n_cached + len(tokens))
                if len(tokens) > 1:
                    blocks.checkpoints.back_up(sequence)
                budget -= len(tokens)
                self._decoding, streaming = True, streaming or sequence.streaming
                chunks.append(ScheduledChunk(sequence, tokens, outputs))
        return budget, streaming

    def _schedule_waiting(self, chunks: list[ScheduledChunk], budget: _PrefillBudget) -> None:
        """Admit waiting sequences in order, as long as there are tokens in the step, places and pages."""
        for sequence in self._waiting[:]:
            if budget.left <= 0:
                break
            if sequence.waiting_on_group:
                continue
            if not budget.fits(sequence):
                break  # a later step takes it first
            leader = sequence.leader
            if leader is not None and not leader.prompt_done and not leader.done:
                continue  # the leader computes the same prompt
            if len(self._running) >= self._max_running and not self._preempt_for(sequence):
                break
            admitted = self._admit(sequence)
            while not admitted and self._preempt_for(sequence):
                admitted = self._admit(sequence)
            if not admitted:
                break
            budget.left -= self._add_chunk(chunks, sequence, budget.left)

    def _unblock(self) -> list[ScheduledChunk]:
        """Nothing runs, and nothing could be admitted: empty the cache, wait for a lease, or fail the first sequence."""
        first = next((sequence for sequence in self._waiting if not sequence.waiting_on_group), self._waiting[0])
        blocks = self.blocks
        if blocks.n_pages(first) <= blocks.kv.n_pages and blocks.leased():
            if blocks.prefix_cache.n_pages:  # cached pages must not be the ones that are lacking
                blocks.prefix_cache.clear()
                return self.schedule()
            self.blocked_on_lease = True
        else:
            first.fail(ResourceError(f"{blocks.n_pages(first)} KV pages are needed, {blocks.kv.n_free} are free"))
        return []

    def _add_chunk(self, chunks: list[ScheduledChunk], sequence: Sequence, budget: int) -> int:
        """Schedule at most ``budget`` tokens of a prompt (``min_step_tokens`` at least); returns their number."""
        # Without draft tokens: there may be no pages for them.
        budget = min(max(budget, sequence.min_step_tokens), self.blocks.checkpoints.tokens_to_next(sequence))
        if not self._grow_window(sequence, sequence.n_cached + budget, chunks):
            return 0
        sequence.start()
        tokens, outputs = sequence.next_tokens(budget)
        if tokens:
            chunks.append(ScheduledChunk(sequence, tokens, outputs))
        return len(tokens)

    def _admit(self, sequence: Sequence) -> bool:
        """Let a waiting sequence run, if there are pages for it."""
        if not self.blocks.admit(sequence, len(self._running)):
            return False
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_rank)
        return True

    def _grow(self, sequence: Sequence) -> bool:
        """Allocate a page for the newest token if need be, preempting others; False if the sequence itself was preempted."""
        while not self.blocks.grow(sequence):
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _grow_window(self, sequence: Sequence, end: int, chunks: Ordered[ScheduledChunk]) -> bool:
        """Allocate window pages for tokens up to ``end``; False if the sequence itself was preempted.

        Running sequences are preempted from the last on, except those in ``chunks``: they continue, and end at some time.
        """
        while not self.blocks.grow_window(sequence, end):
            scheduled = {chunk.sequence for chunk in chunks}
            last = next((other for other in reversed(self._running) if other not in scheduled), sequence)
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt_for(self, sequence: Sequence) -> bool:
        """Preempt the last branch that waits for its group and does not come before ``sequence``; False if there is none."""
        for last in reversed(self._running):
            if last.waiting_on_group and last.rank >= sequence.rank:
                self._preempt(last)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        """Preempt a sequence: release its pages and requeue it (recompute later)."""
        self._running.remove(sequence)
        self.blocks.retain(sequence, partial=sequence.waiting_on_group)
        self._requeue(sequence)

    def recompute(self, sequence: Sequence) -> None:
        """Requeue a running sequence whose tokens have changed, so that none of its pages is valid."""
        self._running.remove(sequence)
        self._requeue(sequence)
        sequence.shifted = False

    def _requeue(self, sequence: Sequence) -> None:
        self.blocks.free(sequence)
        insort(self._waiting, sequence, key=_rank)

    def observe(self, seconds: float) -> None:
        """Record how long the scheduled step took."""
        if not self._prompt_tokens:
            self._decode_s = seconds if not self._decode_s else 0.75 * self._decode_s + 0.25 * seconds
        elif self._prompt_tokens >= MIN_PREFILL_CHUNK:
            prompts_s = max(seconds - (self._decode_s if self._decoding else 0.0), 0.2 * seconds)
            token_s = prompts_s / self._prompt_tokens
            self._prompt_s = token_s if self._prompt_s is None else max(token_s, 0.5 * (self._prompt_s + token_s))

    def _prefill_chunk(self) -> int:
        """Number of prompt tokens in a step that delays streams."""
        if not self._prompt_s:
            return FIRST_PREFILL_CHUNK
        chunk = int((STEP_SECONDS - self._decode_s) / self._prompt_s)
        # The last measurement, at another place of the context or on a less busy machine, may promise too much: at most double.
        return max(MIN_PREFILL_CHUNK, min(chunk, 2 * max(self._mixed_tokens, FIRST_PREFILL_CHUNK)))
