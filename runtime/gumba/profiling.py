"""Where a step's time goes: every operation of the program, against what this machine can do at most.

Times come from clocks between the program's records (``gumba.program.timing``); bytes and arithmetic from what operations say
of themselves (``gumba.program.builder.Work``); the limits are measured here, by kernels that do nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gumba.benchmark import Bench, opened
from gumba.errors import ResourceError

if TYPE_CHECKING:
    from gumba.models import Chunk
    from gumba.models.model import Model
    from gumba.program.builder import Operation

#: The buffer of the memory test: this many times the last-level cache, within these bounds (bytes).
_CACHES, _LEAST_BUFFER, _MOST_BUFFER = 8, 256 << 20, 1 << 30
#: What each thread of the cache test reads again and again: more than a first-level cache, less than a second-level one.
_CACHE_BYTES = 128 << 10
_LIMIT_RUNS = 9


@dataclass(frozen=True)
class Rates:
    """What some threads can do at most: 10**9 bytes read a second, 10**9 operations a second."""

    memory_gb_s: float
    cache_gb_s: float
    int8_gop_s: float
    float32_gflop_s: float


@dataclass(frozen=True)
class Limits:
    """The limits of this machine, for one thread and for all that are used."""

    isa: str
    threads: int
    one: Rates
    all: Rates


@dataclass(frozen=True)
class OperationTime:
    """All records of one kernel and shape together. Per step of the phase, on average."""

    name: str
    shape: str
    records: int
    ms: float
    #: Of the step's time, 0 to 1.
    share: float
    #: 10**9 multiplications and additions a second; None where there are none to speak of.
    gop_s: float | None
    #: 10**9 bytes a second: weights and KV cache once, activations read and written.
    gb_s: float
    #: The least time that the limits allow: for its arithmetic, for weights and KV cache from memory, for the rest from cache.
    limit_ms: float
    #: Which of the three it is: "int8", "float32", "memory" or "cache".
    bound: str

    @property
    def of_limit(self) -> float:
        """How near it comes to the limit, 0 to 1 (more when weights or KV cache lie in the processor's cache)."""
        return self.limit_ms / self.ms if self.ms else 0.0


@dataclass(frozen=True)
class Phase:
    """Prefill or decode. Times are of one step, on average over a pass."""

    name: str
    tokens: int
    steps: int
    #: A step as it is without any clock in it: median over the passes.
    step_ms: float
    tokens_per_s: float
    #: The operations' times together, in the pass of median length.
    operations_ms: float
    #: Bytes of weights and KV cache that a step reads, and 10**9 of them a second.
    memory_bytes: int
    memory_gb_s: float
    operations: list[OperationTime]

    @property
    def overhead_ms(self) -> float:
        """What a step takes beside its operations: the batch record, starting the team. (Below 0: the clocks' own cost.)"""
        return self.step_ms - self.operations_ms


@dataclass(frozen=True)
class Profile:
    """What ``profile`` found; None for a phase that was not asked for."""

    limits: Limits
    prefill: Phase | None
    decode: Phase | None

    @property
    def phases(self) -> list[Phase]:
        return [phase for phase in (self.prefill, self.decode) if phase is not None]


# Limits ----------------------------------------------------------------------------------------------------------------


def _cache_size() -> int:
    """Bytes of the last-level cache as Linux tells them; 32 MiB where nothing is told."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in "KMG":
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes)


def measure_limits(n_threads: int, *, buffer_bytes: int | None = None) -> Limits:
    """Measure this machine's limits with the instruction set in use: the best of several runs of each test.

    ``buffer_bytes``: what the memory test reads; None for eight times the last-level cache. Raises ResourceError when there is
    not so much memory.
    """
    from gumba.kernels.packed import aligned_empty
    from gumba.simd.isa import current

    size = buffer_bytes or min(max(_CACHES * _cache_size(), _LEAST_BUFFER), _MOST_BUFFER)
    try:
        memory = aligned_empty(size)
    except MemoryError:
        raise ResourceError(f"the memory test needs {size >> 20} MB of memory") from None
    memory[:] = 1  # untouched pages would all be one page of zeros
    one = _rates(1, memory)
    return Limits(current().name, n_threads, one, _rates(n_threads, memory) if n_threads > 1 else one)


def _rates(n_threads: int, memory: np.ndarray) -> Rates:
    """The limits of ``n_threads`` threads. ``memory``: uint8, for the memory test."""
    from gumba.kernels import limits, op
    from gumba.kernels.packed import aligned_empty
    from gumba.program.builder import Buffer, Operation, Program
    from gumba.program.executor import Team
    from gumba.program.timing import Timing
    from gumba.simd.isa import current

    isa = current()
    small = aligned_empty(n_threads * _CACHE_BYTES)
    small[:] = 1
    out = aligned_empty(n_threads * limits.CORNER)
    out[:] = 0
    program = Program(isa, n_threads, 1)
    order = Buffer("order", 0, 0, op.N_TOKENS)  # written by all, so that a barrier stands between them
    amounts: list[float] = []

    def test(kernel: object, turns: int, amount: float, **arguments: int) -> None:
        """The test itself after one turn that brings all threads there; ``amount``: what all of them do in ``turns``."""
        for each in (1, turns):
            values = arguments | {"turns": each, "out": int(out.ctypes.data)}
            program.operations.append(Operation(kernel, values, [], [order], (len(program.operations),)))  # type: ignore[arg-type]
            amounts.append(amount)

    read, units = limits.read_memory(isa), len(memory) // limits.UNIT
    test(read, 1, units * limits.UNIT, x=int(memory.ctypes.data), units=units, shared=1, stride=0)
    test(
        read, 4000, 4000 * len(small), x=int(small.ctypes.data), units=_CACHE_BYTES // limits.UNIT, shared=0,
        stride=_CACHE_BYTES,
    )  # fmt: skip
    test(limits.dot_int8(isa), 400_000, 400_000 * n_threads * limits.dot_ops(isa), x=int(small.ctypes.data))
    test(limits.fma_float32(isa), 400_000, 400_000 * n_threads * limits.fma_ops(isa))
    timing = Timing(program.finish([]))
    team = Team(n_threads)
    try:
        best = np.full(len(amounts), np.inf)
        for _ in range(_LIMIT_RUNS):
            team.run(timing.records, np.zeros(op.BATCH_WORDS, np.int64))
            best = np.minimum(best, np.maximum(timing.nanoseconds(), 1))
    finally:
        team.close()
    return Rates(*(amount / float(ns) for amount, ns in zip(amounts[1::2], best[1::2])))


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
        self.memory += (work.weights if rows else 0) + work.kv_bytes * step.context
        self.cache += work.row_bytes * rows
        self.ops += work.row_ops * rows + work.pair_ops * step.pairs
        self.kind = work.kind

    def result(self, name: str, shape: str, steps: int, step_ms: float, rates: Rates) -> OperationTime:
        """Per step. A time of 0 is what the clock cannot see: then nothing is said about rates."""
        arithmetic = rates.int8_gop_s if self.kind == "int8" else rates.float32_gflop_s
        floors = {
            self.kind: self.ops / arithmetic,
            "memory": self.memory / rates.memory_gb_s,
            "cache": self.cache / rates.cache_gb_s,
        }
        bound = max(floors, key=lambda name: floors[name])
        ns = max(self.ns, 1)
        return OperationTime(
            name=name,
            shape=shape,
            records=self.records // steps,
            ms=self.ns / steps / 1e6,
            share=self.ns / steps / 1e6 / step_ms,
            gop_s=self.ops / ns if self.ops else None,
            gb_s=(self.memory + self.cache) / ns,
            limit_ms=floors[bound] / steps / 1e6,
            bound=bound,
        )


class _Step:
    """One timed step: how much work it was, and nanoseconds of each operation."""

    def __init__(self, chunks: Sequence[Chunk], spans: np.ndarray) -> None:
        self.spans = spans
        self.tokens = sum(len(c.tokens) for c in chunks)
        self.outputs = sum({"none": 0, "last": 1, "all": len(c.tokens)}[c.outputs] for c in chunks)
        self.context = sum(c.position + len(c.tokens) for c in chunks)
        self.pairs = sum(len(c.tokens) * (2 * c.position + len(c.tokens) + 1) // 2 for c in chunks)

    def rows(self, op: Operation) -> int:
        """How many rows ``op`` works on."""
        from gumba.kernels.op import N_OUTPUTS

        return self.outputs if op.writes and op.writes[0].count == N_OUTPUTS else self.tokens


def profile(
    path: Path,
    *,
    prompt: int = 512,
    gen: int = 64,
    depth: int = 0,
    sequences: int = 1,
    n_threads: int | None = None,
    repeat: int = 5,
    progress: Callable[[float], None] = lambda done: None,
) -> Profile:
    """Profile the model at ``path``; arguments and errors are those of ``gumba.benchmark.measure``.

    Passes with clocks and passes without take turns, ``repeat`` of each after one that warms up.
    """
    with opened(path, prompt=prompt, gen=gen, depth=depth, sequences=sequences, n_threads=n_threads) as ready:
        model, bench = ready.model, Bench(ready.model, depth)
        passes = {}
        if prompt:
            passes["prefill"] = (prompt, lambda step: bench.prefill(prompt, step))
        if gen:
            passes["decode"] = (gen * sequences, lambda step: bench.decode(gen, sequences, step))
        limits = measure_limits(model.n_threads)
        found: dict[str, Phase] = {}
        for name, (tokens, run) in passes.items():
            done = len(found) / len(passes)
            found[name] = _phase(
                name, model, limits.all, tokens, run, repeat,
                lambda part, done=done: progress(done + part / len(passes)),  # type: ignore[misc]
            )  # fmt: skip
    return Profile(limits, found.get("prefill"), found.get("decode"))


def _phase(
    name: str,
    model: Model,
    rates: Rates,
    tokens: int,
    run: Callable[[Callable[[Sequence[Chunk]], object] | None], float],
    repeat: int,
    progress: Callable[[float], None],
) -> Phase:
    """Run the passes of one phase and add up. ``run(step)``: one pass, its seconds; ``step`` takes the place of forward."""
    plain: list[float] = []
    timed: list[list[_Step]] = []
    for i in range(repeat + 1):
        steps: list[_Step] = []
        seconds = run(None)
        run(lambda chunks, steps=steps: steps.append(_Step(chunks, model.forward_timed(chunks))))  # type: ignore[misc]
        if i:
            plain.append(seconds)
            timed.append(steps)
        progress((i + 1) / (repeat + 1))
    timed.sort(key=lambda steps: sum(int(step.spans.sum()) for step in steps))
    steps = timed[(len(timed) - 1) // 2]
    step_ms = statistics.median(plain) * 1e3 / len(steps)
    totals: dict[tuple[str, str], _Total] = {}
    for step in steps:
        for op, ns in zip(model.operations, step.spans):
            totals.setdefault((op.kernel.name, op.work.shape), _Total()).add(op, step, int(ns))
    operations = [total.result(*key, len(steps), step_ms, rates) for key, total in totals.items()]
    memory = sum(total.memory for total in totals.values()) // len(steps)
    return Phase(
        name=name,
        tokens=tokens,
        steps=len(steps),
        step_ms=step_ms,
        tokens_per_s=tokens / statistics.median(plain),
        operations_ms=sum(op.ms for op in operations),
        memory_bytes=memory,
        memory_gb_s=memory / (step_ms * 1e6),
        operations=sorted(operations, key=lambda op: -op.ms),
    )
