"""What the engine's thread works with: its inbox, its scheduler, and the step from one to the next."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gumba.engine.scheduler import PagePool, ScheduledChunk, Scheduler
from gumba.engine.sequence import Sequence
from gumba.engine.state_checkpoints import StatePool
from gumba.errors import EngineError, QueueFullError
from gumba.outputs import KVUsage
from gumba.runner.load import Chunk
from gumba.sampling.sampler import Sampler

log = logging.getLogger("gumba")

_ROWS = {"none": 0, "last": 1}
#: While somebody outside holds pages, an engine that is to unload its models looks this often whether it may, in seconds.
_MIN_IDLE_TIMEOUT_S = 1.0


class Runner(Protocol):
    """What the engine needs of ``gumba.runner.load.Model``."""

    @property
    def kv(self) -> PagePool: ...

    @property
    def states(self) -> StatePool | None: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def hidden(self) -> np.ndarray[Any, Any]: ...

    def forward(self, chunks: Ordered[Chunk], /) -> np.ndarray[Any, Any]: ...

    def close(self) -> None: ...


@dataclass
class PageLease:
    """Pages of somebody who is no sequence: ``pages`` hold ``n_cached`` tokens; ``window_pages``, ``state``: as of ``Match``.

    ``first_window_page``: from which page on there is something for layers with a window.
    """

    pages: list[int] = field(default_factory=list)
    window_pages: list[int] = field(default_factory=list)
    n_cached: int = 0
    state: int = -1
    first_window_page: int = 0

    @property
    def live_window_pages(self) -> list[int]:
        return [page for page in self.window_pages if page >= 0]


@dataclass
class Command:
    """Something for the engine's thread to do between two steps."""

    function: Callable[[], object]
    answer: queue.SimpleQueue[tuple[object, BaseException | None]]
    needs_model: bool


#: Orders without more to say: end; look whether something is to be done.
CLOSE = object()
WAKE = object()


