"""The team of threads: right with any number of them, quiet when idle, never stuck, clear errors when it cannot run."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from gumba.backends.cpu.kernels import elementwise
from gumba.backends.cpu.kernels.record import (
    BARRIER,
    FIRST_ARGUMENT,
    LARGE_STEP,
    N_TOKENS,
    RECORD_WORDS,
    SPLIT_FACTOR,
    split_factor,
)
from gumba.backends.cpu.program import executor
from gumba.backends.cpu.program.builder import Program
from gumba.backends.cpu.program.executor import Team
from gumba.errors import EngineError, ResourceError
from gumba.simd.detect import current
from support.programs import batch, named, two_norms

ROWS, WIDTH = 5, 64


class Counter:
    """A program of ``n_ops`` operations that each add 1 to every number, in place; a barrier follows each."""

    def __init__(self, n_ops: int = 3) -> None:
        self.n_ops = n_ops
        self.numbers = np.zeros((ROWS, WIDTH), np.float32)
        self._one = np.ones(WIDTH, np.float32)
        words = elementwise.combine("add").words(
            {"count": N_TOKENS, "x": self.numbers.ctypes.data, "y": self._one.ctypes.data, "y_stride": 0,
             "out": self.numbers.ctypes.data, "stride": 4 * WIDTH, "n_blocks": WIDTH // 32}
        )  # fmt: skip
        self.records = np.zeros((n_ops, RECORD_WORDS), np.int64)
        self.records[:, 0], self.records[:, 1] = elementwise.combine("add").address, 1
        self.records[:, FIRST_ARGUMENT : FIRST_ARGUMENT + len(words)] = words
        self.batch = batch(ROWS)

    def step(self, team: Team) -> None:
        team.run(self.records, self.batch)


def within(seconds: float, work: Callable[[], None]) -> None:
    """Run ``work`` on a thread of its own; fail, instead of hanging, when it does not end."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        pytest.fail(f"stuck for {seconds} s")
    if raised:
        raise raised[0]


@pytest.fixture
def team_of() -> object:
    """Makes teams that are closed after the test."""
    made: list[Team] = []

    def make(n_threads: int) -> Team:
        made.append(Team(n_threads))
        return made[-1]

    yield make
    for team in made:
        within(10, team.close)


@pytest.mark.parametrize("n_threads", [1, 2, 4, 16])
def test_any_number_of_threads(n_threads: int, team_of: Callable[[int], Team]) -> None:
    """16 are more than the machines of our tests have: slower, but it must not collapse."""
    tokens, outputs = np.arange(16, dtype=np.int32), np.array([3, 15, 0], np.int32)
    results = []
    for n in (1, n_threads):
        program = Program(current(), n, 16)
        logits, _ = two_norms(program, named("q4_0"))
        records = program.finish([logits])
        team = team_of(n)
        words = batch(len(tokens), tokens, outputs)

        def steps(team: Team = team, records: np.ndarray = records, words: np.ndarray = words) -> None:
            for _ in range(100):
                team.run(records, words)

        began = time.perf_counter()
        within(60, steps)
        assert time.perf_counter() - began < 30
        results.append(program.rows(logits)[:3, :70].copy())
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_thousands_of_short_steps(n_threads: int, team_of: Callable[[int], Team]) -> None:
    """With pauses around the moment at which helpers fall asleep: each step's work is done once, and none is missed."""
    counter, team, chance = Counter(), team_of(n_threads), random.Random(5)
    n_steps = 3000 if n_threads < 8 else 500

    def steps() -> None:
        for i in range(n_steps):
            counter.step(team)
            assert (counter.numbers == counter.n_ops * (i + 1)).all()
            pause = chance.choice([0, 0, 0, 1e-5, 1e-4, 5e-4, 1e-3])
            until = time.perf_counter() + pause * chance.random()
            if chance.random() < 0.1:
                time.sleep(pause)
            while time.perf_counter() < until:
                pass

    within(90, steps)


