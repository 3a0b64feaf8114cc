"""Running a program: compiled code executes the records in order, and a team of threads shares each phase's work.

The team is one caller and ``n_threads - 1`` helpers. A helper is a Python thread that calls one compiled function and stays in
it with the GIL released. A step is one call: signals and other work of Python in the calling thread, Ctrl-C included, happen
before or after it.

A phase is a sequence of operations up to a barrier. Its work is divided into chunks: a chunk is one share (``thread`` of
``n_threads``, as kernels take it) of each of the phase's operations, in order. A thread starts with its own chunks, so that it
reads the same weights in every step; after those it steals chunks of other threads, one at a time. A phase ends when all its
chunks are done, and the thread that finished the last one opens the next phase. So a thread without a chunk delays no other: a
slow core does less, and a thread that the system does not run (more threads than cores, a busy machine) delays one phase by the
chunk that it was interrupted in, and later phases not at all.

The threads synchronize on one word, ``STATE``: number of the phase, chunks per thread (as a power of two), first operation. A
chunk is claimed in its owner's cursor: number of the phase, chunks taken. Both only grow. A claim succeeds only while its phase
is open (a chunk of it is not done yet), so a thread that read an outdated ``STATE`` claims nothing, and an operation's record is
read only by a thread that has claimed a chunk of it. Only the counters of done chunks are reset to zero, by the thread that
completes them, before the next phase opens.

A waiting thread spins, then yields the processor, then sleeps on a lock (the interpreter's own portable one, called through its
C address). Everything that the threads share is in one int64 array; words that several threads write are on cache lines of
their own, and done chunks are counted per group of threads first, so that 64 threads do not contend for one line.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels.record import BARRIER, LARGE_STEP, N_TOKENS, RECORD_WORDS, SPLIT_FACTOR
from gumba.errors import EngineError, ResourceError
from gumba.host import allowed_processors, pin_thread
from gumba.jit.jit import entry, inline
from gumba.simd.memory import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    atomic_replace,
    atomic_store,
    call_address,
    call_pointer_int,
    load_i64,
    spin_hint,
    store_i64,
)

log = logging.getLogger("gumba")

# Byte offsets in the shared array. Words that threads write at different times are two cache lines apart, since processors
# fetch lines in pairs.
LINE = 128
STATE = 0
OPS, N_OPS, BATCH, SPLIT_SHIFT = LINE, LINE + 8, LINE + 16, LINE + 24  # of the current step; written before STATE
ACQUIRE, RELEASE, YIELD = LINE + 32, LINE + 40, LINE + 48  # C functions; YIELD may be 0
SPIN, CROWDED = LINE + 56, LINE + 64  # settings
SLEEPERS = 2 * LINE  # number of sleeping threads: never less than the number of slots with SLEEPING set
GROUPS_DONE = 3 * LINE
SLOTS = 4 * LINE  # then per thread: its cursor; whether it sleeps, and its lock; done chunks of the group that it leads
SLEEPING, LOCK, GROUP_DONE = LINE, LINE + 8, 2 * LINE
SLOT_BYTES = 3 * LINE

#: Threads whose done chunks are counted together.
GROUP = 8

# STATE: phase << 18 | log2(chunks) << 16 | first operation, or one of these.
PHASE_BITS = 18
NO_WORK, STOP = 0xFFFF, 0xFFFE
MAX_OPERATIONS = STOP

#: Turns of a waiting loop before a thread steals chunks: one or two microseconds, so that threads of equal speed do not write
#: to each other's cursors.
ALONE = 100
#: Turns before a thread yields the processor: a few tens of microseconds; with more threads than cores, about one.
SPIN_TURNS, CROWDED_SPIN_TURNS = 2000, 40
#: How often a thread yields the processor before it sleeps, in a step and between two: about 0.1 and 1 ms.
YIELDS, IDLE_YIELDS = 300, 3000
#: Sleeping threads that one thread wakes; each of those wakes as many again.
WAKES = 2


@inline
def _slot(shared, thread):
    return shared + SLOTS + thread * SLOT_BYTES


@inline
def _claim(cursor, phase, chunks):
    """The next chunk of a cursor's owner in this phase; -1: none is left, or the phase is over."""
    while True:
        found = atomic_load(cursor)
        taken = found & ((1 << PHASE_BITS) - 1) if found >> PHASE_BITS == phase else 0
        if found >> PHASE_BITS > phase or taken >= chunks:
            return -1
        if atomic_replace(cursor, found, (phase << PHASE_BITS) | (taken + 1)):
            return taken


