"""How fast a model runs here: prefill and decode, measured on the bare forward pass.

No sampling and no text is in the figures, only what every generation must pay. Token ids are random: speed does not
depend on them. Each phase runs once unmeasured (which compiles and warms up), then ``repeat`` times; medians are
reported.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gumba.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gumba.runner.load import Chunk, Model

    #: Runs one step.
    Step = Callable[[Sequence[Chunk]], object]

_BATCH_TOKENS = 512


@dataclass(frozen=True)
class Speed:
    """What ``measure`` found. Rates are in tokens per second, medians beside the slowest and the fastest run; None where
    nothing was asked for."""

    prefill_tokens_per_s: float | None
    prefill_min: float | None
    prefill_max: float | None
    decode_tokens_per_s: float | None
    decode_min: float | None
    decode_max: float | None
    #: Seconds from opening the file to a model that is ready, compiling not counted.
    load_s: float
    #: Seconds spent compiling kernels; 0 when all came from the cache.
    compile_s: float
    #: The process's highest resident memory, in units of 10**6 bytes; None where the system does not tell.
    peak_rss_mb: float | None
    #: The KV cache, in the same units; all of it is there from the start, but not resident before tokens fill it.
    kv_mb: float
    threads: int


@dataclass(frozen=True)
class Workload:
    """What is measured, and with how many threads and what KV cache (see ``LLM``).

    Prefill: a prompt of ``prompt`` tokens after ``depth`` tokens of context. Decode: ``gen`` steps of ``sequences``
    sequences at once, each after ``depth`` tokens of its own (one token, where ``depth`` is 0); all sequences count.
    """

    prompt: int = 512
    gen: int = 64
    depth: int = 0
    sequences: int = 1
    n_threads: int | None = None
    kv_type: str | None = None


def usual(path: Path, prompt: int | None, gen: int | None, depth: int) -> tuple[int, int]:
    """Tokens of the prompt and decode steps; where not said (None) ``Workload``'s, or as many as fit the model's context.

    There are no decode steps of a model that writes no text. Raises what opening the file does.
    """
    from gumba.gguf import GGUFFile
    from gumba.runner.load import architecture

    with GGUFFile(path) as file:
        config = architecture(file).read_config(file)
    room = config.n_ctx_train - depth
    if room < 2:  # there is no room for anything: ``opened`` says so
        room = Workload.prompt
    if gen is None:
        gen = min(Workload.gen, room - 1) if _decodes(config) else 0
    return min(Workload.prompt, room) if prompt is None else prompt, gen


def _decodes(config: Any) -> bool:
    return bool(config.causal and not config.n_labels)


def measure(
    path: Path, work: Workload, *, repeat: int = 5, progress: Callable[[float], None] = lambda done: None
) -> Speed:
    """Measure the model at ``path``. Raises ``RequestError`` when its context is too short for that."""
    prompt, gen = work.prompt, work.gen
    with opened(path, work) as ready:
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
class Ready:
    """A loaded model, seconds that it took (compiling not counted), and a count of seconds spent compiling since before."""

    model: Model
    load_s: float
    compile_s: Callable[[], float]


@contextlib.contextmanager
def opened(path: Path, work: Workload) -> Iterator[Ready]:
    """The model at ``path`` with room for what is to be measured; closed at the end. Raises what ``measure`` does."""
    from gumba.gguf import GGUFFile
    from gumba.jit import jit
    from gumba.runner.load import architecture, load_model

    n_ctx = work.depth + max(work.prompt, work.gen + 1)
    compiled_s = jit.stats.compile_s
    began = time.perf_counter()
    with GGUFFile(path) as file:
        config = architecture(file).read_config(file)
        if config.start_token is not None:
            raise RequestError(
                f"{path}: {config.architecture} models are encoder-decoders, which cannot be measured so"
            )
        most = config.n_ctx_train
        if n_ctx > most:
            raise RequestError(
                f"this needs a context of {n_ctx} tokens (depth, and the prompt or the decode steps after it); "
                f"the model was made for {most}: ask for less (--prompt, --gen, --depth)"
            )
        if work.gen and not _decodes(config):
            raise RequestError(f"this {config.architecture} model writes no text: there are no decode steps (--gen 0)")
        if work.depth and not config.causal:
            raise RequestError(f"{config.architecture} models are encoders, which read a text whole: --depth must be 0")
        model = load_model(
            file,
            n_ctx=n_ctx,
            max_batch_tokens=max(_BATCH_TOKENS, work.sequences),
            kv_tokens=work.sequences * (-(-n_ctx // 64)) * 64,
            n_states=2 * work.sequences,
            n_threads=work.n_threads,
            kv_type=work.kv_type,
        )
    load_s = time.perf_counter() - began - (jit.stats.compile_s - compiled_s)
    try:
        yield Ready(model, load_s, lambda: jit.stats.compile_s - compiled_s)
    finally:
        model.close()


class _Place(NamedTuple):
    """Where a sequence lies: its pages, its state (a slot), and that of its context before any phase."""

    pages: list[int]
    state: int
    kept: int


class Bench:
    """The timed phases. The context before them is laid once per sequence and kept: later phases write after it.

    ``step``: what runs a timed step's chunks; None for the model's own ``forward``.
    """

    def __init__(self, model: Model, depth: int) -> None:
        self._model = model
        self._depth = depth
        self._random = np.random.default_rng(0)
        self._made: list[_Place] = []

    def _tokens(self, n: int) -> np.ndarray:
        return self._random.integers(0, self._model.config.n_vocab, n, dtype=np.int32)

    def _feed(self, step: Step, at: _Place, position: int, n: int, outputs: Literal["none", "last"] = "none") -> None:
        """Prefill ``n`` tokens from ``position`` on, in steps as large as the model takes."""
        from gumba.runner.load import Chunk

        tokens, size = self._tokens(n), self._model.max_batch_tokens
        for start in range(0, n, size):
            last = start + size >= n
            step(
                [
                    Chunk(
                        tokens[start : start + size],
                        position + start,
                        at.pages,
                        outputs if last else "none",
                        state=at.state,
                    )
                ]
            )

    def _sequences(self, n: int) -> list[_Place]:
        """Where ``n`` sequences lie, each with ``depth`` tokens of context."""
        each = self._model.n_ctx // self._model.kv.page_tokens + bool(self._model.n_ctx % self._model.kv.page_tokens)
        model = self._model
        while len(self._made) < n:
            made = _Place(model.kv.allocate(each), model.take_state(), model.take_state())
            self._feed(model.forward, made, 0, self._depth)
            if model.states is not None:
                model.states.copy(made.state, made.kept)
            self._made.append(made)
        if model.states is not None:
            for place in self._made[:n]:  # a state cannot go back to what it was before the last phase
                model.states.copy(place.kept, place.state)
        return self._made[:n]

    def prefill(self, n: int, step: Step | None = None) -> float:
        """Seconds that a prompt of ``n`` tokens takes, to the logits of its last one."""
        place = self._sequences(1)[0]
        began = time.perf_counter()
        self._feed(step or self._model.forward, place, self._depth, n, "last")
        return time.perf_counter() - began

    def decode(self, n: int, sequences: int, step: Step | None = None) -> float:
        """Seconds that ``n`` steps of ``sequences`` sequences take."""
        from gumba.runner.load import Chunk

        places = self._sequences(sequences)
        position = self._depth
        if position == 0:
            for place in places:
                self._feed(self._model.forward, place, 0, 1)
            position = 1
        steps = [[self._tokens(1) for _ in places] for _ in range(n)]
        step = step or self._model.forward
        began = time.perf_counter()
        for i, tokens in enumerate(steps):
            step([Chunk(t, position + i, at.pages, "last", state=at.state) for t, at in zip(tokens, places)])
        return time.perf_counter() - began


def peak_rss_mb() -> float | None:
    """The highest resident memory of this process so far, in units of 10**6 bytes; None where it cannot be had."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would also remember the parent's memory when this process began
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
    if os.name == "posix":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    return None
