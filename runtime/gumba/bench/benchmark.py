"""Prefill and decode speed of a model on this machine, measured on the bare forward pass.

The figures include neither sampling nor detokenizing. Token ids are random: speed does not depend on them. Each phase runs
once unmeasured (which compiles kernels and warms up), then ``repeat`` times; medians are reported.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gumba.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gumba.loading.config import Config
    from gumba.runner.load import Chunk, Model

    #: Runs one step.
    Step = Callable[[Sequence[Chunk]], object]

_BATCH_TOKENS = 512


@dataclass(frozen=True)
class Speed:
    """The result of ``measure``: tokens per second, as median, slowest and fastest run; None for a phase not measured."""

    prefill_tokens_per_s: float | None
    prefill_min: float | None
    prefill_max: float | None
    decode_tokens_per_s: float | None
    decode_min: float | None
    decode_max: float | None
    #: Seconds from opening the file to a loaded model, without compiling.
    load_s: float
    #: Seconds spent compiling kernels; 0 if all came from the cache.
    compile_s: float
    #: The process's peak resident memory, in units of 10**6 bytes; None if the system does not report it.
    peak_rss_mb: float | None
    #: The KV cache, in the same units; allocated from the start, but only resident as tokens fill it.
    kv_mb: float
    threads: int


@dataclass(frozen=True)
class Workload:
    """What to measure, and with which threads and KV cache (see ``LLM``).

    Prefill: a prompt of ``prompt`` tokens after ``depth`` tokens of context. Decode: ``gen`` steps of ``sequences``
    sequences at once, each after ``depth`` tokens of its own (one token if ``depth`` is 0); all sequences count.
    """

    prompt: int = 512
    gen: int = 64
    depth: int = 0
    sequences: int = 1
    n_threads: int | None = None
    kv_type: str | None = None
    portable: bool = False


def default_sizes(path: Path, prompt: int | None, gen: int | None, depth: int) -> tuple[int, int]:
    """Number of prompt tokens and of decode steps; None: ``Workload``'s, or as many as fit the model's context.

    A model that generates no text has no decode steps. Raises the errors of opening the file.
    """
    from gumba.gguf import GGUFFile
    from gumba.models.registry import architecture

    with GGUFFile(path) as file:
        config = architecture(file).read_config(file)
    remaining = config.n_ctx_train - depth
    if remaining < 2:  # nothing fits: ``loaded_model`` raises the error
        remaining = Workload.prompt
    if gen is None:
        gen = min(Workload.gen, remaining - 1) if _decodes(config) else 0
    return min(Workload.prompt, remaining) if prompt is None else prompt, gen


def _decodes(config: Config) -> bool:
    """Whether the model generates text."""
    return config.causal and not config.n_labels


def measure(
    path: Path, work: Workload, *, repeat: int = 5, progress: Callable[[float], None] = lambda done: None
) -> Speed:
    """Measure the model at ``path``. Raises ``RequestError`` if its context is too short for ``work``."""
    prompt, gen = work.prompt, work.gen
    with loaded_model(path, work) as ready:
        bench = Bench(ready.model, work.depth)
        rounds = (bool(prompt) + bool(gen)) * (repeat + 1)
        prefill: list[float] = []
        decode: list[float] = []
        for _ in range(repeat + 1):
            if prompt:
                prefill.append(prompt / bench.prefill(prompt))
                progress((len(prefill) + len(decode)) / rounds)
            if gen:
                decode.append(gen * work.sequences / bench.decode(gen, work.sequences))
                progress((len(prefill) + len(decode)) / rounds)
        return Speed(
            prefill_tokens_per_s=statistics.median(prefill[1:]) if prompt else None,
            prefill_min=min(prefill[1:], default=None),
            prefill_max=max(prefill[1:], default=None),
            decode_tokens_per_s=statistics.median(decode[1:]) if gen else None,
            decode_min=min(decode[1:], default=None),
            decode_max=max(decode[1:], default=None),
            load_s=ready.load_s,
            compile_s=ready.compile_s(),
            peak_rss_mb=peak_rss_mb(),
            kv_mb=ready.model.kv.n_bytes / 1e6,
            threads=ready.model.n_threads,
        )


@dataclass(frozen=True)
class LoadedBenchModel:
    """A loaded model, the seconds that loading took without compiling, and the seconds spent compiling so far."""

    model: Model
    load_s: float
    compile_s: Callable[[], float]


@contextlib.contextmanager
def loaded_model(path: Path, work: Workload) -> Iterator[LoadedBenchModel]:
    """The model at ``path``, with a KV cache for ``work``; closed at the end. Raises as ``measure``."""
    from gumba.gguf import GGUFFile
    from gumba.jit import jit
    from gumba.models.registry import architecture
    from gumba.runner.load import LoadConfig, load_model

    n_ctx = work.depth + max(work.prompt, work.gen + 1)
    compiled_s = jit.stats.compile_s
    began = time.perf_counter()
    with GGUFFile(path) as file:
        config = architecture(file).read_config(file)
        if config.start_token is not None:
            raise RequestError(f"{path}: {config.architecture} models are encoder-decoders, which cannot be measured")
        if n_ctx > config.n_ctx_train:
            raise RequestError(
                f"this needs a context of {n_ctx} tokens (depth, and the prompt or the decode steps after it); "
                f"the model supports {config.n_ctx_train}: measure less (--prompt, --gen, --depth)"
            )
        if work.gen and not _decodes(config):
            raise RequestError(
                f"this {config.architecture} model generates no text: there are no decode steps (--gen 0)"
            )
        if work.depth and not config.causal:
            raise RequestError(
                f"{config.architecture} models are encoders, which compute a text in one step: --depth must be 0"
            )
        settings = LoadConfig(
            n_ctx=n_ctx,
            max_batch_tokens=max(_BATCH_TOKENS, work.sequences),
            kv_tokens=work.sequences * (-(-n_ctx // 64)) * 64,
            n_states=2 * work.sequences,
            n_threads=work.n_threads,
            kv_type=work.kv_type,
            portable=work.portable,
        )
        model = load_model(file, settings)
    load_s = time.perf_counter() - began - (jit.stats.compile_s - compiled_s)
    try:
        yield LoadedBenchModel(model, load_s, lambda: jit.stats.compile_s - compiled_s)
    finally:
        model.close()


class _BenchSequence(NamedTuple):
    """A sequence's pages, its state slot, and the slot with a copy of the state after its context."""

    pages: list[int]
    state: int
    saved_state: int


