"""The engine: runs steps for whoever waits for a result, one step at a time.

There is no thread of its own. A thread that needs a token takes the wheel when nobody has it, runs one step for *all*
sequences, and passes it on; the others sleep until their token is there. So several threads may use one engine, their
requests share steps, and a stream that nobody reads costs nothing.

While state changes, Ctrl-C is held back (``gumba.engine.interrupts``), so it strikes between steps, or in the wait for
another thread's step. That wait is on a queue of the waiter's own: no lock is held there.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ordered
from typing import Any, Protocol

import numpy as np

from gumba.engine.interrupts import Held
from gumba.engine.scheduler import PagePool, Scheduler
from gumba.engine.sequence import Generation, Sequence
from gumba.errors import EngineError
from gumba.models import Chunk
from gumba.outputs import StreamOutput
from gumba.sampling.sampler import Sampler

_ROWS = {"none": 0, "last": 1}


class Runner(Protocol):
    """What the engine needs of ``gumba.models.Model``."""

    @property
    def kv(self) -> PagePool: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    def forward(self, chunks: Ordered[Chunk], /) -> np.ndarray[Any, Any]: ...

    def close(self) -> None: ...


class Engine:
    """Runs sequences on a model, of whose logits the first ``n_vocab`` are tokens."""

    def __init__(self, model: Runner, n_vocab: int, *, max_sequences: int) -> None:
        self._model = model
        self._scheduler = Scheduler(model.kv, max_batch_tokens=model.max_batch_tokens, max_sequences=max_sequences)
        self._sampler = Sampler(n_vocab)
        #: Tokens that fit the context of one sequence.
        self.capacity = min(model.n_ctx, model.kv.n_pages * model.kv.page_tokens)
        self._pid = os.getpid()
        self._closed = False
        self._model_closed = False
        self._turn = threading.RLock()
        self._driver: int | None = None  # the thread at the wheel
        self._waiters: deque[queue.SimpleQueue[None]] = deque()
        self._incoming: deque[Sequence] = deque()
        self._live: dict[Sequence, None] = {}
        self._reaping = False

    def check_usable(self) -> None:
        """Raise EngineError when the engine is closed, or this process was forked after it was made."""
        if os.getpid() != self._pid:
            raise EngineError(
                f"the model was loaded in process {self._pid}, and its threads do not exist in this fork of it "
                f"(process {os.getpid()}): load the model after forking, or start processes with 'spawn'"
            )
        if self._closed:
            raise EngineError("the model is closed")

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Take in sequences; each must be given to ``discard`` in the end, whatever happens."""
        self.check_usable()
        with Held(), self._turn:
            self.check_usable()
            for sequence in sequences:
                self._live[sequence] = None
                self._incoming.append(sequence)

    def next_event(self, sequence: Generation) -> StreamOutput:
        """The next token of a sequence that is not at its end, waited for or computed here. Raises its error."""
        self._run_until(lambda: bool(sequence.events) or sequence.done)
        if not sequence.events and sequence.error is not None:
            raise sequence.error
        return sequence.events.popleft()

    def finish(self, sequences: Ordered[Sequence]) -> None:
        """Compute sequences to their ends. Raises the first error among them."""
        self._run_until(lambda: all(each.done for each in sequences) or any(each.error for each in sequences))
        for each in sequences:
            if each.error is not None:
                raise each.error

    def discard(self, sequences: Iterable[Sequence]) -> None:
        """Give up sequences in any state. Their pages are free at once, or when the step now running has ended.

        Waits for no step: it may be called by the garbage collector, in the middle of a step.
        """
        for each in sequences:
            each.cancelled = True
        if os.getpid() != self._pid:
            return
        # The lock is re-entrant and never held for long. Whoever is at the wheel reaps when the step ends.
        with Held(), self._turn:
            if self._driver is None:
                self._reap()

    def cancel(self) -> None:
        """End all sequences as cancelled before the next step. For any thread, and for signal handlers."""
        self.discard(list(self._live))

    def close(self) -> None:
        """Cancel everything, wait for the step now running, and close the model. In a forked child: do nothing.

        In a signal handler that has interrupted a step of this very thread, the step's end closes the model.
        """
        if os.getpid() != self._pid:
            return
        while not self._model_closed:
            waiter: queue.SimpleQueue[None] = queue.SimpleQueue()
            with Held(), self._turn:
                self._closed = True
                for each in self._live:
                    each.cancelled = True
                if self._driver is None:
                    self._pass_on()
                    return
                if self._driver == threading.get_ident():
                    return
                self._waiters.append(waiter)
            self._wait(waiter)

    def _run_until(self, ready: Callable[[], bool]) -> None:
        """Return once ``ready()``; run steps meanwhile, or sleep while another thread does."""
        while not ready():
            if os.getpid() != self._pid:
                self.check_usable()  # the lock may have been held when this process was forked
            waiter: queue.SimpleQueue[None] | None = None
            with Held():
                with self._turn:
                    if ready():
                        return
                    if self._driver is None:
                        self.check_usable()
                        self._driver = threading.get_ident()
                    elif self._driver == threading.get_ident():
                        raise EngineError("the engine is asked for tokens by a handler that interrupts its own step")
                    else:
                        waiter = queue.SimpleQueue()
                        self._waiters.append(waiter)
                if waiter is None:
                    try:
                        self._step()
                    finally:
                        with self._turn:
                            self._driver = None
                            self._pass_on()
            if waiter is not None:
                self._wait(waiter)

    def _wait(self, waiter: queue.SimpleQueue[None]) -> None:
        """Sleep until the step now running has ended."""
        try:
            waiter.get(timeout=1.0)
        except queue.Empty:
            pass
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _pass_on(self) -> None:
        """Let go of what has ended and wake who waits; with the lock held and nobody at the wheel."""
        self._reap()
        if self._closed and not self._model_closed:
            self._model_closed = True
            self._model.close()
        while self._waiters:
            self._waiters.popleft().put(None)

    def _step(self) -> None:
        """One step for all sequences; only for the thread at the wheel."""
        with self._turn:
            self._reap()
            while self._incoming:
                sequence = self._incoming.popleft()
                if not sequence.done:
                    self._scheduler.add(sequence)
        plan = self._scheduler.plan()
        if not plan:
            return
        page_tokens = self._model.kv.page_tokens
        chunks = []
        for sequence, count, outputs in plan:
            start, end = sequence.n_cached, sequence.n_cached + count
            pages = sequence.pages[: -(-end // page_tokens)]
            chunks.append(Chunk(tokens=sequence.tokens[start:end], position=start, pages=pages, outputs=outputs))
        try:
            rows = self._model.forward(chunks)
        except Exception as error:
            for work in plan:
                work.sequence.fail(error)
            return
        first = 0
        for sequence, count, outputs in plan:
            last = first + _ROWS.get(outputs, count)
            try:
                sequence.advance(count, rows[first:last], self._sampler)
            except Exception as error:
                sequence.fail(error)
            except BaseException:
                # An interrupt of this thread, while it worked for a sequence that may be another's.
                sequence.fail(EngineError("interrupted while a token was being chosen"))
                raise
            first = last

    def _reap(self) -> None:
        """End cancelled sequences, and let go of all that have ended; with the lock held.

        The collector or a signal handler may cancel more sequences meanwhile, in this very thread: the loop sees them.
        """
        if self._reaping:
            return
        self._reaping = True
        try:
            while ended := [each for each in list(self._live) if each.cancelled or each.done]:
                for sequence in ended:
                    try:
                        if not sequence.done:
                            sequence.cancel()
                    except Exception as error:
                        sequence.fail(error)
                    del self._live[sequence]
                    self._scheduler.remove(sequence)
        finally:
            self._reaping = False
