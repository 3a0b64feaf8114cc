"""Time of every operation of a step, against the measured limits of this machine (roofline).

Times come from clocks between the program's records (``program.timing``), bytes and arithmetic from the operations'
declarations (``program.operation.Work``); the limits are measured here, by kernels for that purpose.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gumba.bench.benchmark import Bench, loaded_model
from gumba.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gumba.backends.cpu.kernels.record import Kernel
    from gumba.backends.cpu.program.builder import Buffer, Operation
    from gumba.bench.benchmark import Step, Workload
    from gumba.runner.load import Chunk, Model

#: The buffer of the memory test: this many times the last-level cache, within these bounds (bytes).
_CACHES, _LEAST_BUFFER, _MOST_BUFFER = 8, 256 << 20, 1 << 30
#: Bytes that each thread of the cache test reads repeatedly: more than a first-level cache, less than a second-level one.
_CACHE_BYTES = 128 << 10
_LIMIT_RUNS = 9


@dataclass(frozen=True)
class Rates:
    """The limits of some threads: 10**9 bytes read a second, 10**9 operations a second."""

    memory_gb_s: float
    cache_gb_s: float
    int8_gop_s: float
    float32_gflop_s: float
    bf16_gflop_s: float

    def arithmetic(self, kind: str) -> float:
        """10**9 operations a second in "int8", "float32" or "bf16"."""
        return {"int8": self.int8_gop_s, "float32": self.float32_gflop_s, "bf16": self.bf16_gflop_s}[kind]


@dataclass(frozen=True)
class Limits:
    """The limits of this machine, for one thread and for all threads in use."""

    isa: str
    threads: int
    one: Rates
    all: Rates


@dataclass(frozen=True)
class OperationTime:
    """All records of one kernel and shape together, per step of the phase on average."""

    name: str
    shape: str
    records: int
    ms: float
    #: Fraction of the step's time, 0 to 1.
    share: float
    #: 10**9 multiplications and additions a second; None if there are hardly any.
    gop_s: float | None
    #: 10**9 bytes a second: weights and KV cache once, activations read and written.
    gb_s: float
    #: Minimum time by the limits: of its arithmetic, of weights and KV cache from memory, or of the rest from cache.
    limit_ms: float
    #: Which limit applies: "int8", "float32", "bf16", "memory" or "cache".
    bound: str

    @property
    def of_limit(self) -> float:
        """Fraction of the limit reached, 0 to 1 (more if weights or KV cache are in the processor's cache)."""
        return self.limit_ms / self.ms if self.ms else 0.0


@dataclass(frozen=True)
class Phase:
    """Prefill or decode. Times are of one step, on average over a pass."""

    name: str
    tokens: int
    steps: int
    #: Duration of a step without clocks in it: median over the passes.
    step_ms: float
    tokens_per_s: float
    #: Sum of the operations' times, in the pass of median duration.
    operations_ms: float
    #: Bytes of weights and KV cache that a step reads, and their rate in 10**9 bytes a second.
    memory_bytes: int
    memory_gb_s: float
    #: The memory limit just before and after the passes (median), and the fraction of it that a pass reached (median).
    memory_limit_gb_s: float
    memory_of_limit: float
    operations: list[OperationTime]

    @property
    def overhead_ms(self) -> float:
        """Time of a step outside of its operations: filling the batch record, starting the threads.

        0 if the operations, in passes slowed by the clocks, took as long as a step without clocks.
        """
        return max(0.0, self.step_ms - self.operations_ms)


@dataclass(frozen=True)
class Profile:
    """The result of ``profile``; None for a phase not measured."""

    limits: Limits
    prefill: Phase | None
    decode: Phase | None

    @property
    def phases(self) -> list[Phase]:
        return [phase for phase in (self.prefill, self.decode) if phase is not None]


# Limits ----------------------------------------------------------------------------------------------------------------


def _cache_size() -> int:
    """Size of the last-level cache in bytes, from Linux; 32 MiB if unknown."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KMG":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes)


def measure_limits(n_threads: int, *, buffer_bytes: int | None = None) -> Limits:
    """Measure this machine's limits with the instruction set in use: the best of several runs of each test.

    ``buffer_bytes``: size of the memory test's buffer; None: eight times the last-level cache. Raises ResourceError if there is
    not enough memory.
    """
    from gumba.simd.detect import current

    memory = _memory(buffer_bytes)
    rates = []
    for n in sorted({1, n_threads}):
        with _LimitTests(n, memory) as tests:
            rates.append(Rates(*tests.best(_LIMIT_RUNS)))
    return Limits(current().name, n_threads, rates[0], rates[-1])


def _memory(n_bytes: int | None = None) -> np.ndarray:
    """The memory test's buffer, uint8. Every page is written to: untouched pages would all be one page of zeros."""
    from gumba.backends.cpu.packing import aligned_empty

    size = n_bytes or min(max(_CACHES * _cache_size(), _LEAST_BUFFER), _MOST_BUFFER)
    try:
        memory = aligned_empty(size)
    except MemoryError:
        raise ResourceError(f"the memory test needs {size >> 20} MB of memory") from None
    memory[:] = 1
    return memory


class _LimitTests:
    """The tests as a program with its own threads, which end with the ``with`` statement.

    ``memory``: the memory test's buffer; ``only_memory``: run no other test.
    """

    def __init__(self, n_threads: int, memory: np.ndarray, only_memory: bool = False) -> None:
        from gumba.backends.cpu.kernels import record as op
        from gumba.backends.cpu.kernels import roofline as limits
        from gumba.backends.cpu.packing import aligned_empty
        from gumba.backends.cpu.program.builder import Buffer, Program
        from gumba.backends.cpu.program.executor import Team
        from gumba.backends.cpu.program.timing import Timing
        from gumba.simd.detect import current

        isa = current()
        self._small = aligned_empty(n_threads * _CACHE_BYTES)
        self._small[:] = 1
        self._out = aligned_empty(n_threads * limits.CORNER)
        self._out[:] = 0
        self._memory = memory
        self._batch = np.zeros(op.BATCH_WORDS, np.int64)
        self._program = Program(isa, n_threads, 1)
        self._order = Buffer("order", 0, 0, op.N_TOKENS)  # written by all, so that a barrier stands between them
        self._amounts: list[float] = []
        read, units, small = limits.read_memory(isa), len(memory) // limits.UNIT, int(self._small.ctypes.data)
        large = {"x": int(memory.ctypes.data), "units": units, "shared": 1, "stride": 0}
        self._add(read, 1, units * limits.UNIT, large)
        if not only_memory:
            own = {"x": small, "units": _CACHE_BYTES // limits.UNIT, "shared": 0, "stride": _CACHE_BYTES}
            self._add(read, 4000, 4000 * len(self._small), own)
            self._add(limits.dot_int8(isa), 400_000, 400_000 * n_threads * limits.dot_ops(isa), {"x": small})
            self._add(limits.fma_float32(isa), 400_000, 400_000 * n_threads * limits.fma_ops(isa), {})
            self._add(limits.pairs_bf16(isa), 400_000, 400_000 * n_threads * limits.pair_ops(isa), {"x": small})
        self._timing = Timing(self._program.finish([]))
        self._team = Team(n_threads)

    def _add(self, kernel: Kernel, turns: int, amount: float, arguments: dict[str, int]) -> None:
        """Add a test of ``turns`` turns, after one turn that synchronizes the threads; ``amount``: bytes or operations of all."""
        from gumba.backends.cpu.program.builder import Operation

        for n_turns in (1, turns):
            values: dict[str, int | float | Buffer] = {**arguments, "turns": n_turns, "out": int(self._out.ctypes.data)}
            split = (len(self._program.operations),)
            self._program.operations.append(Operation(kernel, values, [], [self._order], split))
        self._amounts.append(amount)

    def best(self, runs: int) -> list[float]:
        """Rate of each test in the fastest of ``runs`` runs, 10**9 bytes or operations a second."""
        fastest = np.full(len(self._amounts), np.inf)
        for _ in range(runs):
            self._team.run(self._timing.records, self._batch)
            fastest = np.minimum(fastest, np.maximum(self._timing.nanoseconds()[1::2], 1))
        return [amount / float(ns) for amount, ns in zip(self._amounts, fastest)]

    def __enter__(self) -> _LimitTests:
        return self

    def __exit__(self, *raised: object) -> None:
        self._team.close()


@contextlib.contextmanager
def _memory_probe(n_threads: int) -> Iterator[Callable[[], float]]:
    """A function that measures the current memory speed, 10**9 bytes a second: on shared machines it changes within seconds."""
    with _LimitTests(n_threads, _memory(), only_memory=True) as tests:

        def probe() -> float:
            rate = tests.best(3)[0]
            time.sleep(0.01)  # until the probe's threads sleep and leave their cores to the model's
            return rate

        yield probe


# A model's operations --------------------------------------------------------------------------------------------------


@dataclass
class _Total:
    """Sums over the steps of a pass, for one kernel and shape."""

    records: int = 0
    ns: int = 0
    memory: int = 0
    cache: int = 0
    ops: int = 0
    kind: str = "float32"

    def add(self, op: Operation, step: _Step, ns: int) -> None:
        work, rows = op.work, step.rows(op)
        self.records += 1
        self.ns += ns
        context, pairs = step.seen(work.window, of_outputs=step.of_outputs(op))
        self.memory += (work.weights if rows else 0) + work.kv_bytes * context + work.state_bytes * step.sequences
        self.cache += work.row_bytes * rows
        self.ops += work.row_ops * rows + work.pair_ops * pairs
        self.kind = work.kind

    def result(self, name: str, shape: str, steps: int, step_ms: float, rates: Rates) -> OperationTime:
        """Averages per step. A time of 0 is below the clock's resolution: then the rates are meaningless."""
        minimum_ns = {
            self.kind: self.ops / rates.arithmetic(self.kind),
            "memory": self.memory / rates.memory_gb_s,
            "cache": self.cache / rates.cache_gb_s,
        }
        bound = max(minimum_ns, key=lambda name: minimum_ns[name])
        ns = max(self.ns, 1)
        return OperationTime(
            name=name,
            shape=shape,
            records=self.records // steps,
            ms=self.ns / steps / 1e6,
            share=self.ns / steps / 1e6 / step_ms,
            gop_s=self.ops / ns if self.ops else None,
            gb_s=(self.memory + self.cache) / ns,
            limit_ms=minimum_ns[bound] / steps / 1e6,
            bound=bound,
        )


class _Step:
    """One timed step: its amount of work, and nanoseconds of each operation."""

    def __init__(self, chunks: Sequence[Chunk], spans: np.ndarray) -> None:
        self.spans = spans
        self.tokens = sum(len(c.tokens) for c in chunks)
        self._chunks = [(c.position, len(c.tokens)) for c in chunks]
        wanted = [{"none": 0, "last": 1, "all": len(c.tokens)}[c.outputs] for c in chunks]
        self._wanted = [(position + n - own, own) for (position, n), own in zip(self._chunks, wanted) if own]
        self.outputs = sum(wanted)
        self.sequences = len(self._chunks)

    def seen(self, window: int = 0, of_outputs: bool = False) -> tuple[int, int]:
        """Number of context tokens read, and of (query, key) pairs, among the last ``window`` tokens.

        ``of_outputs``: only for queries whose logits are computed.
        """
        context = pairs = 0
        for position, n in self._wanted if of_outputs else self._chunks:
            own = window or position + n
            context += min(position + n, n + own - 1)
            full = min(n, max(0, own - position))  # queries that attend to all earlier tokens
            pairs += full * (2 * position + full + 1) // 2 + (n - full) * own
        return context, pairs

    def rows(self, op: Operation) -> int:
        """Number of rows that ``op`` computes."""
        return self.outputs if self.of_outputs(op) else self.tokens

    def of_outputs(self, op: Operation) -> bool:
        """Whether ``op`` computes only the rows whose logits are needed."""
        from gumba.backends.cpu.kernels.record import N_OUTPUTS

        return bool(op.writes) and op.writes[0].count == N_OUTPUTS


def profile(
    path: Path, work: Workload, *, repeat: int = 5, progress: Callable[[float], None] = lambda done: None
) -> Profile:
    """Profile the model at ``path``; arguments and errors are those of ``gumba.bench.benchmark.measure``.

    Passes with and without clocks alternate, ``repeat`` of each after a warm-up pass.
    """
    with loaded_model(path, work) as ready:
        model, bench = ready.model, Bench(ready.model, work.depth)
        passes = {}
        if work.prompt:
            passes["prefill"] = (work.prompt, lambda step: bench.prefill(work.prompt, step))
        if work.gen:
            n_tokens = work.gen * work.sequences
            passes["decode"] = (n_tokens, lambda step: bench.decode(work.gen, work.sequences, step))
        limits = measure_limits(model.n_threads)
        phases: dict[str, Phase] = {}
        with _memory_probe(model.n_threads) as probe:
            for name, (tokens, run) in passes.items():
                taken = _run_passes(model, run, probe, repeat, progress, (len(phases) / len(passes), 1 / len(passes)))
                phases[name] = _phase(name, model, limits.all, tokens, taken)
    return Profile(limits, phases.get("prefill"), phases.get("decode"))


@dataclass
class _Passes:
    """The passes of one phase: seconds of those without clocks, steps of those with clocks, memory limits around both."""

    plain: list[float]
    timed: list[list[_Step]]
    plain_limits: list[float]
    timed_limits: list[float]


def _run_passes(
    model: Model,
    run: Callable[[Step | None], float],
    probe: Callable[[], float],
    repeat: int,
    progress: Callable[[float], None],
    span: tuple[float, float],
) -> _Passes:
    """Run the passes. ``run(step)`` runs one and returns its seconds; ``span``: first fraction and length of the progress."""
    taken = _Passes([], [], [], [])
    for i in range(repeat + 1):
        steps: list[_Step] = []
        before = probe()
        seconds = run(None)
        between = probe()
        run(lambda chunks, steps=steps: steps.append(_Step(chunks, model.forward_timed(chunks))))  # type: ignore[misc]
        after = probe()
        if i:  # the first pass warms up
            taken.plain.append(seconds)
            taken.timed.append(steps)
            taken.plain_limits.append(max(before, between))
            taken.timed_limits.append(max(between, after))
        progress(span[0] + span[1] * (i + 1) / (repeat + 1))
    return taken


def _phase(name: str, model: Model, rates: Rates, tokens: int, taken: _Passes) -> Phase:
    """Sum the operations of the timed pass of median duration, against the memory limit around it."""
    order = sorted(range(len(taken.timed)), key=lambda i: sum(int(step.spans.sum()) for step in taken.timed[i]))
    median = order[(len(order) - 1) // 2]
    steps = taken.timed[median]
    rates = replace(rates, memory_gb_s=taken.timed_limits[median])
    step_ms = statistics.median(taken.plain) * 1e3 / len(steps)
    totals: dict[tuple[str, str], _Total] = {}
    for step in steps:
        for op, ns in zip(model.operations, step.spans):
            totals.setdefault((op.kernel.name, op.work.shape), _Total()).add(op, step, int(ns))
    operations = [total.result(*key, len(steps), step_ms, rates) for key, total in totals.items()]
    memory = sum(total.memory for total in totals.values())
    reached = [memory / (seconds * 1e9) / limit for seconds, limit in zip(taken.plain, taken.plain_limits)]
    return Phase(
        name=name,
        tokens=tokens,
        steps=len(steps),
        step_ms=step_ms,
        tokens_per_s=tokens / statistics.median(taken.plain),
        operations_ms=sum(op.ms for op in operations),
        memory_bytes=memory // len(steps),
        memory_gb_s=memory / len(steps) / (step_ms * 1e6),
        memory_limit_gb_s=statistics.median(taken.plain_limits),
        memory_of_limit=statistics.median(reached),
        operations=sorted(operations, key=lambda op: -op.ms),
    )
