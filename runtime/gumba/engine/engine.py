"""The engine: one thread owns a model and computes step after step; any other thread, or asyncio task, submits and waits.

Orders reach the engine through a queue that may be written to anywhere: by any thread, in a signal handler, by the garbage
collector. What comes of a request goes to its ``deliver``, called in the engine's thread. So no state is shared, no lock is
held by a caller, and Ctrl-C, which only strikes the main thread, only ever ends a wait.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from gumba.engine.scheduler import PagePool, Scheduler, Work
from gumba.engine.sequence import Generation, Sequence
from gumba.errors import EngineError, QueueFullError, ResourceError
from gumba.models import Chunk
from gumba.outputs import KVUsage, StreamOutput
from gumba.sampling.sampler import Sampler

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("gumba")

_ROWS = {"none": 0, "last": 1}
#: A wait is interrupted this often to see whether somebody is there to end it, in seconds.
_LOOK_S = 1.0

T = TypeVar("T")


class Runner(Protocol):
    """What the engine needs of ``gumba.models.Model``."""

    @property
    def kv(self) -> PagePool: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def hidden(self) -> np.ndarray[Any, Any]: ...

    def forward(self, chunks: Ordered[Chunk], /) -> np.ndarray[Any, Any]: ...

    def close(self) -> None: ...


@dataclass
class _Call:
    """Something for the engine's thread to do between two steps."""

    function: Callable[[], object]
    answer: queue.SimpleQueue[tuple[object, BaseException | None]]
    needs_model: bool


_CLOSE = object()
_WAKE = object()


