"""Base classes of searches: requests whose branches run side by side and wait for each other after every token.

Each branch is computed once, then it waits (``waiting_on_group``) until all branches of its request are computed, in whichever
steps. Then the request selects, and the branches that it selected fork into new ones, which run with their pages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Ordered

import numpy as np
from numpy.typing import NDArray

from gumba.engine.sequence import Fork, Outputs, Sequence
from gumba.outputs import FinishReason
from gumba.sampling.sampler import Sampler

#: Values per block in ``top_k``: the maximum of a block stands for it.
_BLOCK = 16


class Branch(Sequence):
    """One continuation of a search's prompt; its error is that of the whole request.

    Args:
        search: The request.
        tokens: The prompt's tokens and those chosen so far.
    """

    def __init__(self, search: Search, tokens: Ordered[int]) -> None:
        super().__init__(tokens)
        self.search = search
        if search is not self:
            self.n_prompt, self.priority, self.uses_prefix_cache = (
                search.n_prompt,
                search.priority,
                search.uses_prefix_cache,
            )
            self.n_source = search.n_source
            self.is_request = False

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        return self.tokens[self.n_cached : self.n_cached + count], "last" if count == self.remaining else "none"

    def after_step(self) -> Iterable[Fork]:
        search = self.search
        if search.done or not all(branch.waiting_on_group for branch in search.branches):
            return ()
        selected = search.select()
        # Dropped branches come first: the others may need their pages and their places in the batch. Those that go on have the
        # order of their children in ``branches``, in which the engine removes them if the search is cancelled.
        parents = [*(branch for branch in search.branches if branch not in selected), *selected]
        for parent in parents:
            if parent is not search:
                parent.finish_reason = "stop"
        search.branches = [child for children in selected.values() for child in children]
        return [Fork(parent, selected.get(parent, ())) for parent in parents]

    def fail(self, error: BaseException) -> None:
        self.search.fail(error)


class Search(Branch):
    """The request: its first branch is the prompt itself; once that is computed, it owns all other branches."""

    #: The branches that run.
    branches: list[Branch]

    @abstractmethod
    def select(self) -> Mapping[Branch, Ordered[Branch]]:
        """Branches to continue -> their continuations. Empty: the search has ended, and ``finish_reason`` is set."""

    def cancel(self) -> None:
        self._end("cancelled", None)

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._end(None, error)

    def _end(self, reason: FinishReason | None, error: BaseException | None) -> None:
        for branch in [*self.branches, self]:
            branch.finish_reason, branch.error = reason, error


def log_normalizer(row: NDArray[np.float32], sampler: Sampler) -> tuple[NDArray[np.float64], float]:
    """Logits (``row``: float32 [>= n_vocab]) as float64 [n_vocab], and the logarithm of the sum of their exponentials.

    Raises ModelError if a logit is not finite.
    """
    values = row[: sampler.n_vocab].astype(np.float64)
    best = int(values.argmax())
    return values, float(values[best]) - sampler.logprobs(row, best, 0).logprob


def top_k(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Indices of the ``count`` largest ``values`` (float64 [n]), largest first (ties: lowest index), without those of -inf.

    The ``count``-th largest of the blocks' maxima is a lower bound of the ``count``-th largest value. So values below it need
    not be sorted, and finding it reads the values once.
    """
    tops = np.maximum.reduceat(values, np.arange(0, values.size, _BLOCK))
    if count < tops.size:
        bound = np.partition(tops, tops.size - count)[tops.size - count]
    elif count < values.size:
        bound = np.partition(values, values.size - count)[values.size - count]
    else:
        bound = -np.inf
    candidates = np.flatnonzero((values >= bound) & (values > -np.inf))
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]
