"""The engine's core: what its thread owns, and the loop that processes commands and computes steps."""

from __future__ import annotations

import contextlib
import enum
import logging
import queue
import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gumba.backends.chunks import Chunk
from gumba.engine.page_lease import LeaseManager
from gumba.engine.protocols import Runner
from gumba.engine.scheduler import ScheduledChunk, Scheduler
from gumba.engine.sequence import Sequence
from gumba.errors import EngineError, QueueFullError
from gumba.outputs import KVUsage
from gumba.sampling.sampler import Sampler

log = logging.getLogger("gumba")

_ROWS = {"none": 0, "last": 1}
#: While leases hold pages, an engine that is to unload its models checks this often whether it may, in seconds.
_MIN_IDLE_TIMEOUT_S = 1.0


@dataclass
class Command:
    """A function for the engine's thread to run between two steps; ``answer`` receives its result, or its error."""

    function: Callable[[], object]
    answer: queue.SimpleQueue[tuple[object, BaseException | None]]
    needs_model: bool

    def run(self, load: Callable[[], None]) -> None:
        """Run the function, after ``load`` if it needs the model."""
        try:
            if self.needs_model:
                load()
            self.answer.put((self.function(), None))
        except BaseException as error:
            self.answer.put((None, error))


class Signal(enum.Enum):
    """Commands without arguments."""

    CLOSE = "end the thread"
    WAKE = "look for cancelled sequences"


#: What the inbox carries: signals, commands, sequences to add together, functions that return nothing.
Message: TypeAlias = "Signal | Command | list[Sequence] | Callable[[], object]"
Inbox: TypeAlias = "queue.SimpleQueue[Message]"


