"""The sampler chain of one request: which samplers are on, and how they run."""

from __future__ import annotations

from gumba.sampling.filters import FILTERS
from gumba.sampling_params import SAMPLERS, SamplingParams

#: Largest k for which top-k collects its tokens in a heap.
HEAP = 1024
#: Samplers that, in this order, run as one compiled call without candidates.
_ONE_CALL = ("top_k", "top_p", "min_p", "temperature")
#: Samplers that change logits instead of dropping candidates.
_EDITS = ("penalties", "dry")


class Chain:
    """The samplers that the parameters turn on, in their order, split by the way in which they run."""

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        names = SAMPLERS if params.samplers is None else params.samplers
        active = [name for name in names if _is_on(name, params, n_vocab)]
        #: Whether the most likely token is taken.
        self.greedy = "temperature" in active and params.temperature == 0
        #: Mirostat's version, 1 or 2; 0 if it is off.
        self.mirostat = 0 if self.greedy else params.mirostat
        if self.greedy or self.mirostat:
            active = [name for name in active if name in _EDITS or (name == "temperature" and not self.greedy)]
        n_edits = 0
        while n_edits < len(active) and active[n_edits] in _EDITS:
            n_edits += 1
        #: Samplers that change the row before candidates are gathered, and those that work on candidates.
        self.edits, self.filters = active[:n_edits], active[n_edits:]
        #: Whether penalties follow the temperature, so that the signs of the divided logits matter.
        self.signed = "penalties" in self.filters and "temperature" in self.filters[: self.filters.index("penalties")]
        order = [_ONE_CALL.index(name) for name in self.filters if name in _ONE_CALL]
        #: Whether all filters run as one compiled call.
        self.one_call = self.greedy or (
            len(order) == len(self.filters)
            and order == sorted(order)
            and not self.mirostat
            and params.dynatemp_range == 0
            and params.min_keep <= 1
            and ("top_k" not in active or params.top_k <= HEAP)
        )
        self.temperature = params.temperature if "temperature" in active else 1.0
        self.top_k = params.top_k if "top_k" in active else 0
        self.top_p = params.top_p if "top_p" in active else 1.0
        self.min_p = params.min_p if "min_p" in active else 0.0
        if self.greedy or (self.one_call and self.top_p == 0):
            self.top_k, self.top_p = 1, 1.0  # greedy is top-k of 1


def _is_on(name: str, params: SamplingParams, n_vocab: int) -> bool:
    if name == "temperature":
        return True
    if name == "penalties":
        penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        return params.repetition_window != 0 and penalties != (1.0, 0.0, 0.0)
    if name == "dry":
        return params.dry_multiplier > 0 and params.dry_range != 0
    if name == "top_k" and params.top_k >= n_vocab:
        return False
    return FILTERS[name].is_on(params)
