"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation").

Of the ``top_k`` likeliest tokens it chooses one that is likely and whose hidden state differs from those of all tokens before:
the one of highest ``(1 - alpha) * probability - alpha * largest cosine``. A token's hidden state is known only once it is
computed: so every candidate is a branch that runs one token, and the selected one has its own candidates already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Ordered
from collections.abc import Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gumba.engine.search.base import Branch, Search, log_normalizer, top_k
from gumba.engine.sequence import MAX_LOGIT_ROWS, Outputs
from gumba.errors import RequestError
from gumba.outputs import Timings
from gumba.sampling.sampler import Sampler
from gumba.sampling_params import ContrastiveSearchParams


class CandidateBranch(Branch):
    """The answer so far and one candidate for its next token.

    Args:
        search: The request.
        tokens: The prompt's tokens, those chosen so far, and the candidate.
        probability: Probability of the candidate.
    """

    wants_hidden = True

    def __init__(self, search: ContrastiveSearch, tokens: Ordered[int], probability: float) -> None:
        super().__init__(search, tokens)
        self.search: ContrastiveSearch = search
        self.probability = probability
        #: Its hidden state, scaled to length 1: float32 [n_embd].
        self.direction = np.empty(0, np.float32)
        #: Candidates for the token after it, likeliest first: ids and probabilities.
        self.candidates: list[tuple[int, float]] = []

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        self.n_cached += count
        if len(rows):
            self.direction = _directions(self.hidden)[0]
            self.candidates = self.search.candidates_after(len(self.tokens), rows[0], sampler)
            self.waiting_on_group = True


class ContrastiveSearch(Search, CandidateBranch):
    """A request for one answer by contrastive search.

    Args:
        prompt: Token ids, at least one and fewer than ``n_ctx``. All of it is computed, since its hidden states are needed.
        params: Parameters of the search.
        end_ids: Tokens that end the answer.
        n_ctx: Context length in tokens.
        n_embd: Elements of a hidden state.
    """

    max_cached = 0

    def __init__(
        self, prompt: Ordered[int], params: ContrastiveSearchParams, *, end_ids: Set[int], n_ctx: int, n_embd: int
    ) -> None:
        CandidateBranch.__init__(self, self, prompt, 1.0)
        self.params = params
        self.priority = params.priority
        #: The answer so far.
        self.answer: list[int] = []
        self.branches = [self]
        self._ends = np.array(sorted(end_ids), np.int64)
        self._end_ids = end_ids
        self._limit = n_ctx if params.max_tokens is None else min(self.n_prompt + params.max_tokens, n_ctx)
        #: Hidden states of all tokens so far, scaled to length 1; rows beyond them are not used yet.
        self._context = np.empty((self.n_prompt, n_embd), np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        return self.tokens[self.n_cached : self.n_cached + min(budget, MAX_LOGIT_ROWS)], "all"

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        self._context[self.n_cached : self.n_cached + count] = _directions(self.hidden)
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.prompt_done = True
            self.candidates = self.candidates_after(self.n_prompt, rows[-1], sampler)
            self.waiting_on_group = True

    def candidates_after(self, n_tokens: int, row: NDArray[np.float32], sampler: Sampler) -> list[tuple[int, float]]:
        """The ``top_k`` likeliest next tokens and their probabilities; ``row``: logits after ``n_tokens``, float32 [>= n_vocab].

        Raises ModelError if a logit is not finite, RequestError if no token is left.
        """
        values, total = log_normalizer(row, sampler)
        if n_tokens - self.n_prompt < self.params.min_tokens:
            values[self._ends] = -np.inf
            if values.max() == -np.inf:
                raise RequestError("no token is left to choose from: min_tokens rules out all")
            total = values.max() + np.log(np.exp(values - values.max()).sum())
        ids = top_k(values, self.params.top_k)
        return list(zip(ids.tolist(), np.exp(values[ids] - total).tolist()))

    def select(self) -> dict[Branch, list[Branch]]:
        best = self._best()
        if best is not self:
            self._accept(best)
        if self.finish_reason is not None:
            return {}
        return {
            best: [CandidateBranch(self, [*best.tokens, token], probability) for token, probability in best.candidates]
        }

    def _best(self) -> CandidateBranch:
        """The branch of highest score (ties: the likeliest)."""
        alpha = self.params.penalty_alpha
        context = self._context[: self.n_prompt + len(self.answer)]
        branches = [branch for branch in self.branches if isinstance(branch, CandidateBranch)]
        if len(branches) == 1:
            return branches[0]
        # einsum instead of BLAS, whose sums depend on its number of threads.
        cosines = [float(np.einsum("ij,j->i", context, branch.direction).max()) for branch in branches]
        scores = [(1 - alpha) * branch.probability - alpha * cosine for branch, cosine in zip(branches, cosines)]
        return branches[scores.index(max(scores))]

    def _accept(self, branch: CandidateBranch) -> None:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        size = self.n_prompt + len(self.answer)
        if size == len(self._context):
            longer = np.empty((min(2 * size, self._limit), self._context.shape[1]), np.float32)
            longer[:size] = self._context
            self._context = longer
        self._context[size] = branch.direction
        self.answer.append(branch.tokens[-1])
        if self.answer[-1] in self._end_ids:
            self.finish_reason = "stop"
        elif size + 1 == self._limit:
            self.finish_reason = "length"

    def timings(self) -> Timings:
        return replace(super().timings(), generated_tokens=len(self.answer))


def _directions(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (float32 [n, n_embd]) scaled to length 1; a row of zeros stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", hidden, hidden, dtype=np.float64))
    scaled: NDArray[np.float32] = (hidden / np.maximum(lengths, 1e-30)[:, None]).astype(np.float32)
    return scaled