@pytest.mark.serial
def test_helpers_sleep_when_there_is_nothing_to_do(team_of: Callable[[int], Team]) -> None:
    counter, team = Counter(), team_of(4)
    within(10, lambda: counter.step(team))
    time.sleep(0.3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    within(10, lambda: counter.step(team))
    assert (counter.numbers == 2 * counter.n_ops).all()


def test_a_step_without_rows_and_a_program_without_operations(team_of: Callable[[int], Team]) -> None:
    counter, team = Counter(), team_of(3)

    def steps() -> None:
        counter.batch[0] = 0
        counter.step(team)
        team.run(np.zeros((0, RECORD_WORDS), np.int64), counter.batch)
        counter.batch[0] = ROWS
        counter.step(team)

    within(10, steps)
    assert (counter.numbers == counter.n_ops).all()


def test_callers_take_turns(team_of: Callable[[int], Team]) -> None:
    counter, team = Counter(), team_of(2)
    callers = [threading.Thread(target=lambda: [counter.step(team) for _ in range(100)]) for _ in range(4)]

    def all_of_them() -> None:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    within(60, all_of_them)
    assert (counter.numbers == 400 * counter.n_ops).all()


def names_of_helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gumba-")]


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_close(n_threads: int) -> None:
    counter, team = Counter(), Team(n_threads)
    counter.step(team)
    assert len(names_of_helpers()) >= n_threads - 1
    before = len(names_of_helpers())
    within(10, team.close)
    assert len(names_of_helpers()) == before - (n_threads - 1)
    within(10, team.close)
    with pytest.raises(EngineError, match="closed"):
        counter.step(team)
    assert (counter.numbers == counter.n_ops).all()


@pytest.mark.serial
def test_close_wakes_sleepers() -> None:
    team = Team(4)
    time.sleep(0.2)
    began = time.perf_counter()
    within(10, team.close)
    assert time.perf_counter() - began < 1.0


def test_close_from_several_threads_at_once() -> None:
    def many() -> None:
        for _ in range(60):
            team, together = Team(3), threading.Barrier(3)

            def close(team: Team = team, together: threading.Barrier = together) -> None:
                together.wait()
                team.close()

            closers = [threading.Thread(target=close) for _ in range(3)]
            for closer in closers:
                closer.start()
            for closer in closers:
                closer.join()

    within(60, many)


def test_teams_come_and_go() -> None:
    """Helpers that still end while the next team starts, and memory that is used again."""

    def many() -> None:
        for i in range(60):
            counter, team = Counter(), Team(3)
            if i % 3:
                counter.step(team)
                assert (counter.numbers == counter.n_ops).all()
            team.close()
            del team
            gc.collect(0)
            np.full(64, -1, np.int64)

    within(60, many)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_child_gets_an_error(busy: bool, team_of: Callable[[int], Team]) -> None:
    """Helpers are not in the child: a step would never end. ``busy``: another thread was in a step at that moment."""
    counter, team = Counter(), team_of(2)
    counter.step(team)
    if busy:
        team._busy.acquire()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            counter.step(team)
        except EngineError as error:
            code = 0 if "fork" in str(error) else 2
            team.close()
        finally:
            os._exit(code)
    if busy:
        team._busy.release()
    until = time.perf_counter() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.perf_counter() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child is stuck")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    within(10, lambda: counter.step(team))
    assert (counter.numbers == 2 * counter.n_ops).all()


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says so, and nothing left behind: those that did start end."""
    before, real = names_of_helpers(), threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "gumba-3":
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResourceError, match=r"thread 4 of 6.*fewer"):
        Team(6)
    assert names_of_helpers() == before


class Scripted:
    """A program whose operations, one to a phase, are Python functions: ``hold(phase, share)``.

    ``took`` notes who ended which share of which phase, ``sizes`` into how many shares phases were cut.
    """

    def __init__(self, n_phases: int, chunks: int, hold: Callable[[int, int], object]) -> None:
        self.took: list[tuple[int, int, str]] = []
        self.sizes: set[int] = set()
        self.hold = hold

        def operation(record: int, words: int, share: int, n_shares: int) -> None:
            phase = (record - self.records.ctypes.data) // self.records.strides[0]
            self.sizes.add(n_shares)
            self.hold(phase, share)
            self.took.append((phase, share, threading.current_thread().name))

        self._function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(operation)
        self.records = np.zeros((n_phases, RECORD_WORDS), np.int64)
        self.records[:, 0] = ctypes.cast(self._function, ctypes.c_void_p).value
        self.records[:, BARRIER], self.records[:, SPLIT_FACTOR] = 1, split_factor(chunks, 8)
        self.batch = batch(1)


@pytest.mark.parametrize("n_threads, chunks", [(2, 1), (2, 4), (3, 8), (9, 2), (17, 1)])
def test_every_chunk_once_and_phases_in_order(n_threads: int, chunks: int, team_of: Callable[[int], Team]) -> None:
    """Nine and seventeen threads count done chunks in groups."""
    program = Scripted(20, chunks, lambda phase, share: time.sleep(0.0002 * (share % 3 == 0)))
    team = team_of(n_threads)
    for _ in range(3):
        program.took.clear()
        within(30, lambda: team.run(program.records, program.batch))
        n_shares = n_threads * chunks
        assert program.sizes == {n_shares}
        assert sorted(t[:2] for t in program.took) == [(p, s) for p in range(20) for s in range(n_shares)]
        assert [t[0] for t in program.took] == sorted(t[0] for t in program.took), "a phase began before the last ended"


def test_a_large_step_is_cut_finer(team_of: Callable[[int], Team]) -> None:
    program, team = Scripted(3, 2, lambda phase, share: None), team_of(2)
    for n_tokens, n_shares in ((LARGE_STEP, 16), (LARGE_STEP - 1, 4)):
        program.sizes.clear()
        program.batch[N_TOKENS // 8] = n_tokens
        within(10, lambda: team.run(program.records, program.batch))
        assert program.sizes == {n_shares}


def test_others_take_the_pieces_of_a_thread_that_is_held_up(team_of: Callable[[int], Team]) -> None:
    """The thread that has the first chunk is held in it until all other chunks of the phase are done."""

    def hold(phase: int, share: int) -> None:
        until = time.perf_counter() + 10
        while share == 0 and sum(t[0] == phase for t in program.took) < 7 and time.perf_counter() < until:
            time.sleep(0.001)

    program, team = Scripted(4, 4, hold), team_of(2)
    within(60, lambda: team.run(program.records, program.batch))
    for phase in range(4):
        runs = [t for t in program.took if t[0] == phase]
        assert runs[-1][1] == 0, "the others waited for the chunk that was held"
        assert all(name != runs[-1][2] for _, share, name in runs if share in (1, 2, 3)), "chunks of thread 0"


def test_sleepers_come_back(team_of: Callable[[int], Team]) -> None:
    """All of them, though each thread wakes only a few: every share waits until all have been begun."""
    begun: set[int] = set()

    def hold(phase: int, share: int) -> None:
        begun.add(share)
        until = time.perf_counter() + 15
        while len(begun) < 7 and time.perf_counter() < until:
            time.sleep(0.001)

    program, team = Scripted(1, 1, hold), team_of(7)
    for _ in range(2):
        begun.clear()
        program.took.clear()
        time.sleep(0.3)
        within(60, lambda: team.run(program.records, program.batch))
        assert len({name for _, _, name in program.took}) == 7


def test_a_helper_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, team_of: Callable[[int], Team]
) -> None:
    """The system may give a thread no processor for long: here one of them enters only after the first steps."""
    gate, real = threading.Event(), executor._help

    def late(shared: np.ndarray, address: int, thread: int, n_threads: int, processor: int | None) -> None:
        if thread == 2:
            gate.wait(20)
        real(shared, address, thread, n_threads, processor)

    monkeypatch.setattr(executor, "_help", late)
    counter, team = Counter(), team_of(4)
    within(10, lambda: [counter.step(team) for _ in range(20)])  # type: ignore[arg-type, return-value]
    assert (counter.numbers == 20 * counter.n_ops).all()
    gate.set()
    within(10, lambda: [counter.step(team) for _ in range(20)])  # type: ignore[arg-type, return-value]
    assert (counter.numbers == 40 * counter.n_ops).all()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the affinity of a thread is read as on Linux")
def test_helpers_are_tied_to_processors(team_of: Callable[[int], Team]) -> None:
    mine = os.sched_getaffinity(0)
    where: dict[str, set[int]] = {}
    program = Scripted(6, 1, lambda phase, share: time.sleep(0.002))
    usable = sorted(mine)
    team = Team(3, usable[-1:])
    try:
        record = program.hold
        program.hold = lambda phase, share: (
            where.__setitem__(threading.current_thread().name, os.sched_getaffinity(0)), record(phase, share)
        )  # fmt: skip
        within(10, lambda: team.run(program.records, program.batch))
    finally:
        team.close()
    tied = {name: allowed for name, allowed in where.items() if name.startswith("gumba-")}
    assert tied and all(allowed == {usable[-1]} for allowed in tied.values())
    assert os.sched_getaffinity(0) == mine, "the application's own thread is left alone"
