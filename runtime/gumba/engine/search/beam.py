"""Beam search: the likeliest whole answers, found by keeping the best few beginnings at every step.

Which beginnings go on, which answers are complete, and when no better one can come, is decided as transformers' ``generate``
decides it: of the continuations of all beams, the ``beam_width`` best that do not end go on, and those that end are kept if
they are among the ``beam_width`` best of all. Scores divide by a power of the length (Wu et al. 2016). Diverse groups take
turns within a step, and each pays for the tokens that earlier groups have taken in it (Vijayakumar et al. 2016).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as Ordered
from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gumba.engine.search.base import Branch, Search, largest, likely
from gumba.errors import RequestError
from gumba.outputs import FinishReason, Timings
from gumba.sampling.sampler import Sampler
from gumba.sampling_params import BeamSearchParams


class Beam(Branch):
    """A beginning of an answer.

    ``logprob``: the sum of its tokens' log-probabilities; ``score``: the same after its group's diversity penalties.
    """

    def __init__(self, search: BeamSearch, tokens: Ordered[int], logprob: float, score: float) -> None:
        super().__init__(search, tokens)
        self.search: BeamSearch = search
        self.logprob, self.score = logprob, score
        #: Tokens that may follow, int64 [n], and their log-probabilities, float64 [n], the likeliest first.
        self.candidates: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self.n_cached += count
        if len(rows):
            self.candidates = self.search.likeliest(self.tokens[self.n_source :], rows[0], sampler)
            self.waiting_on_group = True


@dataclass(frozen=True)
class Hypothesis:
    """An answer: its tokens, the sum of their log-probabilities, and the score that answers are ranked by."""

    tokens: list[int]
    logprob: float
    score: float
    reason: FinishReason


@dataclass
class _Group:
    """Beams that compete with each other, best first, and the best answers found so far, best first."""

    beams: list[Beam]
    answers: list[Hypothesis] = field(default_factory=list)
    done: bool = False


class BeamSearch(Search, Beam):
    """A request for the likeliest answers.

    Args:
        prompt: Token ids, at least one and fewer than ``capacity``.
        params: How to search.
        end_ids: Tokens that end an answer.
        capacity: Tokens that fit the context.
    """

    def __init__(self, prompt: Ordered[int], params: BeamSearchParams, *, end_ids: Set[int], capacity: int) -> None:
        Beam.__init__(self, self, prompt, 0.0, 0.0)
        self.params = params
        self.priority = params.priority
        self.uses_prefix_cache = params.cache_prompt
        self._ends = np.array(sorted(end_ids), np.int64)
        self._end_ids = end_ids
        self._limit = capacity if params.max_tokens is None else min(self.n_prompt + params.max_tokens, capacity)
        self._width = params.beam_width // params.num_groups
        self._groups = [_Group([self]) for _ in range(params.num_groups)]
        self.branches = [self]
        self._length = 0

    @property
    def answers(self) -> list[Hypothesis]:
        """The best answers of all groups, best first, at most ``params.n``; fewer when no more can be formed."""
        found = [answer for group in self._groups for answer in group.answers]
        return sorted(found, key=lambda answer: -answer.score)[: self.params.n]

    def likeliest(
        self, tokens: list[int], row: np.ndarray[Any, Any], sampler: Sampler
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The tokens that may follow ``tokens`` (int64 [n]) and their log-probabilities (float64 [n]), likeliest first.

        They are enough for every choice to come: a group's beams that go on, all ends, and what other groups may take away.
        ``row``: logits, float32 [>= n_vocab]. Raises ModelError when one is not finite.
        """
        params = self.params
        values, total = likely(row, sampler)
        if params.temperature not in (0, 1):
            values /= params.temperature
            total = values.max() + np.log(np.exp(values - values.max()).sum())
        values -= total
        if params.repetition_penalty != 1.0:
            values[np.unique(tokens)] *= params.repetition_penalty  # none is above 0
        if params.no_repeat_ngram_size:
            values[_repeating(tokens, params.no_repeat_ngram_size)] = -np.inf
        if self._length < params.min_tokens:
            values[self._ends] = -np.inf
        ids = largest(values, params.beam_width + len(self._ends))
        return ids, values[ids]

    def select(self) -> dict[Branch, list[Branch]]:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._length += 1
        chosen: dict[Branch, list[Branch]] = {}
        taken: Counter[int] = Counter()
        for group in self._groups:
            if not group.done:
                for parent, child in self._continue(group, taken):
                    chosen.setdefault(parent, []).append(child)
                taken.update(beam.tokens[-1] for beam in group.beams)
        if not chosen:
            if not self.answers:
                raise RequestError("no token is left to choose from: min_tokens or no_repeat_ngram_size rule out all")
            self.finish_reason = self.answers[0].reason
        return chosen

    def _continue(self, group: _Group, taken: Counter[int]) -> list[tuple[Beam, Beam]]:
        """Go on with a group's best; parents and children. ``taken``: how often earlier groups took a token in this step."""
        params, parents = self.params, group.beams
        found = [beam.candidates for beam in parents if beam.candidates is not None]
        ids = np.concatenate([ids for ids, _ in found])
        logprobs = np.concatenate([logprobs for _, logprobs in found])
        owners = np.repeat(np.arange(len(found)), [len(ids) for ids, _ in found])
        scores = logprobs + np.array([beam.score for beam in parents])[owners]
        if params.diversity_penalty and taken:
            scores -= params.diversity_penalty * np.array([taken[token] for token in ids.tolist()])
        made: list[tuple[Beam, Beam]] = []
        full = self.n_prompt + self._length >= self._limit
        for place, at in enumerate(np.argsort(-scores, kind="stable").tolist()):
            if len(made) == self._width or (full and place == self._width):
                break
            parent, token, score = parents[owners[at]], int(ids[at]), float(scores[at])
            tokens, logprob = [*parent.tokens, token], parent.logprob + float(logprobs[at])
            ends = token in self._end_ids
            if not ends and not full:
                made.append((parent, Beam(self, tokens, logprob, score)))
            elif place < self._width:
                reason: FinishReason = "stop" if ends else "length"
                rank = _ranked(score, self._length, params.length_penalty)
                group.answers.append(Hypothesis(tokens[self.n_prompt :], logprob, rank, reason))
        group.answers.sort(key=lambda answer: -answer.score)
        del group.answers[self._width :]
        group.done = not made or self._settled(group, made[0][1].score)
        group.beams = [] if group.done else [child for _, child in made]
        return [] if group.done else made

    def _settled(self, group: _Group, best: float) -> bool:
        """Whether nothing that may still come of the group's best beam, of score ``best``, is waited for."""
        if len(group.answers) < self._width:
            return False
        params = self.params
        if params.early_stopping is True:
            return True
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = self._limit - self.n_prompt if longest else self._length
        return _ranked(best, length, params.length_penalty) <= group.answers[-1].score

    def cancel(self) -> None:
        """End with what is there: the complete answers, and the beams as far as they are."""
        if self.done:
            return
        penalty = self.params.length_penalty
        for group in self._groups if self._length else self._groups[:1]:
            for beam in group.beams:
                rank = _ranked(beam.score, max(self._length, 1), penalty)
                group.answers.append(Hypothesis(beam.tokens[self.n_prompt :], beam.logprob, rank, "cancelled"))
        super().cancel()

    def timings(self) -> Timings:
        return replace(super().timings(), generated_tokens=len(self.answers[0].tokens) if self.answers else 0)


def _ranked(score: float, length: int, penalty: float) -> float:
    """The score of an answer of ``length`` tokens, whose sum of log-probabilities is ``score``."""
    if not score:
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.float64(score) / np.float64(length) ** penalty)


def _repeating(tokens: list[int], size: int) -> list[int]:
    """Tokens that would make the last ``size`` tokens the same as some before."""
    end = tokens[len(tokens) - size + 1 :] if size > 1 else []
    return [tokens[at + size - 1] for at in range(len(tokens) - size + 1) if tokens[at : at + size - 1] == end]
