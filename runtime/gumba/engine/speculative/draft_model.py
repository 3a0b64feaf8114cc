"""Speculative decoding with a smaller model of the same vocabulary (Leviathan et al. 2023; Chen et al. 2023).

The large model verifies the draft by choosing each token itself, with its own random numbers: unlike with rejection sampling,
the answer is not only of the same distribution but the very same. So the draft model is always greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gumba.backends.chunks import Chunk
from gumba.engine.protocols import StatePool
from gumba.errors import ResourceError


class DraftPages(Protocol):
    """What a drafter needs of the draft model's KV cache."""

    @property
    def page_tokens(self) -> int:
        """Tokens per page."""

    def allocate(self, count: int, /) -> list[int]:
        """Take free pages, all or none. Raises ResourceError if there are fewer."""

    def release(self, pages: list[int], /) -> None:
        """Free pages."""


class DraftRunner(Protocol):
    """What a drafter needs of the draft model."""

    @property
    def states(self) -> StatePool | None:
        """The states of recurrent layers; None for a model without."""

    @property
    def kv(self) -> DraftPages:
        """The KV cache."""

    @property
    def n_ctx(self) -> int:
        """Context length in tokens."""

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens in one step."""

    def forward(self, chunks: Sequence[Chunk], /) -> NDArray[np.float32]:
        """Compute one step: logits, float32 [rows, n_vocab]."""


class ModelDrafter:
    """A drafter for one sequence. ``close`` frees its pages and state slots.

    Args:
        find_model: Returns the draft model, None while there is none. Called at the first proposal: until then, models may be
            unloaded and loaded again.
        n_vocab: Tokens of the vocabulary: the first logits of a row.
        max_tokens: Maximum length of a proposal.
    """

    def __init__(self, find_model: Callable[[], DraftRunner | None], n_vocab: int, max_tokens: int) -> None:
        self._find_model, self._n_vocab, self._max_tokens = find_model, n_vocab, max_tokens
        self._model: DraftRunner | None = None
        self._tokens: list[int] = []  # in the draft model's KV cache
        self._n_verified = 0  # of them, the number that the sequence had when the last proposal began
        self._pages: list[int] = []
        # For recurrent layers: slots of the current state, and of the state after the verified tokens.
        self._state, self._backup_state = -1, -1

    def propose(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The draft model's greedy continuation of ``tokens``; none if its KV cache is full."""
        model = self._model = self._model or self._find_model()
        if model is None:
            return []
        limit = min(limit, self._max_tokens, model.n_ctx - len(tokens))
        if limit <= 0 or not self._allocate(model, len(tokens) + limit):
            return []
        common = min(self._n_verified, len(self._tokens))
        while common < min(len(self._tokens), len(tokens) - 1) and self._tokens[common] == tokens[common]:
            common += 1
        if model.states is not None and common < len(self._tokens):
            model.states.copy(
                self._backup_state, self._state
            )  # a proposal never reaches back before the verified tokens
            common = model.states.lengths[self._state]
        del self._tokens[common:]
        self._n_verified = len(tokens)
        step = list(tokens[common:])
        proposal: list[int] = []
        while True:
            while len(step) > model.max_batch_tokens:
                self._forward(model, step[: model.max_batch_tokens], "none")
                step = step[model.max_batch_tokens :]
            row = self._forward(model, step, "last")[0, : self._n_vocab]
            if model.states is not None and not proposal:
                model.states.copy(self._state, self._backup_state)
            token = int(row.argmax())
            if not np.isfinite(row[token]):
                return proposal
            proposal.append(token)
            if len(proposal) == limit:
                return proposal
            step = [token]

    def on_verified(self, n_cached: int) -> None:
        """Do nothing: the next proposal compares tokens itself."""

    def close(self) -> None:
        """Free pages and state slots."""
        pages, self._pages = self._pages, []
        slots, self._state, self._backup_state = (self._state, self._backup_state), -1, -1
        self._tokens, self._n_verified = [], 0
        if self._model is None:
            return
        if pages:
            self._model.kv.release(pages)
        if self._model.states is not None:
            for slot in slots:
                if slot >= 0:
                    self._model.states.release(slot)

    def _forward(self, model: DraftRunner, tokens: list[int], outputs: Literal["none", "last"]) -> NDArray[np.float32]:
        rows = model.forward([Chunk(tokens, len(self._tokens), self._pages, outputs, state=self._state)])
        self._tokens += tokens
        return rows

    def _allocate(self, model: DraftRunner, n_tokens: int) -> bool:
        """Pages for ``n_tokens`` tokens, and state slots; False if there are too few."""
        missing = -(-n_tokens // model.kv.page_tokens) - len(self._pages)
        if missing > 0:
            try:
                self._pages += model.kv.allocate(missing)
            except ResourceError:
                return False
        if model.states is not None and self._backup_state < 0:
            try:
                self._state = model.states.allocate() if self._state < 0 else self._state
                self._backup_state = model.states.allocate()
            except ResourceError:
                return False
        return True
