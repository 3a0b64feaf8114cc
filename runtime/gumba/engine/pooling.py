"""Sequences that are computed once and not continued: logits of every token, embeddings, classifier scores."""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gumba.engine.sequence import MAX_LOGIT_ROWS, Outputs, Sequence
from gumba.sampling.sampler import Sampler


class LogitsSequence(Sequence):
    """Computes the logits of every token: float32 [n, n_vocab] in ``logits``.

    Args:
        tokens: Token ids, at least one.
        n_vocab: Width of the rows.
    """

    def __init__(self, tokens: Ordered[int], n_vocab: int) -> None:
        super().__init__(tokens)
        self.max_cached = 0
        self.logits = np.empty((self.n_prompt, n_vocab), np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        return self.tokens[self.n_cached : self.n_cached + min(budget, MAX_LOGIT_ROWS)], "all"

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        self.logits[self.n_cached : self.n_cached + count] = rows
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.prompt_done = True
            self.finish_reason = "length"


class EmbedSequence(Sequence):
    """Pools the final hidden states of a text: float64 [n_embd] in ``vector``.

    Args:
        tokens: Token ids, at least one.
        n_embd: Elements of a hidden state.
        pooling: "mean" over all tokens, only the "first" or the "last" token, or "none": the hidden states of all tokens, float32
            [n, n_embd], in ``rows`` instead.
        single_step: Compute all tokens in one step, for an encoder.
        skip: Leading tokens that are not pooled. If these are all, the vector is zero; with "first", it is the first token's.
    """

    wants_hidden = True

    def __init__(
        self,
        tokens: Ordered[int],
        n_embd: int,
        pooling: Literal["mean", "first", "last", "none"],
        single_step: bool = False,
        skip: int = 0,
    ) -> None:
        super().__init__(tokens)
        if pooling != "last":
            self.max_cached = 0
        self._pooling = pooling
        self._skip = min(skip, self.n_prompt)
        self._first_row = self._skip if self._skip < self.n_prompt else 0
        self.vector = np.zeros(n_embd, np.float64)
        self.rows = np.empty((self.n_prompt if pooling == "none" else 0, n_embd), np.float32)
        if single_step:
            self.single_step, self.uses_prefix_cache = True, False

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        if self.single_step:
            return self.tokens[:], "last" if self._pooling == "last" else "all"
        if self._pooling in ("mean", "none"):
            return self.tokens[self.n_cached : self.n_cached + min(count, MAX_LOGIT_ROWS)], "all"
        if self._pooling == "first":
            count = min(count, self._first_row + 1 - self.n_cached)
        end = self.n_prompt if self._pooling == "last" else self._first_row + 1
        is_last = self.n_cached + count == end
        return self.tokens[self.n_cached : self.n_cached + count], "last" if is_last else "none"

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        if self._pooling == "mean" and self.n_cached == 0:
            self.vector[:] = 0.0  # a preempted sequence starts again
        if self._pooling == "none":
            self.rows[self.n_cached : self.n_cached + count] = self.hidden
        # One row after the other, so that the sum does not depend on how tokens are grouped into steps.
        for row in self._pooled_rows():
            self.vector = self.vector + row if self._pooling == "mean" else row.astype(np.float64)
        self.n_cached += count
        done = self.n_cached > self._first_row if self._pooling == "first" else self.n_cached == self.n_prompt
        if done:
            if self._pooling == "mean":
                self.vector /= max(1, self.n_prompt - self._skip)
            self.prompt_done = True
            self.finish_reason = "length"

    def _pooled_rows(self) -> NDArray[np.float32]:
        """This step's hidden states that are pooled."""
        if self._pooling == "first":
            return self.hidden[self._first_row : self._first_row + 1] if self.single_step else self.hidden
        if self._pooling == "last":
            return self.hidden[: 0 if self._skip == self.n_prompt else None]
        return self.hidden[max(0, self._skip - self.n_cached) :]


class ClassifySequence(Sequence):
    """Computes the outputs of a model's classifier head for a text: float32 [n_labels] in ``scores``.

    Args:
        tokens: Token ids, at least one.
        single_step: For an encoder: all tokens in one step, and the head reads the first one. A decoder's head reads the last.
    """

    def __init__(self, tokens: Ordered[int], *, single_step: bool) -> None:
        super().__init__(tokens)
        if single_step:
            self.max_cached = 0
            self.single_step, self.uses_prefix_cache = True, False
        self.scores = np.empty(0, np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        if self.single_step:
            return self.tokens[:], "all"
        count = min(self.remaining, budget)
        return self.tokens[self.n_cached : self.n_cached + count], "last" if count == self.remaining else "none"

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.scores = rows[0].copy()
            self.prompt_done = True
            self.finish_reason = "length"
