"""A loaded model: weights, KV cache, and the program that turns chunks of tokens into logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gumba.backends.base import Chunk, Runner, StepLimits, Workers
from gumba.loading.config import Config
from gumba.runner.kv_cache import KVCache
from gumba.runner.state_pool import StatePool


@dataclass(frozen=True, eq=False)
class ModelParts:
    """The parts of a ``Model``. ``target``: the instruction set of its code; ``weights``: kept alive while it is open."""

    config: Config
    runner: Runner
    kv: KVCache
    states: StatePool | None
    workers: Workers
    owns_workers: bool
    limits: StepLimits
    target: str
    weights: Any


class Model:
    """A loaded model, returned by ``load_model``. Only one thread at a time may call ``forward``.

    Attributes:
        config: Sizes and constants (n_vocab, n_layers, n_embd, ...).
        n_ctx: Maximum number of tokens of a sequence.
        kv: The KV cache.
        states: The pool of recurrent states; None for a model without recurrent layers.
        isa: Name of the instruction set.
    """

    def __init__(self, parts: ModelParts) -> None:
        self.config, self.kv, self.states = parts.config, parts.kv, parts.states
        self.n_ctx, self.max_batch_tokens = parts.limits.n_ctx, parts.limits.max_batch_tokens
        self.n_threads = parts.workers.n_threads
        self.isa = parts.target
        self._limits, self._runner, self._weights = parts.limits, parts.runner, parts.weights
        self._team, self._owns_team = parts.workers, parts.owns_workers

    def forward(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Compute one step: logits, float32 [n_outputs, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. Raises RequestError for a chunk that is out of range (before
        anything is computed), EngineError if the model is closed.
        """
        return self._runner.run(chunks)

    def forward_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Compute one step: nanoseconds that each of ``operations`` took, int64 [n]. Raises as ``forward``."""
        return self._runner.run_timed(chunks)

    @property
    def hidden(self) -> np.ndarray:
        """Final hidden states of the last step, from which its logits were computed: float32 [n_outputs, n_embd], a view."""
        return self._runner.hidden

    @property
    def operations(self) -> Sequence[Any]:
        """The operations of a step, in order. Raises EngineError if the model is closed."""
        return self._runner.operations

    @property
    def team(self) -> Workers:
        """The threads that compute steps."""
        return self._team

    def allocate_state(self) -> int:
        """A slot of ``states`` for a new sequence; -1 for a model without recurrent layers. Raises ResourceError."""
        return -1 if self.states is None else self.states.allocate()

    def release_state(self, slot: int) -> None:
        """Free a slot that ``allocate_state`` returned."""
        if self.states is not None:
            self.states.release(slot)

    def close(self) -> None:
        """Wait for the current step, then end the threads and free all memory. Closing twice is harmless."""
        if self._owns_team:
            self._team.close()
        self.kv.close()
        if self.states is not None:
            self.states.close()
        self._runner.close()
        self._weights = None

    def __del__(self) -> None:
        team = getattr(self, "_team", None)
        if team is not None and self._owns_team:
            team.close()
