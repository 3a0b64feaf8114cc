"""Requests that try several continuations side by side: sequences that wait for each other after every token.

Each branch is computed once, and then ``held`` until all branches of its request are, whichever steps that took. Then the
request chooses, and new branches run with the pages of those that they continue.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Ordered
from typing import TYPE_CHECKING, Any

import numpy as np

from gumba.engine.sequence import Outputs, Sequence
from gumba.outputs import FinishReason
from gumba.sampling.sampler import Sampler

if TYPE_CHECKING:
    from gumba.engine.scheduler import Scheduler

#: The largest of so many numbers stands for all of them where the largest of all are looked for.
_BLOCK = 16


class Branch(Sequence):
    """A beginning of an answer; what ends it ends the whole request."""

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

    @property
    def owner(self) -> Sequence:
        return self.search

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        return self.tokens[self.n_cached : self.n_cached + count], "last" if count == self.remaining else "none"

    def after_step(self, scheduler: Scheduler) -> Iterable[Sequence]:
        search = self.search
        if search.done or not all(branch.waiting_on_group for branch in search.branches):
            return ()
        chosen = search.select()
        # Those that nothing comes of go first: others may need their place.
        for parent in sorted(search.branches, key=lambda branch: branch in chosen):
            scheduler.fork(parent, chosen.get(parent, ()))
            if parent is not search:
                parent.finish_reason = "stop"
        search.branches = [child for children in chosen.values() for child in children]
        return search.branches

    def fail(self, error: BaseException) -> None:
        self.search.fail(error)


class Search(Branch):
    """The request: the branch that is nothing but the prompt, and, when that is computed, the owner of all others."""

    #: Those that run.
    branches: list[Branch]

    @abstractmethod
    def select(self) -> Mapping[Branch, Ordered[Branch]]:
        """The branches that go on, each with its continuations. None: this is the end, and ``finish_reason`` is set."""

    def cancel(self) -> None:
        self._end("cancelled", None)

    def fail(self, error: BaseException) -> None:
        if not self.done:
            self._end(None, error)

    def _end(self, reason: FinishReason | None, error: BaseException | None) -> None:
        for branch in [*self.branches, self]:
            branch.finish_reason, branch.error = reason, error


def likely(row: np.ndarray[Any, Any], sampler: Sampler) -> tuple[np.ndarray[Any, Any], float]:
    """Logits (``row``: float32 [>= n_vocab]) as float64 [n_vocab], and the logarithm of the sum of their exponentials.

    Raises ModelError when one is not finite.
    """
    values: np.ndarray[Any, Any] = row[: sampler.n_vocab].astype(np.float64)
    best = int(values.argmax())
    return values, float(values[best]) - sampler.logprobs(row, best, 0).logprob


def largest(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Where the ``count`` largest of ``values`` (float64 [n]) are, the largest first, of equal ones the first; never -inf.

    As many blocks have their largest number at or above a bound as numbers are asked for: so what lies below the bound need
    not be sorted, and finding it reads the numbers once.
    """
    tops = np.maximum.reduceat(values, np.arange(0, values.size, _BLOCK))
    if count < tops.size:
        least = np.partition(tops, tops.size - count)[tops.size - count]
    elif count < values.size:
        least = np.partition(values, values.size - count)[values.size - count]
    else:
        least = -np.inf
    at = np.flatnonzero((values >= least) & (values > -np.inf))
    found: np.ndarray[Any, Any] = at[np.argsort(-values[at], kind="stable")[:count]]
    return found