@inline
def _run(shared, first, share, n_shares, record_bytes):
    """One chunk; returns the first operation of the next phase."""
    batch = load_i64(shared + BATCH)
    end = load_i64(shared + N_OPS)
    op = load_i64(shared + OPS) + first * record_bytes
    while first < end:
        call_address(load_i64(op), op, batch, share, n_shares)
        first += 1
        if load_i64(op + 8 * BARRIER) != 0:
            break
        op += record_bytes
    return first


@inline
def _state(shared, phase, first, record_bytes):
    """The word that opens a phase."""
    if first >= load_i64(shared + N_OPS):
        return (phase << PHASE_BITS) | NO_WORK
    words = load_i64(load_i64(shared + OPS) + first * record_bytes + 8 * SPLIT_FACTOR)
    chunks = (words >> load_i64(shared + SPLIT_SHIFT)) & 3
    return (phase << PHASE_BITS) | (chunks << 16) | first


@inline
def _wake(shared, n_threads):
    """Wake some of the sleeping threads, the caller of the step first. Each of them wakes others when it runs again."""
    if atomic_load(shared + SLEEPERS) == 0:
        return
    woken = 0
    for thread in range(n_threads):
        slot = _slot(shared, thread)
        if atomic_load(slot + SLEEPING) == 1 and atomic_exchange(slot + SLEEPING, 0) == 1:
            atomic_add(shared + SLEEPERS, -1)
            call_pointer_int(load_i64(shared + RELEASE), load_i64(slot + LOCK), 0)
            woken += 1
            if woken == WAKES:
                return


@inline
def _done(shared, owner, count, n_threads, state, end, record_bytes):
    """Count chunks of ``owner`` that were done in this phase; the thread that counts the last one opens the next phase."""
    leader = owner // GROUP * GROUP
    in_group = min(GROUP, n_threads - leader) << ((state >> 16) & 3)
    counter = _slot(shared, leader) + GROUP_DONE
    if atomic_add(counter, count) + count < in_group:
        return
    atomic_store(counter, 0)
    n_groups = (n_threads + GROUP - 1) // GROUP
    if n_groups > 1:
        if atomic_add(shared + GROUPS_DONE, 1) + 1 < n_groups:
            return
        atomic_store(shared + GROUPS_DONE, 0)
    # An exchange, not a plain store: other threads must read the new STATE before SLEEPERS is read here.
    opened = _state(shared, (state >> PHASE_BITS) + 1, end, record_bytes)
    atomic_exchange(shared + STATE, opened)
    # With more threads than cores, threads that sleep within a step are woken for the next step only: it is faster.
    if opened & 0xFFFF == NO_WORK or load_i64(shared + CROWDED) == 0 or load_i64(shared + SPLIT_SHIFT) != 0:
        _wake(shared, n_threads)


@inline
def _work(shared, thread, n_threads, state, record_bytes):
    """Compute a thread's own chunks of a phase, then steal those that are left of the other threads'."""
    phase = state >> PHASE_BITS
    first = state & 0xFFFF
    chunks = 1 << ((state >> 16) & 3)
    owner = thread
    for _ in range(n_threads):
        count, end = 0, 0
        cursor = _slot(shared, owner)
        while True:
            chunk = _claim(cursor, phase, chunks)
            if chunk < 0:
                break
            end = _run(shared, first, owner * chunks + chunk, n_threads * chunks, record_bytes)
            count += 1
        if count > 0:
            _done(shared, owner, count, n_threads, state, end, record_bytes)
        if owner == thread:
            turn = 0
            while turn < ALONE and atomic_load(shared + STATE) == state:
                turn += 1
                spin_hint()
        if atomic_load(shared + STATE) != state:
            return
        owner += 1
        if owner == n_threads:
            owner = 0


