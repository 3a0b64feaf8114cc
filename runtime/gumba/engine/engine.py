"""The engine: one thread owns a model and computes step after step; any other thread, or asyncio task, submits and waits.

Orders reach the engine through a queue that may be written to anywhere: by any thread, in a signal handler, by the garbage
collector. What comes of a request goes to its ``deliver``, called in the engine's thread. So no state is shared, no lock is
lease by a caller, and Ctrl-C, which only strikes the main thread, only ever ends a wait.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered
from typing import TYPE_CHECKING, Any, TypeVar

from gumba.engine.core import CLOSE, WAKE, Command, EngineCore, PageLease, Runner
from gumba.engine.sequence import Generation, Sequence
from gumba.errors import EngineError, ResourceError
from gumba.outputs import KVUsage, StreamOutput

if TYPE_CHECKING:
    import asyncio

#: A wait is interrupted this often to see whether somebody is there to end it, in seconds.
_LOOK_S = 1.0

T = TypeVar("T")


class Engine:
    """Runs sequences on a model, of whose logits the first ``n_vocab`` are tokens.

    ``draft_models``: models that its sequences draft with, closed before this one. ``unload_after``: seconds without anything to
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
        draft_models: Ordered[Runner] = (),
        unload_after: float | None = None,
        load: Callable[[], Ordered[Runner]] | None = None,
    ) -> None:
        #: Tokens that fit the context of one sequence.
        self.capacity = min(model.n_ctx, model.kv.n_pages * model.kv.page_tokens)
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
        """Raise EngineError when the engine is closed, or this process was forked after it was made."""
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
        """Take in sequences; each must be given to ``discard`` in the end, whatever happens.

        When too many wait, none of them is taken in: they end with a QueueFullError. Raises EngineError in the engine's own
        thread, which would wait for itself.
        """
        self.check_usable()
        if threading.current_thread() is self._thread:
            raise EngineError(
                "a request was made in a function that the engine calls (a logits processor, a progress callback), and would "
                "wait for itself: make it in another thread, or after this request"
            )
        self._inbox.put(list(sequences))
        self.check_usable()  # it may have ended in between, without a look at this order

    def discard(self, sequences: Iterable[Sequence]) -> None:
        """Give up sequences in any state; they end before the next step. Waits for nothing: it may be called anywhere."""
        unfinished = [each for each in sequences if not each.done]
        for each in unfinished:
            each.cancelled = True
        if unfinished:
            self._inbox.put(WAKE)

    def cancel(self) -> None:
        """End all sequences as cancelled before the next step. For any thread, and for signal handlers."""
        self._inbox.put(self._core.cancel_all)

    def call(self, function: Callable[[], T], needs_model: bool = True) -> T:
        """Run ``function`` in the engine's thread between two steps; its result. For what touches the model or its pages."""
        self.check_usable()
        if threading.current_thread() is self._thread:
            return function()
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._inbox.put(Command(function, answer, needs_model))
        self.check_usable()
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
                token = _token(self.take(results))
                if token is None:
                    running -= 1
                else:
                    yield token
        finally:
            self.discard(sequences)

    async def astream(self, sequences: Ordered[Generation]) -> AsyncGenerator[StreamOutput, None]:
        """As ``stream``, for an event loop."""
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

    def lease(self, tokens: list[int]) -> PageLease:
        """As ``EngineCore.lease``."""
        return self.call(lambda: self._core.lease(tokens))

    def read_page(self, lease: PageLease, index: int) -> bytes:
        """As ``EngineCore.read_page``."""
        return self.call(lambda: self._core.read_page(lease, index))

    def write_page(self, lease: PageLease, data: bytes) -> None:
        """As ``EngineCore.write_page``."""
        self.call(lambda: self._core.write_page(lease, data))

    def cache_lease(self, tokens: list[int], lease: PageLease) -> None:
        """As ``EngineCore.cache_lease``."""
        self.call(lambda: self._core.cache_lease(tokens, lease))

    def release_lease(self, lease: PageLease) -> None:
        """As ``EngineCore.release_lease``."""
        self.call(lambda: self._core.release_lease(lease))

    def clear_cache(self) -> None:
        """Give up the pages that no request holds."""
        self.call(self._core.clear_cache, needs_model=False)

    def close(self) -> None:
        """Cancel everything, wait for the step now running, and close the model. In a forked child: do nothing."""
        if os.getpid() != self._pid:
            return
        self._closed = True
        self._inbox.put(CLOSE)
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _token(item: StreamOutput | Sequence) -> StreamOutput | None:
    """A token of a stream; None when the sequence has ended. Raises what it ended with."""
    if not isinstance(item, Sequence):
        return item
    if item.error is not None:
        raise item.error
    return None


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes, so that no thread is in the middle of something then."""
    for engine in list(_engines):
        engine.close()


def _forget(inbox: queue.SimpleQueue[Any], pid: int) -> None:
    """Nobody has the engine any more: let its thread end too."""
    if os.getpid() == pid:
        inbox.put(CLOSE)