class EngineCore:
    """What the engine's thread works with. It has no reference to the engine, so that an unused engine is collected.

    Args:
        model: The model; of its logits, the first ``n_vocab`` are tokens.
        max_sequences: Maximum number of running sequences.
        max_requests: Maximum number of requests, running or waiting; None: no limit.
        draft_models: Models that sequences draft with, closed before ``model``.
        idle_timeout: Idle time in seconds before the models are unloaded; None: never.
        reload: Loads the models again: ``model``, then the draft models. None: they are never unloaded.
    """

    def __init__(
        self,
        model: Runner,
        n_vocab: int,
        *,
        max_sequences: int,
        max_requests: int | None,
        draft_models: Ordered[Runner],
        idle_timeout: float | None,
        reload: Callable[[], Ordered[Runner]] | None,
    ) -> None:
        self.model, self._draft_models = model, draft_models
        self.inbox: Inbox = queue.SimpleQueue()
        self.broken: BaseException | None = None
        #: Set before the inbox is emptied for the last time: a thread that puts a message and then sees it set knows that the
        #: message may never be processed.
        self.ended = False
        self._max_sequences = max_sequences
        self.scheduler, self.leases = self._new_scheduler()
        self.sampler = Sampler(n_vocab)
        self._live: dict[Sequence, None] = {}
        self._closing = False
        self._max_requests = max_requests
        self._idle_timeout = None if reload is None else idle_timeout
        self._reload = reload
        self.loaded = True

    def _new_scheduler(self) -> tuple[Scheduler, LeaseManager]:
        model = self.model
        scheduler = Scheduler(
            model.kv,
            max_batch_tokens=model.max_batch_tokens,
            max_sequences=self._max_sequences,
            states=model.states,
        )
        return scheduler, LeaseManager(scheduler.blocks, model.states)

    def run(self) -> None:
        """The engine's thread."""
        try:
            while True:
                self._process_inbox()
                if self._closing:
                    break
                self._step()
        except BaseException as error:
            log.exception("the engine has failed")
            self.broken = error
        for sequence in self._live:
            sequence.cancelled = True
            if self.broken is not None:
                sequence.fail(EngineError(f"the engine has failed: {self.broken!r}"))
        try:
            self._retire()
            self.scheduler.blocks.prefix_cache.clear()
        finally:
            try:
                self._close_models()
            finally:
                self.ended = True
                self._fail_pending()

    def _close_models(self) -> None:
        for model in (*self._draft_models, self.model):
            model.close()
        self.loaded = False

    def _load(self) -> None:
        """Load the models if they are unloaded. Raises what loading them raises."""
        if self.loaded:
            return
        if self._reload is None:
            raise EngineError("the model is closed")
        self.model, *self._draft_models = self._reload()
        self.scheduler, self.leases = self._new_scheduler()
        self.loaded = True

    def _process_inbox(self) -> None:
        """Process all messages; wait for one while no step can be computed."""
        idle_timeout = self._idle_timeout
        while True:
            idle = (self.scheduler.idle or self.scheduler.blocked_on_lease) and not self._closing
            try:
                message = self.inbox.get(block=idle, timeout=idle_timeout if idle and self.loaded else None)
            except queue.Empty:
                if not idle:
                    break
                if not self.kv_usage().in_use:
                    self.scheduler.blocks.prefix_cache.clear()
                    self._close_models()
                elif idle_timeout is not None:  # a lease holds pages
                    idle_timeout = max(idle_timeout, _MIN_IDLE_TIMEOUT_S)
                continue
            self.scheduler.blocked_on_lease = False  # the message may have ended the lease
            if message is Signal.CLOSE:
                self._closing = True
            elif isinstance(message, Command):
                self._retire()
                message.run(self._load)
            elif isinstance(message, list):
                self._add_requests(message)
            elif not isinstance(message, Signal):
                message()
            del message  # or its sequences would stay alive until the next message
            if self.scheduler.idle and self.inbox.empty():
                self._retire()
        self._retire()

    def _add_requests(self, sequences: list[Sequence]) -> None:
        """Queue sequences that were submitted together: all, or none if there are too many. Only here is their number exact."""
        if self._max_requests is not None:
            self._retire()
            n_requests = sum(sequence.is_request for sequence in self._live)
            if n_requests + len(sequences) > self._max_requests:
                message = f"{n_requests} requests are running or waiting, the maximum is {self._max_requests}"
                _refuse(sequences, QueueFullError(message))
                return
        try:
            self._load()
        except BaseException as error:
            _refuse(sequences, error)
            return
        for sequence in sequences:
            self._live[sequence] = None
            self.scheduler.add(sequence)

    def _fail_pending(self) -> None:
        """Fail all pending commands on shutdown."""
        while True:
            try:
                message = self.inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(message, Command):
                message.answer.put((None, EngineError("the model is closed")))
            elif isinstance(message, list):
                _refuse(message, EngineError("the model is closed"))

    def clear_cache(self) -> None:
        """Evict all cached pages that nothing else owns."""
        if self.loaded:
            cache, kv = self.scheduler.blocks.prefix_cache, self.model.kv
            cache.evict(kv.n_pages)
            if kv.window_pool is not None:
                cache.evict_window(kv.window_pool.n_pages)

    def cancel_all(self) -> None:
        """Cancel all sequences."""
        for sequence in self._live:
            sequence.cancelled = True

    def kv_usage(self) -> KVUsage:
        """Who owns the KV cache's pages and the state slots."""
        kv, pool, states = self.model.kv, self.model.kv.window_pool, self.model.states
        n_window_pages, n_states = 0 if pool is None else pool.n_pages, 0 if states is None else states.n_slots
        if not self.loaded:
            return KVUsage(kv.n_pages, 0, 0, kv.page_tokens, n_window_pages, states=n_states)
        blocks = self.scheduler.blocks
        cached, window_cached = blocks.prefix_cache.evictable(), blocks.prefix_cache.window_evictable()
        n_checkpoints = blocks.checkpoints.n_checkpoints
        return KVUsage(
            kv.n_pages, kv.n_pages - kv.n_free - cached, cached, kv.page_tokens,
            n_window_pages, 0 if pool is None else n_window_pages - pool.n_free - window_cached, window_cached,
            n_states, 0 if states is None else n_states - states.n_free - n_checkpoints, n_checkpoints,
        )  # fmt: skip

    def _step(self) -> None:
        """Compute one step for all sequences."""
        began = time.perf_counter()
        scheduled = self.scheduler.schedule()
        if not scheduled:
            self._retire()
            return
        page_tokens = self.model.kv.page_tokens
        chunks = []
        for sequence, tokens, outputs in scheduled:
            end = sequence.n_cached + len(tokens)
            count = -(-end // page_tokens)
            chunks.append(
                Chunk(
                    tokens,
                    sequence.n_cached,
                    sequence.pages[:count],
                    outputs,
                    window_pages=sequence.window_pages[:count],
                    state=sequence.state,
                    n_source=sequence.n_source,
                )
            )
        try:
            rows = self.model.forward(chunks)
        except BaseException as error:
            for chunk in scheduled:
                chunk.sequence.fail(error)
            self._retire()
            return
        self._advance(scheduled, rows)
        self.scheduler.observe(time.perf_counter() - began)
        self._retire()

    def _advance(self, scheduled: list[ScheduledChunk], rows: NDArray[np.float32]) -> None:
        """Give all sequences of a step their rows of logits, then apply their forks."""
        first = 0
        for sequence, tokens, outputs in scheduled:
            # A source has no logits.
            last = first + _ROWS.get(outputs, len(tokens) - max(0, sequence.n_source - sequence.n_cached))
            try:
                if sequence.wants_hidden:
                    sequence.hidden = self.model.hidden[first:last]
                if sequence.on_prompt is not None and not sequence.prompt_done:
                    sequence.on_prompt(min(sequence.n_cached + len(tokens), sequence.n_prompt), sequence.n_prompt)
                sequence.advance(len(tokens), rows[first:last], self.sampler)
            except BaseException as error:  # a user's own function may raise anything
                sequence.fail(error)
            else:
                if sequence.shifted:
                    self.scheduler.recompute(sequence)
                else:
                    self.scheduler.blocks.on_computed(sequence)
            first = last
        for sequence, _, _ in scheduled:
            try:
                for fork in sequence.after_step():
                    self.scheduler.fork(fork)
                    self._live.update(dict.fromkeys(fork.children))
            except BaseException as error:
                sequence.fail(error)

    def _retire(self) -> None:
        """End cancelled sequences, and remove all that have ended."""
        ended = []
        # The end of one sequence may end others; none is delivered before all their pages are released.
        while done := [sequence for sequence in self._live if sequence.cancelled or sequence.done]:
            for sequence in done:
                if not sequence.done:
                    try:
                        sequence.cancel()
                    except Exception as error:
                        sequence.fail(error)
                del self._live[sequence]
                self.scheduler.remove(sequence)
            ended += done
        for sequence in ended:
            with contextlib.suppress(Exception):  # its event loop is closed
                sequence.ended()


def _refuse(sequences: list[Sequence], error: BaseException) -> None:
    """End sequences that were not queued."""
    for sequence in sequences:
        sequence.fail(error)
        with contextlib.suppress(Exception):  # its event loop is closed
            sequence.ended()
