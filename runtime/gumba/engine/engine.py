"""The engine: one thread owns a model and computes step after step; other threads and asyncio tasks submit sequences and wait.

Commands reach the engine through an inbox that any code may write to: any thread, a signal handler, the garbage collector.
Results go to a sequence's ``deliver``, called in the engine's thread. So no state is shared, callers take no lock, and
Ctrl-C, which reaches only the main thread, only ever ends a wait.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered
from typing import TYPE_CHECKING, TypeVar, cast

from gumba.engine.core import Command, EngineCore, Inbox, Signal
from gumba.engine.generation import Generation
from gumba.engine.page_lease import PageLease
from gumba.engine.protocols import Runner
from gumba.engine.sequence import Delivery, Sequence
from gumba.errors import EngineError, ResourceError
from gumba.outputs import KVUsage, StreamOutput

if TYPE_CHECKING:
    import asyncio

#: Waits check this often whether the engine's thread still lives, in seconds.
_CHECK_S = 1.0

T = TypeVar("T")


class Engine:
    """Runs sequences on a model, in a thread of its own.

    The thread ends when the engine is closed or garbage-collected.

    Args:
        model: The model; of its logits, the first ``n_vocab`` are tokens.
        n_vocab: Tokens of the vocabulary.
        max_sequences: Maximum number of running sequences; others wait.
        max_queue: Maximum number of waiting sequences; None: no limit.
        draft_models: Models that sequences draft with, closed before ``model``.
        unload_after: Idle timeout in seconds before the models are unloaded; None: never.
        load: Loads the models again when they are needed: ``model``, then the draft models.

    Raises:
        ResourceError: The thread cannot be started.
    """

    def __init__(
        self,
        model: Runner,
        n_vocab: int,
        *,
        max_sequences: int,
        max_queue: int | None = None,
        draft_models: Ordered[Runner] = (),
        unload_after: float | None = None,
        load: Callable[[], Ordered[Runner]] | None = None,
    ) -> None:
        #: Context length of one sequence in tokens: the model's, or what fits into the KV cache if that is less.
        self.n_ctx = min(model.n_ctx, model.kv.n_pages * model.kv.page_tokens)
        self._core = EngineCore(
            model,
            n_vocab,
            max_sequences=max_sequences,
            max_requests=None if max_queue is None else max_sequences + max_queue,
            draft_models=draft_models,
            idle_timeout=unload_after,
            reload=load,
        )
        self._inbox = self._core.inbox
        self._pid = os.getpid()
        self._closed = False
        self._thread = threading.Thread(target=self._core.run, name="gumba-engine", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            model.close()
            raise ResourceError(f"cannot start the engine's thread ({error})") from None
        weakref.finalize(self, _forget, self._core.inbox, self._pid)
        _engines.add(self)

    def check_usable(self) -> None:
        """Raise EngineError if the engine is closed, or belongs to a process that this one was forked from."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was loaded in process {self._pid}, and its threads do not exist in this fork of it "
                f"(process {os.getpid()}): load the model after forking, or start processes with 'spawn'"
            )
        if self._closed:
            raise EngineError("the model is closed")
        if self._core.ended:
            raise EngineError("the engine's thread has ended") from self._core.broken

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences together. Each must be passed to ``discard`` in the end, whatever happens.

        If too many wait, none of them is queued: they end with a QueueFullError. Raises EngineError if the engine is closed, and
        in the engine's own thread, which would wait for itself.
        """
        self.check_usable()
        if threading.current_thread() is self._thread:
            raise EngineError(
                "a request was made in a function that the engine calls (a logits processor, a progress callback), and would "
                "wait for itself: make it in another thread, or after this request"
            )
        self._inbox.put(list(sequences))
        self.check_usable()  # the thread may have ended in between, without processing this message

    def discard(self, sequences: Iterable[Sequence]) -> None:
        """Cancel sequences that have not ended, before the next step. Does not block: any code may call it."""
        unfinished = [sequence for sequence in sequences if not sequence.done]
        for sequence in unfinished:
            sequence.cancelled = True
        if unfinished:
            self._inbox.put(Signal.WAKE)

    def cancel(self) -> None:
        """Cancel all sequences before the next step. Any thread and any signal handler may call it."""
        self._inbox.put(self._core.cancel_all)

    def call(self, function: Callable[[], T], needs_model: bool = True) -> T:
        """Run ``function`` in the engine's thread between two steps, for access to the model or its pages; returns its result.

        ``needs_model``: load an unloaded model first. Raises what ``function`` raises, and EngineError if the engine is closed.
        """
        self.check_usable()
        if threading.current_thread() is self._thread:
            return function()
        answer: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()
        self._inbox.put(Command(function, answer, needs_model))
        self.check_usable()
        result, error = self.take(answer)
        if error is not None:
            raise error
        return cast("T", result)

    def take(self, results: queue.SimpleQueue[T]) -> T:
        """Wait for the next item that the engine puts into ``results``. Raises EngineError if the engine has ended."""
        while True:
            if os.getpid() != self._pid:
                self.check_usable()
            try:
                return results.get(timeout=_CHECK_S)
            except queue.Empty:
                self._check_alive(results.empty())

    def _check_alive(self, empty: bool) -> None:
        """Raise EngineError if the thread has ended and can deliver nothing more."""
        if os.getpid() != self._pid:
            self.check_usable()
        if empty and not self._thread.is_alive():
            raise EngineError("the model is closed") from self._core.broken

    def stream(self, sequences: Ordered[Generation]) -> Iterator[StreamOutput]:
        """Submit sequences and yield their tokens as they come. Raises the first error of a sequence, and as ``submit``."""
        results: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        for sequence in sequences:
            sequence.streaming, sequence.deliver = True, results.put
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                token = _token(self.take(results))
                if token is None:
                    running -= 1
                else:
                    yield token
        finally:
            self.discard(sequences)

    async def astream(self, sequences: Ordered[Generation]) -> AsyncGenerator[StreamOutput, None]:
        """``stream`` for an event loop."""
        results = self._listen(sequences)
        for sequence in sequences:
            sequence.streaming = True
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                token = _token(await results.get())
                if token is None:
                    running -= 1
                else:
                    yield token
        finally:
            self.discard(sequences)

    def finish(
        self, sequences: Ordered[Sequence], on_end: Callable[[Sequence], object] = lambda sequence: None
    ) -> None:
        """Submit sequences and wait for their ends; ``on_end`` is called with each. Raises the first error, and as ``submit``."""
        results: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        for sequence in sequences:
            sequence.deliver = results.put
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                ended = _ended(self.take(results))
                if ended is not None:
                    running -= 1
                    on_end(ended)
        finally:
            self.discard(sequences)

    async def afinish(self, sequences: Ordered[Sequence]) -> None:
        """``finish`` for an event loop."""
        results = self._listen(sequences)
        try:
            self.submit(sequences)
            running = len(sequences)
            while running:
                running -= _ended(await results.get()) is not None
        finally:
            self.discard(sequences)

    @staticmethod
    def _listen(sequences: Ordered[Sequence]) -> asyncio.Queue[Delivery]:
        """A queue of the running event loop that receives what ``sequences`` deliver."""
        import asyncio

        loop = asyncio.get_running_loop()
        results: asyncio.Queue[Delivery] = asyncio.Queue()

        def deliver(item: Delivery) -> None:
            loop.call_soon_threadsafe(results.put_nowait, item)

        for sequence in sequences:
            sequence.deliver = deliver
        return results

    def kv_usage(self) -> KVUsage:
        """Who owns the KV cache's pages, after all commands so far."""
        return self.call(self._core.kv_usage, needs_model=False)

    def lease(self, tokens: Ordered[int]) -> PageLease:
        """Lease the pages of the longest cached prefix of ``tokens``; ``release_lease`` or ``cache_lease`` ends the lease."""
        return self.call(lambda: self._core.leases.lease(tokens))

    def read_page(self, lease: PageLease, index: int) -> bytes:
        """The content of a leased page, as bytes for ``write_page``."""
        return self.call(lambda: self._core.leases.read_page(lease, index))

    def write_page(self, lease: PageLease, data: bytes) -> None:
        """Add a page with what ``read_page`` returned. Raises ResourceError if requests hold all pages."""
        self.call(lambda: self._core.leases.write_page(lease, data))

    def cache_lease(self, tokens: Ordered[int], lease: PageLease) -> None:
        """Put the pages of a lease, which hold ``tokens``, into the prefix cache, and end the lease."""
        self.call(lambda: self._core.leases.cache(tokens, lease))

    def release_lease(self, lease: PageLease) -> None:
        """End a lease: release its pages and its state slot."""
        self.call(lambda: self._core.leases.release(lease))

    def clear_cache(self) -> None:
        """Evict all cached pages that no request owns."""
        self.call(self._core.clear_cache, needs_model=False)

    def close(self) -> None:
        """Cancel all sequences, wait for the current step, and close the model. Does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        self._inbox.put(Signal.CLOSE)
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _token(item: Delivery) -> StreamOutput | None:
    """A token of a stream; None if the item is a sequence that has ended. Raises the sequence's error."""
    if isinstance(item, Sequence):
        _ended(item)
        return None
    return item


def _ended(item: Delivery) -> Sequence | None:
    """A sequence that has ended; None if the item is a token. Raises the sequence's error."""
    if not isinstance(item, Sequence):
        return None
    if item.error is not None:
        raise item.error
    return item


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close all engines before the interpreter exits, so that no thread is computing then."""
    for engine in list(_engines):
        engine.close()


def _forget(inbox: Inbox, pid: int) -> None:
    """End the thread of an engine that was garbage-collected."""
    if os.getpid() == pid:
        inbox.put(Signal.CLOSE)
