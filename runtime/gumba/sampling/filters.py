"""The samplers that drop candidates, by name: when each is on, and what it keeps.

``docs/contributing/add-sampler.md`` shows how to add one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gumba.sampling.candidates import Candidates
from gumba.sampling_params import SamplingParams


class Step(Protocol):
    """What a filter reads of a sequence: its parameters, and the numbers of this step."""

    @property
    def params(self) -> SamplingParams: ...

    @property
    def min_keep(self) -> int:
        """Minimum number of candidates to keep, 1 or more."""
        ...

    def coin(self) -> float:
        """The step's second uniform number, in [0, 1)."""
        ...


@dataclass(frozen=True)
class Filter:
    """A sampler that drops candidates.

    Args:
        is_on: Whether the parameters turn it on.
        apply: Drops candidates, of which there are two or more.
    """

    is_on: Callable[[SamplingParams], bool]
    apply: Callable[[Candidates, Step], None]


def _eta_cutoff(candidates: Candidates, step: Step) -> None:
    eta = step.params.eta_cutoff
    candidates.keep_above(min(eta, math.sqrt(eta) * math.exp(-candidates.entropy())), step.min_keep)


def _xtc(candidates: Candidates, step: Step) -> None:
    if step.coin() < step.params.xtc_probability:
        candidates.exclude_top(step.params.xtc_threshold, step.min_keep)


#: Every filter of ``gumba.sampling_params.SAMPLERS``; ``SamplingParams`` documents what each one keeps.
FILTERS: dict[str, Filter] = {
    "top_n_sigma": Filter(
        lambda params: params.top_n_sigma > 0,
        lambda c, step: c.keep_within(step.params.top_n_sigma * c.deviation(), step.min_keep),
    ),
    "top_k": Filter(
        lambda params: params.top_k > 0,
        lambda c, step: c.keep_top_k(max(step.params.top_k, step.min_keep)),
    ),
    "typical_p": Filter(
        lambda params: params.typical_p < 1,
        lambda c, step: c.keep_typical(step.params.typical_p, step.min_keep),
    ),
    "top_p": Filter(
        lambda params: params.top_p < 1,
        lambda c, step: c.keep_top_p(step.params.top_p, step.min_keep),
    ),
    "min_p": Filter(
        lambda params: params.min_p > 0,
        lambda c, step: c.keep_within(-math.log(step.params.min_p), step.min_keep),
    ),
    "epsilon_cutoff": Filter(
        lambda params: params.epsilon_cutoff > 0,
        lambda c, step: c.keep_above(step.params.epsilon_cutoff, step.min_keep),
    ),
    "eta_cutoff": Filter(lambda params: params.eta_cutoff > 0, _eta_cutoff),
    "xtc": Filter(lambda params: params.xtc_probability > 0, _xtc),
}