@inline
def _sleep(shared, thread, n_threads, state):
    slot = _slot(shared, thread)
    atomic_add(shared + SLEEPERS, 1)
    atomic_exchange(slot + SLEEPING, 1)
    # STATE may have changed before the flag was set. The thread that clears the flag releases the lock: if another does, take it.
    if atomic_load(shared + STATE) != state and atomic_exchange(slot + SLEEPING, 0) == 1:
        atomic_add(shared + SLEEPERS, -1)
    else:
        call_pointer_int(load_i64(shared + ACQUIRE), load_i64(slot + LOCK), 1)
        _wake(shared, n_threads)


@inline
def _wait(shared, thread, n_threads, state):
    """Wait until STATE is not ``state``; returns the new one."""
    spin = load_i64(shared + SPIN)
    max_turns = spin + (IDLE_YIELDS if state & 0xFFFF == NO_WORK else YIELDS)
    turn = 0
    while True:
        now = atomic_load(shared + STATE)
        if now != state:
            return now
        turn += 1
        if turn > max_turns:
            _sleep(shared, thread, n_threads, state)
            turn = 0
        elif turn > spin and load_i64(shared + YIELD) != 0:
            call_pointer_int(load_i64(shared + YIELD), 0, 0)
        else:
            spin_hint()


@entry("void(i8, i8, i8, i8, i8, i8)")
def run_step(shared, ops, n_ops, batch, n_threads, record_bytes):
    """The caller's part of one step: open its first phase, wake sleeping threads, work as thread 0 until all is done."""
    store_i64(shared + OPS, ops)
    store_i64(shared + N_OPS, n_ops)
    store_i64(shared + BATCH, batch)
    if n_threads == 1:
        first = 0
        while first < n_ops:
            first = _run(shared, first, 0, 1, record_bytes)
        return
    large = n_ops > 0 and load_i64(batch + N_TOKENS) >= LARGE_STEP
    store_i64(shared + SPLIT_SHIFT, 8 if large else 0)
    state = _state(shared, (atomic_load(shared + STATE) >> PHASE_BITS) + 1, 0, record_bytes)
    atomic_exchange(shared + STATE, state)
    _wake(shared, n_threads)
    while state & 0xFFFF != NO_WORK:
        _work(shared, 0, n_threads, state, record_bytes)
        state = _wait(shared, 0, n_threads, state)


@entry("void(i8, i8)")
def stop_team(shared, n_threads):
    """Make the helpers end. No step may be running."""
    atomic_exchange(shared + STATE, (((atomic_load(shared + STATE) >> PHASE_BITS) + 1) << PHASE_BITS) | STOP)
    _wake(shared, n_threads)


@entry("void(i8, i8, i8, i8)")
def help_team(shared, thread, n_threads, record_bytes):
    """A helper's loop: work in each phase until the team stops."""
    state = NO_WORK
    while True:
        state = _wait(shared, thread, n_threads, state)
        if state & 0xFFFF == STOP:
            return
        if state & 0xFFFF != NO_WORK:
            _work(shared, thread, n_threads, state, record_bytes)


