"""Guessing the next tokens with a smaller model of the same vocabulary (Leviathan et al. 2023; Chen et al. 2023).

What the large model checks it chooses itself, with its own random numbers: unlike rejection sampling, the answer is not only of
the same distribution but the very same. So the draft model is always greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gumba.engine.state_checkpoints import StatePool
from gumba.errors import ResourceError
from gumba.runner.load import Chunk


class DraftPages(Protocol):
    """What is needed of the draft model's KV cache."""

    @property
    def page_tokens(self) -> int: ...

    def allocate(self, n: int, /) -> list[int]: ...

    def release(self, pages: list[int], /) -> None: ...


class DraftRunner(Protocol):
    """What is needed of the draft model."""

    @property
    def states(self) -> StatePool | None: ...

    @property
    def kv(self) -> DraftPages: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    def forward(self, chunks: Sequence[Chunk], /) -> np.ndarray[Any, Any]: ...


class ModelDrafter:
    """A drafter of one sequence; at most ``most`` tokens a guess. Its pages, and slots, are given back by ``close``.

    ``find``: the draft model; asked at the first guess, since until then models may be unloaded and loaded again.
    """

    def __init__(self, find: Callable[[], DraftRunner | None], n_vocab: int, most: int) -> None:
        self._find, self._n_vocab, self._most = find, n_vocab, most
        self._found: DraftRunner | None = None
        self._tokens: list[int] = []  # that the draft model's cache holds
        self._sure = 0  # of them, how many were in the sequence when the last guess began
        self._pages: list[int] = []
        # Of a model with recurrent layers: the slot of its state, and that of the state after the sure tokens.
        self._state, self._backup = -1, -1

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """What the draft model thinks is likeliest after ``tokens``; nothing when it has no room for them."""
        model = self._found = self._found or self._find()
        if model is None:
            return []
        most = min(most, self._most, model.n_ctx - len(tokens))
        if most <= 0 or not self._room(model, len(tokens) + most):
            return []
        common = min(self._sure, len(self._tokens))
        while common < min(len(self._tokens), len(tokens) - 1) and self._tokens[common] == tokens[common]:
            common += 1
        if model.states is not None and common < len(self._tokens):
            model.states.copy(self._backup, self._state)  # no guess reaches farther back than what was sure then
            common = model.states.lengths[self._state]
        del self._tokens[common:]
        self._sure = len(tokens)
        step = list(tokens[common:])
        found: list[int] = []
        while True:
            while len(step) > model.max_batch_tokens:
                self._forward(model, step[: model.max_batch_tokens], "none")
                step = step[model.max_batch_tokens :]
            row = self._forward(model, step, "last")[0, : self._n_vocab]
            if model.states is not None and not found:
                model.states.copy(self._state, self._backup)
            token = int(row.argmax())
            if not np.isfinite(row[token]):
                return found
            found.append(token)
            if len(found) == most:
                return found
            step = [token]

    def learn(self, n_cached: int) -> None:
        """Nothing: wrong guesses are found when the next one begins."""

    def close(self) -> None:
        """Give pages and slots back."""
        pages, self._pages = self._pages, []
        slots, self._state, self._backup = (self._state, self._backup), -1, -1
        self._tokens, self._sure = [], 0
        if self._found is None:
            return
        if pages:
            self._found.kv.release(pages)
        if self._found.states is not None:
            for slot in slots:
                if slot >= 0:
                    self._found.states.release(slot)

    def _forward(self, model: DraftRunner, tokens: list[int], outputs: Any) -> np.ndarray[Any, Any]:
        rows = model.forward([Chunk(tokens, len(self._tokens), self._pages, outputs, state=self._state)])
        self._tokens += tokens
        return rows

    def _room(self, model: DraftRunner, n_tokens: int) -> bool:
        missing = -(-n_tokens // model.kv.page_tokens) - len(self._pages)
        if missing > 0:
            try:
                self._pages += model.kv.allocate(missing)
            except ResourceError:
                return False
        if model.states is not None and self._backup < 0:
            try:
                self._state = model.states.allocate() if self._state < 0 else self._state
                self._backup = model.states.allocate()
            except ResourceError:
                return False
        return True