class EngineCore:
    """What the engine's thread works with. It does not hold the engine, so that a forgotten engine is collected."""

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
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.broken: BaseException | None = None
        #: Set before the last look at the inbox: who then gives one, and looks here after that, knows that it is not answered.
        self.ended = False
        self._max_sequences = max_sequences
        self.scheduler = self._scheduler()
        self.sampler = Sampler(n_vocab)
        self._live: dict[Sequence, None] = {}
        self._closing = False
        #: Requests that may be here, running or waiting; None: any number.
        self._max_requests = max_requests
        #: Seconds without anything to do after which the models are closed, and what loads them again.
        self._idle_timeout = None if reload is None else idle_timeout
        self._reload = reload
        self.loaded = True

    def _scheduler(self) -> Scheduler:
        model, most = self.model, self._max_sequences
        batch = model.max_batch_tokens
        return Scheduler(model.kv, max_batch_tokens=batch, max_sequences=most, states=model.states)

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
            self.scheduler.cache.clear()
        finally:
            try:
                self._close_models()
            finally:
                self.ended = True
                self._fail_pending()

    def _close_models(self) -> None:
        for each in (*self._draft_models, self.model):
            each.close()
        self.loaded = False

    def _load(self) -> None:
        """Have the models there. Raises what loading them does."""
        if self.loaded:
            return
        if self._reload is None:
            raise EngineError("the model is closed")
        self.model, *self._draft_models = self._reload()
        self.scheduler = self._scheduler()
        self.loaded = True

    def _process_inbox(self) -> None:
        """Do what was asked for; wait for it when there is nothing else to do."""
        idle_timeout = self._idle_timeout
        while True:
            idle = (self.scheduler.idle or self.scheduler.stuck) and not self._closing
            try:
                order = self.inbox.get(block=idle, timeout=idle_timeout if idle and self.loaded else None)
            except queue.Empty:
                if not idle:
                    break
                if not self.kv_usage().in_use:
                    self.scheduler.cache.clear()
                    self._close_models()
                elif idle_timeout is not None:  # somebody outside holds pages: a session is being written
                    idle_timeout = max(idle_timeout, _MIN_IDLE_TIMEOUT_S)
                continue
            self.scheduler.stuck = False  # perhaps the order has changed that
            if order is CLOSE:
                self._closing = True
            elif isinstance(order, Command):
                self._retire()
                self._execute(order)
            elif isinstance(order, list):
                self._add_requests(order)
            elif order is not WAKE:
                order()
            order = None  # or the last requests would be remembered until others come
            if self.scheduler.idle and self.inbox.empty():
                self._retire()
        self._retire()

    def _add_requests(self, sequences: list[Sequence]) -> None:
        """Queue sequences that come together: all, or none when there are too many. Here, where they are counted exactly."""
        if self._max_requests is not None:
            self._retire()
            here = sum(each.owner is each for each in self._live)
            if here + len(sequences) > self._max_requests:
                _refuse(
                    sequences,
                    QueueFullError(f"{here} requests are here already, no more than {self._max_requests} may be"),
                )
                return
        try:
            self._load()
        except BaseException as error:
            _refuse(sequences, error)
            return
        for sequence in sequences:
            self._live[sequence] = None
            self.scheduler.add(sequence)

    def _execute(self, call: Command) -> None:
        try:
            if call.needs_model:
                self._load()
            call.answer.put((call.function(), None))
        except BaseException as error:
            call.answer.put((None, error))

    def _fail_pending(self) -> None:
        """Nobody waits for an answer that never comes."""
        while True:
            try:
                order = self.inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(order, Command):
                order.answer.put((None, EngineError("the model is closed")))
            elif isinstance(order, list):
                _refuse(order, EngineError("the model is closed"))

    def lease(self, tokens: list[int]) -> PageLease:
        """Pages of the cache that hold the beginning of ``tokens``, for the caller to own.

        There are none where a model with recurrent layers has no slot left: without a state nothing goes on from them.
        """
        lease, checkpoints = PageLease(), self.scheduler.checkpoints
        if not checkpoints.take(lease):
            return lease
        kv, match = self.model.kv, self.scheduler.cache.find(tokens, len(tokens))
        lease.pages, lease.window_pages = match.pages[:], match.window_pages[:]
        lease.n_cached = len(match.pages) * kv.page_tokens + match.copied
        checkpoints.copy(match.state, lease)
        if match.copied:
            lease.pages.append(match.source)
            lease.window_pages += [match.window_source] if kv.window_pool is not None else []
        kv.share(lease.pages)
        if kv.window_pool is not None:
            first = kv.first_read(lease.n_cached)
            lease.first_window_page = min(first, len(lease.window_pages))
            lease.window_pages[:first] = [-1] * lease.first_window_page
            kv.window_pool.share(lease.live_window_pages)
        return lease

    def read_page(self, lease: PageLease, index: int) -> bytes:
        """All that a page holds; that of layers with a window behind it, where they need it; after the last the state."""
        kv, states = self.model.kv, self.model.states
        data = kv.read(lease.pages[index], windowed=False)
        if index >= lease.first_window_page:
            pool, page = (
                (kv, lease.pages[index]) if kv.window_pool is None else (kv.window_pool, lease.window_pages[index])
            )
            data += pool.read(page, windowed=True)
        return data if states is None or index < len(lease.pages) - 1 else data + states.read(lease.state)

    def take_page(self) -> int:
        """A page for the caller to own. Raises ResourceError when requests hold them all."""
        self.scheduler.cache.evict(1)
        return self.model.kv.allocate(1)[0]

    def write_page(self, lease: PageLease, data: bytes) -> None:
        """The next page, with what ``read_page`` gave. Raises ResourceError when requests hold them all."""
        kv, states = self.model.kv, self.model.states
        index = len(lease.pages)
        lease.pages.append(self.take_page())
        kv.write(lease.pages[-1], data[: kv.part_bytes[False]], windowed=False)
        rest = data[kv.part_bytes[False] :]
        if index >= lease.first_window_page:
            windowed, rest = rest[: kv.part_bytes[True]], rest[kv.part_bytes[True] :]
            if kv.window_pool is None:
                kv.write(lease.pages[-1], windowed, windowed=True)
            elif index >= kv.first_read(lease.n_cached):
                self.scheduler.cache.evict_window(1)
                lease.window_pages += [-1] * (index - len(lease.window_pages)) + kv.window_pool.allocate(1)
                kv.window_pool.write(lease.window_pages[-1], windowed, windowed=True)
        if states is not None and rest and self.scheduler.checkpoints.take(lease):
            states.write(lease.state, rest, lease.n_cached)

    def cache_lease(self, tokens: list[int], lease: PageLease) -> None:
        """Put pages that the caller owns, and which hold ``tokens``, into the cache; the caller's no longer."""
        cache, size = self.scheduler.cache, self.model.kv.page_tokens
        node = cache.root
        for i, page in enumerate(lease.pages):
            window_page = lease.window_pages[i] if i < len(lease.window_pages) else -1
            node = cache.add(node, tuple(tokens[i * size : (i + 1) * size]), page, window_page)
        if cache.ends_at(node, len(tokens) - (len(lease.pages) - 1) * size):
            self.scheduler.checkpoints.give(node, lease)
        self.release_lease(lease)

    def release_lease(self, lease: PageLease) -> None:
        """Give up pages that the caller owns."""
        kv = self.model.kv
        kv.release(lease.pages)
        if kv.window_pool is not None:
            kv.window_pool.release(lease.live_window_pages)
        self.scheduler.checkpoints.free(lease)
        lease.pages, lease.window_pages = [], []

    def clear_cache(self) -> None:
        if self.loaded:
            self.scheduler.cache.evict(self.model.kv.n_pages)
            if self.model.kv.window_pool is not None:
                self.scheduler.cache.evict_window(self.model.kv.window_pool.n_pages)

    def cancel_all(self) -> None:
        for sequence in self._live:
            sequence.cancelled = True

    def kv_usage(self) -> KVUsage:
        kv = self.model.kv
        window_pool, states = kv.window_pool, self.model.states
        n_window_pages, n_states = (
            0 if window_pool is None else window_pool.n_pages,
            0 if states is None else states.n_slots,
        )
        if not self.loaded:
            return KVUsage(kv.n_pages, 0, 0, kv.page_tokens, n_window_pages, states=n_states)
        cache, states_kept = self.scheduler.cache, self.scheduler.checkpoints.n_kept
        kept, window_kept = cache.evictable(), cache.window_evictable()
        return KVUsage(
            kv.n_pages, kv.n_pages - kv.n_free - kept, kept, kv.page_tokens,
            n_window_pages, 0 if window_pool is None else n_window_pages - window_pool.n_free - window_kept, window_kept,
            n_states, 0 if states is None else n_states - states.n_free - states_kept, states_kept,
        )  # fmt: skip

    def _step(self) -> None:
        """One step for all sequences."""
        began = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan:
            self._retire()
            return
        page_tokens = self.model.kv.page_tokens
        chunks = []
        for sequence, tokens, outputs in plan:
            end = sequence.n_cached + len(tokens)
            count = -(-end // page_tokens)
            pages, window_pages = sequence.pages[:count], sequence.window_pages[:count]
            chunks.append(
                Chunk(
                    tokens,
                    sequence.n_cached,
                    pages,
                    outputs,
                    window_pages=window_pages,
                    state=sequence.state,
                    n_source=sequence.n_source,
                )
            )
        try:
            rows = self.model.forward(chunks)
        except BaseException as error:
            for work in plan:
                work.sequence.fail(error)
            self._retire()
            return
        self._advance(plan, rows)
        self.scheduler.observe(time.perf_counter() - began)
        self._retire()

    def _advance(self, plan: list[ScheduledChunk], rows: np.ndarray[Any, Any]) -> None:
        first = 0
        for sequence, tokens, outputs in plan:
            # There are no logits of a source.
            last = first + _ROWS.get(outputs, len(tokens) - max(0, sequence.n_source - sequence.n_cached))
            try:
                if sequence.wants_hidden:
                    sequence.hidden = self.model.hidden[first:last]
                if sequence.on_prompt is not None and not sequence.prompt_done:
                    sequence.on_prompt(min(sequence.n_cached + len(tokens), sequence.n_prompt), sequence.n_prompt)
                sequence.advance(len(tokens), rows[first:last], self.sampler)
            except BaseException as error:  # of a user's own function, whatever it raises
                sequence.fail(error)
            else:
                if sequence.shifted:
                    self.scheduler.recompute(sequence)
                else:
                    self.scheduler.on_computed(sequence)
            first = last
        for sequence, _, _ in plan:
            try:
                self._live.update(dict.fromkeys(sequence.after_step(self.scheduler)))
            except BaseException as error:
                sequence.fail(error)

    def _retire(self) -> None:
        """End cancelled sequences, and let go of all that have ended."""
        ended = []
        # The end of one may be the end of others; nobody hears of it before all their pages are free.
        while gone := [each for each in self._live if each.cancelled or each.done]:
            for sequence in gone:
                if not sequence.done:
                    try:
                        sequence.cancel()
                    except Exception as error:
                        sequence.fail(error)
                del self._live[sequence]
                self.scheduler.remove(sequence)
            ended += gone
        for sequence in ended:
            with contextlib.suppress(Exception):  # an event loop that is closed; nobody is there to hear of it
                sequence.ended()


def _refuse(sequences: list[Sequence], error: BaseException) -> None:
    """End sequences that were not taken in."""
    for sequence in sequences:
        sequence.fail(error)
        with contextlib.suppress(Exception):  # an event loop that is closed
            sequence.ended()
