"""Beam search: the likeliest complete answers, found by keeping the ``beam_width`` best partial answers at every step.

The rules are those of transformers' ``generate``: of the continuations of all beams, the ``beam_width`` best that do not end
continue, and those that end are kept if they are among the ``beam_width`` best of all. Scores are divided by a power of the
length (Wu et al. 2016). Diverse groups take turns within a step, and each pays a penalty for the tokens that earlier groups
have chosen in it (Vijayakumar et al. 2016).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence as Ordered
from collections.abc import Set
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gumba.engine.search.base import Branch, Search, log_normalizer, top_k
from gumba.errors import RequestError
from gumba.outputs import FinishReason, Timings
from gumba.sampling.sampler import Sampler
from gumba.sampling_params import BeamSearchParams


class Beam(Branch):
    """A partial answer.

    Args:
        search: The request.
        tokens: The prompt's tokens and those chosen so far.
        logprob: Sum of the log-probabilities of the chosen tokens.
        score: The same, less its group's diversity penalties.
    """

    def __init__(self, search: BeamSearch, tokens: Ordered[int], logprob: float, score: float) -> None:
        super().__init__(search, tokens)
        self.search: BeamSearch = search
        self.logprob, self.score = logprob, score
        #: Candidates for its next token, likeliest first: ids, int64 [n], and log-probabilities, float64 [n].
        self.candidates: tuple[NDArray[np.intp], NDArray[np.float64]] | None = None

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        self.n_cached += count
        if len(rows):
            self.candidates = self.search.candidates_after(self.tokens[self.n_source :], rows[0], sampler)
            self.waiting_on_group = True


@dataclass(frozen=True)
class Hypothesis:
    """A complete answer: its tokens, the sum of their log-probabilities, and the score that ranks answers."""

    tokens: list[int]
    logprob: float
    score: float
    reason: FinishReason


@dataclass
class _Group:
    """Beams that compete with each other, best first, and the best complete answers so far, best first."""

    beams: list[Beam]
    answers: list[Hypothesis] = field(default_factory=list)
    done: bool = False


class BeamSearch(Search, Beam):
    """A request for the likeliest answers to one prompt.

    Args:
        prompt: Token ids, at least one and fewer than ``n_ctx``.
        params: Parameters of the search.
        end_ids: Tokens that end an answer.
        n_ctx: Context length in tokens.
    """

    def __init__(self, prompt: Ordered[int], params: BeamSearchParams, *, end_ids: Set[int], n_ctx: int) -> None:
        Beam.__init__(self, self, prompt, 0.0, 0.0)
        self.params = params
        self.priority = params.priority
        self.uses_prefix_cache = params.cache_prompt
        self._ends = np.array(sorted(end_ids), np.int64)
        self._end_ids = end_ids
        self._limit = n_ctx if params.max_tokens is None else min(self.n_prompt + params.max_tokens, n_ctx)
        self._width = params.beam_width // params.num_groups
        self._groups = [_Group([self]) for _ in range(params.num_groups)]
        self.branches = [self]
        self._length = 0

    @property
    def answers(self) -> list[Hypothesis]:
        """The best answers of all groups, best first, at most ``params.n``; fewer only if there are no more."""
        answers = [answer for group in self._groups for answer in group.answers]
        return sorted(answers, key=lambda answer: -answer.score)[: self.params.n]

    def candidates_after(
        self, tokens: list[int], row: NDArray[np.float32], sampler: Sampler
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Candidates for the token after ``tokens``, likeliest first: ids, int64 [n], and log-probabilities, float64 [n].

        There are enough for any selection: ``beam_width`` that continue, and all that end the answer.
        ``row``: logits, float32 [>= n_vocab]. Raises ModelError if one is not finite.
        """
        params = self.params
        values, total = log_normalizer(row, sampler)
        if params.temperature not in (0, 1):
            values /= params.temperature
            total = values.max() + np.log(np.exp(values - values.max()).sum())
        values -= total
        if params.repetition_penalty != 1.0:
            values[np.unique(tokens)] *= params.repetition_penalty  # none is above 0
        if params.no_repeat_ngram_size:
            values[_repeated_ngram_ends(tokens, params.no_repeat_ngram_size)] = -np.inf
        if self._length < params.min_tokens:
            values[self._ends] = -np.inf
        ids = top_k(values, params.beam_width + len(self._ends))
        return ids, values[ids]

    def select(self) -> dict[Branch, list[Branch]]:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._length += 1
        selected: dict[Branch, list[Branch]] = {}
        taken: Counter[int] = Counter()
        for group in self._groups:
            if not group.done:
                for parent, child in self._continue(group, taken):
                    selected.setdefault(parent, []).append(child)
                taken.update(beam.tokens[-1] for beam in group.beams)
        if not selected:
            if not self.answers:
                raise RequestError("no token is left to choose from: min_tokens or no_repeat_ngram_size rule out all")
            self.finish_reason = self.answers[0].reason
        return selected

    def _continue(self, group: _Group, taken: Counter[int]) -> list[tuple[Beam, Beam]]:
        """Continue a group's best beams: pairs of parent and child. ``taken``: tokens of earlier groups in this step, counted."""
        params, parents = self.params, group.beams
        candidates = [beam.candidates for beam in parents if beam.candidates is not None]
        ids = np.concatenate([ids for ids, _ in candidates])
        logprobs = np.concatenate([logprobs for _, logprobs in candidates])
        parent_of = np.repeat(np.arange(len(candidates)), [len(ids) for ids, _ in candidates])
        scores = logprobs + np.array([beam.score for beam in parents])[parent_of]
        if params.diversity_penalty and taken:
            scores -= params.diversity_penalty * np.array([taken[token] for token in ids.tolist()])
        children: list[tuple[Beam, Beam]] = []
        full = self.n_prompt + self._length >= self._limit
        for place, at in enumerate(np.argsort(-scores, kind="stable").tolist()):
            if len(children) == self._width or (full and place == self._width):
                break
            parent, token, score = parents[parent_of[at]], int(ids[at]), float(scores[at])
            tokens, logprob = [*parent.tokens, token], parent.logprob + float(logprobs[at])
            ends = token in self._end_ids
            if not ends and not full:
                children.append((parent, Beam(self, tokens, logprob, score)))
            elif place < self._width:
                reason: FinishReason = "stop" if ends else "length"
                rank = _length_normalized(score, self._length, params.length_penalty)
                group.answers.append(Hypothesis(tokens[self.n_prompt :], logprob, rank, reason))
        group.answers.sort(key=lambda answer: -answer.score)
        del group.answers[self._width :]
        group.done = not children or self._is_decided(group, children[0][1].score)
        group.beams = [] if group.done else [child for _, child in children]
        return [] if group.done else children

    def _is_decided(self, group: _Group, best: float) -> bool:
        """Whether the group's best beam, of score ``best``, cannot improve the answers, or ``early_stopping`` ends the search."""
        if len(group.answers) < self._width:
            return False
        params = self.params
        if params.early_stopping is True:
            return True
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = self._limit - self.n_prompt if longest else self._length
        return _length_normalized(best, length, params.length_penalty) <= group.answers[-1].score

    def cancel(self) -> None:
        """End as cancelled, with the complete answers and the current beams as answers."""
        if self.done:
            return
        penalty = self.params.length_penalty
        for group in self._groups if self._length else self._groups[:1]:
            for beam in group.beams:
                rank = _length_normalized(beam.score, max(self._length, 1), penalty)
                group.answers.append(Hypothesis(beam.tokens[self.n_prompt :], beam.logprob, rank, "cancelled"))
        super().cancel()

    def timings(self) -> Timings:
        return replace(super().timings(), generated_tokens=len(self.answers[0].tokens) if self.answers else 0)


def _length_normalized(score: float, length: int, penalty: float) -> float:
    """The final score of an answer: ``score``, its sum of log-probabilities, divided by ``length ** penalty``."""
    if not score:
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.float64(score) / np.float64(length) ** penalty)


def _repeated_ngram_ends(tokens: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of ``size`` tokens that ``tokens`` contain already."""
    end = tokens[len(tokens) - size + 1 :] if size > 1 else []
    return [tokens[at + size - 1] for at in range(len(tokens) - size + 1) if tokens[at : at + size - 1] == end]