class Engine:
    """Runs sequences on a model, of whose logits the first ``n_vocab`` are tokens.

    ``also_close``: models that its sequences draft with, closed before this one. ``unload_after``: seconds without anything to
    do after which all are closed; ``load()`` gives them anew, this model first, when something is to be done again.
    ``max_queue``: sequences that may wait while ``max_sequences`` run; None: any number. Raises ResourceError when the thread
    cannot be started. The thread ends when the engine is closed or forgotten.
    """

    def __init__(
        self,
        model: Runner,
        n_vocab: int,
        *,
        max_sequences: int,
        max_queue: int | None = None,
        also_close: Ordered[Runner] = (),
        unload_after: float | None = None,
        load: Callable[[], Ordered[Runner]] | None = None,
    ) -> None:
        #: Tokens that fit the context of one sequence.
        self.capacity = min(model.n_ctx, model.kv.n_pages * model.kv.page_tokens)
        self._core = _Core(model, n_vocab, max_sequences, also_close)
        self._core.patience, self._core.reload = (unload_after, load) if load is not None else (None, None)
        self._core.most_present = None if max_queue is None else max_sequences + max_queue
        self._orders = self._core.orders
        self._pid = os.getpid()
        self._closed = False
        self._thread = threading.Thread(target=self._core.run, name="gumba-engine", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            model.close()
            raise ResourceError(f"cannot start the engine's thread ({error})") from None
        weakref.finalize(self, _forget, self._core.orders, self._pid)
        _engines.add(self)

    def check_usable(self) -> None:
        """Raise EngineError when the engine is closed, or this process was forked after it was made."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was loaded in process {self._pid}, and its threads do not exist in this fork of it "
                f"(process {os.getpid()}): load the model after forking, or start processes with 'spawn'"
            )
        if self._closed:
            raise EngineError("the model is closed")
        if not self._thread.is_alive():
            raise EngineError("the engine's thread has ended") from self._core.broken

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Take in sequences; each must be given to ``discard`` in the end, whatever happens.

        When too many wait, none of them is taken in: they end with a QueueFullError.
        """
        self.check_usable()
        taken = list(sequences)
        self._orders.put(taken)
        if not self._thread.is_alive():  # it has ended in between, perhaps without a look at this order
            self.check_usable()

    def discard(self, sequences: Iterable[Sequence]) -> None:
        """Give up sequences in any state; they end before the next step. Waits for nothing: it may be called anywhere."""
        unfinished = [each for each in sequences if not each.done]
        for each in unfinished:
            each.cancelled = True
        if unfinished:
            self._orders.put(_WAKE)

    def cancel(self) -> None:
        """End all sequences as cancelled before the next step. For any thread, and for signal handlers."""
        self._orders.put(self._core.cancel_all)

    def call(self, function: Callable[[], T], needs_model: bool = True) -> T:
        """Run ``function`` in the engine's thread between two steps; its result. For what touches the model or its pages."""
        self.check_usable()
        if threading.current_thread() is self._thread:
            return function()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._orders.put(_Call(function, answer, needs_model))
        result: T
        result, error = self.take(answer)
        if error is not None:
            raise error
        return result

    def take(self, results: queue.SimpleQueue[T]) -> T:
        """The next thing that the engine puts into ``results``, waited for."""
        while True:
            if os.getpid() != self._pid:
                self.check_usable()
            try:
                return results.get(timeout=_LOOK_S)
            except queue.Empty:
                self._look(results.empty())

    def _look(self, empty: bool) -> None:
        """Raise EngineError when nobody is there any more who could deliver something."""
        if os.getpid() != self._pid:
            self.check_usable()
        if empty and not self._thread.is_alive():
            raise EngineError("the model is closed") from self._core.broken

    def stream(self, sequences: Ordered[Generation]) -> Iterator[StreamOutput]:
        """Submit sequences; their tokens as they come. Raises the first error."""
        results: queue.SimpleQueue[StreamOutput | Sequence] = queue.SimpleQueue()
        for sequence in sequences:
            sequence.streaming, sequence.deliver = True, results.put
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                item = self.take(results)
                if not isinstance(item, Sequence):
                    yield item
                    continue
                if item.error is not None:
                    raise item.error
                running -= 1
        finally:
            self.discard(sequences)

    async def astream(self, sequences: Ordered[Generation]) -> AsyncIterator[StreamOutput]:
        """As ``stream``, for an event loop."""
        results = self._listen(sequences)
        for sequence in sequences:
            sequence.streaming = True
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                item = await results.get()
                if not isinstance(item, Sequence):
                    yield item
                    continue
                if item.error is not None:
                    raise item.error
                running -= 1
        finally:
            self.discard(sequences)

    async def afinish(self, sequences: Ordered[Sequence]) -> None:
        """As ``finish``, for an event loop."""
        results = self._listen(sequences)
        try:
            self.submit(sequences)
            for _ in sequences:
                ended = await results.get()
                if ended.error is not None:
                    raise ended.error
        finally:
            self.discard(sequences)

    @staticmethod
    def _listen(sequences: Ordered[Sequence]) -> asyncio.Queue[Any]:
        import asyncio

        loop = asyncio.get_running_loop()
        results: asyncio.Queue[Any] = asyncio.Queue()
        for sequence in sequences:
            sequence.deliver = lambda item: loop.call_soon_threadsafe(results.put_nowait, item)
        return results

    def finish(self, sequences: Ordered[Sequence], each: Callable[[Sequence], object] = lambda sequence: None) -> None:
        """Submit sequences and compute them to their ends; ``each`` is called as they end. Raises the first error."""
        results: queue.SimpleQueue[Sequence] = queue.SimpleQueue()
        for sequence in sequences:
            sequence.deliver = results.put
        try:
            self.submit(sequences)
            for _ in sequences:
                ended = self.take(results)
                if ended.error is not None:
                    raise ended.error
                each(ended)
        finally:
            self.discard(sequences)

    def kv_usage(self) -> KVUsage:
        """Who holds the KV cache's pages, after all that was asked for before."""
        return self.call(self._core.kv_usage, needs_model=False)

    def hold(self, tokens: list[int]) -> tuple[list[int], int]:
        """Pages of the cache that hold the beginning of ``tokens``, for the caller to own, and how many tokens they hold."""

        def hold() -> tuple[list[int], int]:
            match = self._core.scheduler.cache.find(tokens, len(tokens))
            pages = [*match.pages, match.source] if match.copied else match.pages
            self._core.model.kv.share(pages)
            return pages, len(match.pages) * self._core.model.kv.page_tokens + match.copied

        return self.call(hold)

    def keep(self, tokens: list[int], pages: list[int]) -> None:
        """Put pages that the caller owns, and which hold ``tokens``, into the cache; the caller's no longer."""

        def keep() -> None:
            cache, kv = self._core.scheduler.cache, self._core.model.kv
            node = cache.root
            for i, page in enumerate(pages):
                node = cache.add(node, tuple(tokens[i * kv.page_tokens : (i + 1) * kv.page_tokens]), page)
            kv.release(pages)

        self.call(keep)

    def take_page(self) -> int:
        """A page for the caller to own. Raises ResourceError when requests hold them all."""

        def take() -> int:
            self._core.scheduler.cache.reclaim(1)
            return self._core.model.kv.allocate(1)[0]

        return self.call(take)

    def release(self, pages: list[int]) -> None:
        """Give up pages that the caller owns."""
        self.call(lambda: self._core.model.kv.release(pages))

    def clear_cache(self) -> None:
        """Give up the pages that no request holds."""
        self.call(self._core.clear_cache, needs_model=False)

    def close(self) -> None:
        """Cancel everything, wait for the step now running, and close the model. In a forked child: do nothing."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        self._orders.put(_CLOSE)
        if threading.current_thread() is not self._thread:
            self._thread.join()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes, so that no thread is in the middle of something then."""
    for engine in list(_engines):
        engine.close()


def _forget(orders: queue.SimpleQueue[Any], pid: int) -> None:
    """Nobody has the engine any more: let its thread end too."""
    if os.getpid() == pid:
        orders.put(_CLOSE)


class _Core:
    """What the engine's thread works with. It does not hold the engine, so that a forgotten engine is collected."""

    def __init__(self, model: Runner, n_vocab: int, max_sequences: int, also_close: Ordered[Runner]) -> None:
        self.model, self._also_close = model, also_close
        self.orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.broken: BaseException | None = None
        self.scheduler = Scheduler(model.kv, max_batch_tokens=model.max_batch_tokens, max_sequences=max_sequences)
        self.sampler = Sampler(n_vocab)
        self._live: dict[Sequence, None] = {}
        self._closing = False
        self._max_sequences = max_sequences
        #: Seconds without anything to do after which the models are closed, and what loads them again.
        self.patience: float | None = None
        self.reload: Callable[[], Ordered[Runner]] | None = None
        self.loaded = True
        #: Sequences that may be here, running or waiting; None: any number.
        self.most_present: int | None = None

    def run(self) -> None:
        """The engine's thread."""
        try:
            while True:
                self._take_orders()
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
            self._reap()
            self.scheduler.cache.clear()
        finally:
            self._close_models()
        self._refuse_orders()

    def _close_models(self) -> None:
        for each in (*self._also_close, self.model):
            each.close()
        self.loaded = False

    def _load(self) -> None:
        """Have the models there. Raises what loading them does."""
        if not self.loaded:
            assert self.reload is not None
            self.model, *self._also_close = self.reload()
            batch = self.model.max_batch_tokens
            self.scheduler = Scheduler(self.model.kv, max_batch_tokens=batch, max_sequences=self._max_sequences)
            self.loaded = True

    def _take_orders(self) -> None:
        """Do what was asked for; wait for it when there is nothing else to do."""
        while True:
            idle = self.scheduler.idle and not self._closing
            try:
                order = self.orders.get(block=idle, timeout=self.patience if idle and self.loaded else None)
            except queue.Empty:
                if not idle:
                    break
                if not self.kv_usage().in_use:  # else somebody outside holds pages: a session is being written
                    self.scheduler.cache.clear()
                    self._close_models()
                continue
            if order is _CLOSE:
                self._closing = True
            elif isinstance(order, _Call):
                self._reap()
                self._answer(order)
            elif isinstance(order, list):
                self._take_in(order)
            elif order is not _WAKE:
                order()
            order = None  # or the last requests would be remembered until others come
            if self.scheduler.idle and self.orders.empty():
                self._reap()
        self._reap()

    def _take_in(self, sequences: list[Sequence]) -> None:
        """Queue sequences that come together: all, or none when there are too many. Here, where they are counted exactly."""
        if self.most_present is not None:
            self._reap()
            here = len(self._live)
            if here + len(sequences) > self.most_present:
                _refuse(
                    sequences,
                    QueueFullError(f"{here} requests are here already, no more than {self.most_present} may be"),
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

    def _answer(self, call: _Call) -> None:
        try:
            if call.needs_model:
                self._load()
            call.answer.put((call.function(), None))
        except BaseException as error:
            call.answer.put((None, error))

    def _refuse_orders(self) -> None:
        """Nobody waits for an answer that never comes."""
        while True:
            try:
                order = self.orders.get_nowait()
            except queue.Empty:
                return
            if isinstance(order, _Call):
                order.answer.put((None, EngineError("the model is closed")))
            elif isinstance(order, list):
                _refuse(order, EngineError("the model is closed"))

    def clear_cache(self) -> None:
        if self.loaded:
            self.scheduler.cache.reclaim(self.model.kv.n_pages)

    def cancel_all(self) -> None:
        for sequence in self._live:
            sequence.cancelled = True

    def kv_usage(self) -> KVUsage:
        kv = self.model.kv
        if not self.loaded:
            return KVUsage(kv.n_pages, 0, 0, kv.page_tokens)
        kept = self.scheduler.cache.idle()
        return KVUsage(kv.n_pages, kv.n_pages - kv.n_free - kept, kept, kv.page_tokens)

    def _step(self) -> None:
        """One step for all sequences."""
        began = time.perf_counter()
        plan = self.scheduler.plan()
        if not plan:
            self._reap()
            return
        page_tokens = self.model.kv.page_tokens
        chunks = []
        for sequence, tokens, outputs in plan:
            end = sequence.n_cached + len(tokens)
            chunks.append(Chunk(tokens, sequence.n_cached, sequence.pages[: -(-end // page_tokens)], outputs))
        try:
            rows = self.model.forward(chunks)
        except BaseException as error:
            for work in plan:
                work.sequence.fail(error)
            self._reap()
            return
        self._advance(plan, rows)
        self.scheduler.observe(time.perf_counter() - began)
        self._reap()

    def _advance(self, plan: list[Work], rows: np.ndarray[Any, Any]) -> None:
        first = 0
        for sequence, tokens, outputs in plan:
            last = first + _ROWS.get(outputs, len(tokens))
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
                    self.scheduler.restart(sequence)
                else:
                    self.scheduler.computed(sequence)
            first = last
        for sequence, _, _ in plan:
            try:
                self._live.update(dict.fromkeys(sequence.after_step(self.scheduler)))
            except BaseException as error:
                sequence.fail(error)

    def _reap(self) -> None:
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