def _yield_address() -> int:
    """Address of the C function that yields the processor to other threads; 0 where none is known."""
    try:
        library = ctypes.WinDLL("kernel32") if os.name == "nt" else ctypes.CDLL(None)  # type: ignore[attr-defined]
        function = library.SwitchToThread if os.name == "nt" else library.sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Team:
    """Threads that run programs, one job at a time.

    ``processors``: helper i is pinned to the i-th of these (modulo their number); None: the system places them. The caller is
    the application's own thread and never pinned. Raises ResourceError when a thread cannot be started.
    """

    def __init__(self, n_threads: int, processors: Sequence[int] | None = None) -> None:
        self.n_threads = n_threads
        self._shared = np.zeros((SLOTS + n_threads * SLOT_BYTES + LINE) // 8, np.int64)
        self._address = -(-self._shared.ctypes.data // LINE) * LINE
        self._set(STATE, NO_WORK)
        self._pid = os.getpid()
        self._closed = False
        self._busy = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._locks: list[int] = []  # one for each thread to sleep on
        self._run_step = run_step.bare
        if n_threads > 1:
            try:
                self._start(processors)
            except BaseException:
                self.close()
                raise

    def _start(self, processors: Sequence[int] | None) -> None:
        api = ctypes.pythonapi
        api.PyThread_allocate_lock.restype = ctypes.c_void_p
        api.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
        api.PyThread_free_lock.argtypes = [ctypes.c_void_p]
        for offset, function in ((ACQUIRE, api.PyThread_acquire_lock), (RELEASE, api.PyThread_release_lock)):
            self._set(offset, ctypes.cast(function, ctypes.c_void_p).value or 0)
        self._set(YIELD, _yield_address())
        crowded = self.n_threads > len(allowed_processors())
        self._set(CROWDED, int(crowded))
        self._set(SPIN, CROWDED_SPIN_TURNS if crowded else SPIN_TURNS)
        stop_team.compile()
        help_team.compile()
        for thread in range(self.n_threads):
            lock = api.PyThread_allocate_lock()
            if not lock:
                raise ResourceError("cannot allocate a lock for a helper thread")
            api.PyThread_acquire_lock(lock, 1)  # acquired from the start: a thread sleeps on it until it is released
            self._locks.append(lock)
            self._set(SLOTS + thread * SLOT_BYTES + LOCK, lock)
        for thread in range(1, self.n_threads):
            processor = processors[thread % len(processors)] if processors else None
            helper = threading.Thread(
                target=_help,
                args=(self._shared, self._address, thread, self.n_threads, processor),
                name=f"gumba-{thread}",
                daemon=True,
            )
            try:
                helper.start()
            except RuntimeError as error:
                raise ResourceError(
                    f"cannot start thread {thread + 1} of {self.n_threads} ({error}): use fewer threads"
                ) from None
            self._helpers.append(helper)

    def _set(self, offset: int, value: int) -> None:
        ctypes.c_int64.from_address(self._address + offset).value = value

    def run(self, ops: np.ndarray, batch: np.ndarray) -> None:
        """Run a program's records (int64 [n, RECORD_WORDS]) once, with one batch record (int64). Raises EngineError if closed."""
        if os.getpid() != self._pid:  # checked first: the lock may have been taken when the process was forked
            raise EngineError("this process was forked after the model was loaded: load the model in the child instead")
        if len(ops) > MAX_OPERATIONS:
            raise EngineError(f"a program of {len(ops)} operations, expected no more than {MAX_OPERATIONS}")
        with self._busy:
            if self._closed:
                raise EngineError("the engine is closed")
            ops_address, batch_address = (array.__array_interface__["data"][0] for array in (ops, batch))
            self._run_step(self._address, ops_address, len(ops), batch_address, self.n_threads, ops.strides[0])

    def close(self) -> None:
        """Wait for the current step, then end the helpers. Closing twice is harmless."""
        if os.getpid() != self._pid:  # a fork's child has no helpers
            self._closed = True
            return
        with self._busy:
            helpers, self._helpers = self._helpers, []
            locks, self._locks = self._locks, []
            self._closed = True
            if helpers:
                stop_team(self._address, self.n_threads)
        if sys.is_finalizing():
            return
        for helper in helpers:
            helper.join(1.0)
        if not any(helper.is_alive() for helper in helpers):  # a helper may wake any other
            for lock in locks:
                ctypes.pythonapi.PyThread_free_lock(lock)


def _help(shared: np.ndarray, address: int, thread: int, n_threads: int, processor: int | None) -> None:
    """A helper's thread. It keeps a reference to the memory that its compiled loop reads (``shared``) until that ends."""
    if processor is not None and not pin_thread(processor):
        log.warning("thread %s could not be pinned to processor %s", thread, processor)
    help_team(address, thread, n_threads, 8 * RECORD_WORDS)
    del shared
