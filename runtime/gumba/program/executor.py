"""Running a program: compiled code walks the records, threads meet at a spin barrier after each operation that needs one.

The team is one caller and ``n_threads - 1`` helpers. A helper is a Python thread that enters compiled code once and stays
there with the GIL released: it spins for a while between steps, so that the next token starts at once, then sleeps on a lock
(the interpreter's own portable one, called through its C address) until the caller wakes it. A step is one call: whatever
Python does to the calling thread, Ctrl-C included, happens before or after it.

Everything that the threads share lies in one int64 array, each word on a cache line of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

import numpy as np

from gumba.errors import EngineError
from gumba.kernels.jit import entry, inline
from gumba.kernels.op import RECORD_WORDS
from gumba.simd.memory import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_store,
    call_address,
    call_pointer_int,
    load_i64,
    spin_hint,
    store_i64,
)

# Byte offsets in the shared array.
ARRIVED, PHASE, JOB, STOP = 0, 64, 128, 192
OPS, N_OPS, BATCH = 256, 264, 272  # of the current job; written before JOB
ACQUIRE, RELEASE, YIELD = 320, 328, 336  # C functions: lock, unlock, give up the processor (0 where there is none)
HELPERS = 384  # then per helper: sleeping (0 or 1) at +0, its lock at +8
HELPER_BYTES = 64

#: Turns of a waiting loop before the processor is offered to others: a few tens of microseconds.
SPIN = 2000
#: Turns that a helper waits for the next step before it sleeps: some milliseconds at most.
PATIENCE = 40000


@inline
def _wait_hint(shared, turn):
    if turn > SPIN and load_i64(shared + YIELD) != 0:
        call_pointer_int(load_i64(shared + YIELD), 0, 0)
    else:
        spin_hint()


@inline
def _meet(shared, n_threads):
    phase = atomic_load(shared + PHASE)
    if atomic_add(shared + ARRIVED, 1) == n_threads - 1:
        atomic_store(shared + ARRIVED, 0)
        atomic_add(shared + PHASE, 1)
    else:
        turn = 0
        while atomic_load(shared + PHASE) == phase:
            turn += 1
            _wait_hint(shared, turn)


@inline
def _walk(shared, ops, n_ops, batch, thread, n_threads, record_bytes):
    for i in range(n_ops):
        op = ops + i * record_bytes
        call_address(load_i64(op), op, batch, thread, n_threads)
        if n_threads > 1 and load_i64(op + 8) != 0:
            _meet(shared, n_threads)


@entry("void(i8, i8, i8, i8, i8, i8)")
def run_step(shared, ops, n_ops, batch, n_threads, record_bytes):
    """The caller's part of one step: publish the job, wake who sleeps, work as thread 0."""
    if n_threads > 1:
        store_i64(shared + OPS, ops)
        store_i64(shared + N_OPS, n_ops)
        store_i64(shared + BATCH, batch)
        atomic_add(shared + JOB, 1)
        for helper in range(n_threads - 1):
            own = shared + HELPERS + helper * HELPER_BYTES
            if atomic_exchange(own, 0) == 1:
                call_pointer_int(load_i64(shared + RELEASE), load_i64(own + 8), 0)
    _walk(shared, ops, n_ops, batch, 0, n_threads, record_bytes)


@entry("void(i8, i8, i8, i8)")
def help_team(shared, thread, n_threads, record_bytes):
    """A helper's whole life: wait for a job, do its part, until the team stops."""
    own = shared + HELPERS + (thread - 1) * HELPER_BYTES
    done = 0
    while True:
        turn = 0
        while atomic_load(shared + JOB) == done:
            turn += 1
            if turn > PATIENCE:
                atomic_exchange(own, 1)
                # The job may have come between the look and the flag. If the caller saw the flag, it unlocks: then lock.
                if atomic_load(shared + JOB) == done or atomic_exchange(own, 0) == 0:
                    call_pointer_int(load_i64(shared + ACQUIRE), load_i64(own + 8), 1)
                turn = 0
            else:
                spin_hint()
        done = atomic_load(shared + JOB)
        if atomic_load(shared + STOP) != 0:
            return
        _walk(shared, load_i64(shared + OPS), load_i64(shared + N_OPS), load_i64(shared + BATCH), thread, n_threads,
              record_bytes)  # fmt: skip


def _yield_address() -> int:
    """Address of the C function that offers the processor to other threads; 0 where none is known."""
    try:
        library = ctypes.WinDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]
        function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Team:
    """Threads that run programs, one job at a time."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._shared = np.zeros(HELPERS // 8 + 8 * n_threads + 8, np.int64)
        self._address = (self._shared.ctypes.data + 63) // 64 * 64
        self._pid = os.getpid()
        self._closed = False
        self._busy = threading.Lock()
        self._helpers: list[tuple[threading.Thread, int]] = []  # with the lock that each sleeps on
        run_step.compile()
        if n_threads > 1:
            self._start()

    def _start(self) -> None:
        api = ctypes.pythonapi
        api.PyThread_allocate_lock.restype = ctypes.c_void_p
        api.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
        api.PyThread_free_lock.argtypes = [ctypes.c_void_p]
        for offset, function in ((ACQUIRE, api.PyThread_acquire_lock), (RELEASE, api.PyThread_release_lock)):
            self._set(offset, ctypes.cast(function, ctypes.c_void_p).value or 0)
        self._set(YIELD, _yield_address())
        help_team.compile()
        for thread in range(1, self.n_threads):
            lock = api.PyThread_allocate_lock()
            if not lock:
                raise EngineError("cannot allocate a lock for a helper thread")
            api.PyThread_acquire_lock(lock, 1)  # taken from the start: a sleeper waits for the caller to release it
            self._set(HELPERS + (thread - 1) * HELPER_BYTES + 8, lock)
            helper = threading.Thread(
                target=_help,
                args=(self._shared, self._address, thread, self.n_threads),
                name=f"gumba-{thread}",
                daemon=True,
            )
            self._helpers.append((helper, lock))
            helper.start()

    def _set(self, offset: int, value: int) -> None:
        ctypes.c_int64.from_address(self._address + offset).value = value

    def run(self, ops: np.ndarray, batch: np.ndarray) -> None:
        """Run a program's records (int64 [n, RECORD_WORDS]) once, with one batch record (int64)."""
        if os.getpid() != self._pid:  # looked at first: the lock may have been taken when the process was forked
            raise EngineError("this process was forked after the model was loaded: load the model in the child instead")
        with self._busy:
            if self._closed:
                raise EngineError("the engine is closed")
            run_step(self._address, ops.ctypes.data, len(ops), batch.ctypes.data, self.n_threads, ops.strides[0])

    def close(self) -> None:
        """Let the helpers end, after a step that is under way. Harmless when repeated."""
        if os.getpid() != self._pid:  # a fork's child has no helpers
            self._closed = True
            return
        with self._busy:
            helpers, self._helpers = self._helpers, []
            self._closed = True
            if helpers:
                self._set(STOP, 1)
                run_step(self._address, 0, 0, 0, self.n_threads, 0)
        for helper, lock in helpers:
            if not sys.is_finalizing():
                helper.join(1.0)
                if not helper.is_alive():
                    ctypes.pythonapi.PyThread_free_lock(lock)


def _help(shared: np.ndarray, address: int, thread: int, n_threads: int) -> None:
    """A helper's thread. It holds on to the memory that its compiled loop reads (``shared``) until that has ended."""
    help_team(address, thread, n_threads, 8 * RECORD_WORDS)
    del shared
