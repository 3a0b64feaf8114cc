"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation").

Of the ``top_k`` likeliest tokens the one is taken that is likely, and whose hidden state is unlike those of all tokens before:
``(1 - alpha) * probability - alpha * largest cosine``. A token's hidden state is known only when it has been computed: so
every candidate is a branch that runs one token, and the one that is chosen has its candidates already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Ordered
from collections.abc import Set
from dataclasses import replace
from typing import Any

import numpy as np

from gumba.engine.search.base import Branch, Search, largest, likely
from gumba.engine.sequence import SCORED_PER_STEP, Outputs
from gumba.errors import RequestError
from gumba.outputs import Timings
from gumba.sampling.sampler import Sampler
from gumba.sampling_params import ContrastiveSearchParams


class Trial(Branch):
    """The answer so far and one candidate, of probability ``probability``."""

    wants_hidden = True

    def __init__(self, search: ContrastiveSearch, tokens: Ordered[int], probability: float) -> None:
        super().__init__(search, tokens)
        self.search: ContrastiveSearch = search
        self.probability = probability
        #: Its hidden state, of length 1: float32 [n_embd].
        self.direction = np.empty(0, np.float32)
        #: Tokens that may follow and their probabilities, the likeliest first.
        self.candidates: list[tuple[int, float]] = []

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self.n_cached += count
        if len(rows):
            self.direction = _directions(self.hidden)[0]
            self.candidates = self.search.likeliest(len(self.tokens), rows[0], sampler)
            self.waiting_on_group = True


class ContrastiveSearch(Search, Trial):
    """A request for one answer by contrastive search.

    Args:
        prompt: Token ids, at least one and fewer than ``capacity``. Its hidden states are needed, so all of it is computed.
        params: How to search.
        end_ids: Tokens that end the answer.
        capacity: Tokens that fit the context.
        n_embd: Elements of a hidden state.
    """

    max_cached = 0

    def __init__(
        self, prompt: Ordered[int], params: ContrastiveSearchParams, *, end_ids: Set[int], capacity: int, n_embd: int
    ) -> None:
        Trial.__init__(self, self, prompt, 1.0)
        self.params = params
        self.priority = params.priority
        #: The answer so far.
        self.answer: list[int] = []
        self.branches = [self]
        self._ends = np.array(sorted(end_ids), np.int64)
        self._end_ids = end_ids
        self._limit = capacity if params.max_tokens is None else min(self.n_prompt + params.max_tokens, capacity)
        #: Hidden states of all tokens so far, of length 1 each, and room for more.
        self._context = np.empty((self.n_prompt, n_embd), np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        return self.tokens[self.n_cached : self.n_cached + min(budget, SCORED_PER_STEP)], "all"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self._context[self.n_cached : self.n_cached + count] = _directions(self.hidden)
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.prompt_done = True
            self.candidates = self.likeliest(self.n_prompt, rows[-1], sampler)
            self.waiting_on_group = True

    def likeliest(self, n_tokens: int, row: np.ndarray[Any, Any], sampler: Sampler) -> list[tuple[int, float]]:
        """The ``top_k`` likeliest tokens to follow ``n_tokens``, and their probabilities; ``row``: logits, float32 [>= n_vocab].

        Raises ModelError when a logit is not finite, RequestError when no token is left.
        """
        values, total = likely(row, sampler)
        if n_tokens - self.n_prompt < self.params.min_tokens:
            values[self._ends] = -np.inf
            if values.max() == -np.inf:
                raise RequestError("no token is left to choose from: min_tokens rules out all")
            total = values.max() + np.log(np.exp(values - values.max()).sum())
        ids = largest(values, self.params.top_k)
        return list(zip(ids.tolist(), np.exp(values[ids] - total).tolist()))

    def select(self) -> dict[Branch, list[Branch]]:
        best = self._best()
        if best is not self:
            self._accept(best)
        if self.finish_reason is not None:
            return {}
        return {best: [Trial(self, [*best.tokens, token], chance) for token, chance in best.candidates]}

    def _best(self) -> Trial:
        """Of the branches the one that is likely and unlike what came before; of equal ones the likeliest."""
        alpha = self.params.penalty_alpha
        context = self._context[: self.n_prompt + len(self.answer)]
        trials = [branch for branch in self.branches if isinstance(branch, Trial)]
        if len(trials) == 1:
            return trials[0]
        # Not by BLAS, whose sums depend on its threads.
        alike = [float(np.einsum("ij,j->i", context, trial.direction).max()) for trial in trials]
        scores = [(1 - alpha) * trial.probability - alpha * cosine for trial, cosine in zip(trials, alike)]
        return trials[scores.index(max(scores))]

    def _accept(self, trial: Trial) -> None:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        size = self.n_prompt + len(self.answer)
        if size == len(self._context):
            longer = np.empty((min(2 * size, self._limit), self._context.shape[1]), np.float32)
            longer[:size] = self._context
            self._context = longer
        self._context[size] = trial.direction
        self.answer.append(trial.tokens[-1])
        if self.answer[-1] in self._end_ids:
            self.finish_reason = "stop"
        elif size + 1 == self._limit:
            self.finish_reason = "length"

    def timings(self) -> Timings:
        return replace(super().timings(), generated_tokens=len(self.answer))


def _directions(hidden: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows (float32 [n, n_embd]) scaled to length 1; one of nothing but zeros stays so."""
    lengths = np.sqrt(np.einsum("ij,ij->i", hidden, hidden, dtype=np.float64))
    scaled: np.ndarray[Any, Any] = (hidden / np.maximum(lengths, 1e-30)[:, None]).astype(np.float32)
    return scaled
