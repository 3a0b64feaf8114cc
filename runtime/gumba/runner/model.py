"""A loaded model: weights, KV cache, and the program that turns chunks of tokens into logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gumba.backends.base import Chunk, Runner, StepLimits, Workers
from gumba.loading.config import Config
from gumba.runner.kv_cache import KVCache
from gumba.runner.state_pool import States


@dataclass(frozen=True, eq=False)
class ModelParts:
    """What a ``Model`` is made of. ``target``: what its code is made for; ``weights``: kept alive while the model is open."""

    config: Config
    runner: Runner
    kv: KVCache
    states: States | None
    workers: Workers
    owns_workers: bool
    limits: StepLimits
    target: str
    weights: Any


class Model:
    """What ``load_model`` returns. One thread at a time may call ``forward``.

    ``config``: sizes (n_vocab, n_layers, n_embd, ...); ``n_ctx``: most tokens of a sequence; ``kv``: the pool of pages;
    ``states``: the pool of recurrent states, None for a model without; ``isa``: the instruction set.
    """

    def __init__(self, parts: ModelParts) -> None:
        self.config, self.kv, self.states = parts.config, parts.kv, parts.states
        self.n_ctx, self.max_batch_tokens = parts.limits.n_ctx, parts.limits.max_batch_tokens
        self.n_threads = parts.workers.n_threads
        self.isa = parts.target
        self._limits, self._runner, self._weights = parts.limits, parts.runner, parts.weights
        self._team, self._owns_team = parts.workers, parts.owns_workers

    def forward(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """One step. Logits, float32 [wanted tokens, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. Raises RequestError for a chunk that is out of range (nothing has
        been computed then), EngineError when the model is closed.
        """
        return self._runner.run(chunks)

    def forward_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """A step like ``forward``'s: nanoseconds that each of ``operations`` took, int64 [n]. Raises what ``forward`` does."""
        return self._runner.run_timed(chunks)

    @property
    def hidden(self) -> np.ndarray:
        """Of the last step: the final hidden states, float32 [wanted tokens, n_embd], of which the logits were made; a view."""
        return self._runner.hidden

    @property
    def operations(self) -> Sequence[Any]:
        """What a step consists of, in order. Raises EngineError when the model is closed."""
        return self._runner.operations

    @property
    def team(self) -> Workers:
        """What computes."""
        return self._team

    def take_state(self) -> int:
        """A slot of ``states`` for a new sequence; -1 for a model without recurrent layers. Raises ResourceError."""
        return -1 if self.states is None else self.states.allocate()

    def drop_state(self, slot: int) -> None:
        """Give back what ``take_state`` gave."""
        if self.states is not None:
            self.states.release(slot)

    def close(self) -> None:
        """Stop the threads and free all memory, once a step that is under way has ended. Harmless when repeated."""
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