class Bench:
    """The timed phases. Each sequence's context is computed once and kept: the phases write after it.

    ``step``: runs the chunks of a timed step; None: the model's ``forward``.
    """

    def __init__(self, model: Model, depth: int) -> None:
        self._model = model
        self._depth = depth
        self._random = np.random.default_rng(0)
        self._sequences: list[_BenchSequence] = []

    def _random_tokens(self, n: int) -> np.ndarray:
        return self._random.integers(0, self._model.config.n_vocab, n, dtype=np.int32)

    def _prefill(
        self, step: Step, sequence: _BenchSequence, position: int, n: int, outputs: Literal["none", "last"] = "none"
    ) -> None:
        """Prefill ``n`` tokens from ``position`` on, in the largest steps that the model takes."""
        from gumba.runner.load import Chunk

        tokens, size = self._random_tokens(n), self._model.max_batch_tokens
        for start in range(0, n, size):
            last = start + size >= n
            step(
                [
                    Chunk(
                        tokens[start : start + size],
                        position + start,
                        sequence.pages,
                        outputs if last else "none",
                        state=sequence.state,
                    )
                ]
            )

    def _first_sequences(self, n: int) -> list[_BenchSequence]:
        """``n`` sequences, each with ``depth`` tokens of context."""
        model = self._model
        n_pages = -(-model.n_ctx // model.kv.page_tokens)
        while len(self._sequences) < n:
            sequence = _BenchSequence(model.kv.allocate(n_pages), model.allocate_state(), model.allocate_state())
            self._prefill(model.forward, sequence, 0, self._depth)
            if model.states is not None:
                model.states.copy(sequence.state, sequence.saved_state)
            self._sequences.append(sequence)
        if model.states is not None:
            for sequence in self._sequences[:n]:  # a state cannot go back to what it was before the last phase
                model.states.copy(sequence.saved_state, sequence.state)
        return self._sequences[:n]

    def prefill(self, n: int, step: Step | None = None) -> float:
        """Seconds for a prompt of ``n`` tokens, to the logits of its last one."""
        sequence = self._first_sequences(1)[0]
        began = time.perf_counter()
        self._prefill(step or self._model.forward, sequence, self._depth, n, "last")
        return time.perf_counter() - began

    def decode(self, n: int, n_sequences: int, step: Step | None = None) -> float:
        """Seconds for ``n`` steps of ``n_sequences`` sequences."""
        from gumba.runner.load import Chunk

        sequences = self._first_sequences(n_sequences)
        position = self._depth
        if position == 0:
            for sequence in sequences:
                self._prefill(self._model.forward, sequence, 0, 1)
            position = 1
        steps = [[self._random_tokens(1) for _ in sequences] for _ in range(n)]
        step = step or self._model.forward
        began = time.perf_counter()
        for i, tokens in enumerate(steps):
            step([Chunk(t, position + i, s.pages, "last", state=s.state) for t, s in zip(tokens, sequences)])
        return time.perf_counter() - began


def peak_rss_mb() -> float | None:
    """Peak resident memory of this process, in units of 10**6 bytes; None if the system does not report it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would also remember the parent's memory when this process began
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
    if os.name == "posix":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    return None
