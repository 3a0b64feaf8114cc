"""Choosing a token: a pure function of a row of logits, the request's history, its parameters and its seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gumba.errors import ModelError
from gumba.kernels.sample import BLOCK, BUCKETS, LANES, sample_all, sample_top_k
from gumba.params import SamplingParams


class UniformStream:
    """Uniform numbers in [0, 1) of one request: number ``i`` depends on the seed and ``i`` alone.

    Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the seed, 53 bits a
    number. So a request's draws do not depend on who shares its steps, nor on being computed again.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while index >= len(self._numbers):
            self._numbers += ((self._bits.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers[index]


class Sampler:
    """Samples from rows of ``n_vocab`` logits; holds the scratch memory, so one thread may use it at a time."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._row = np.empty(n_vocab, np.float32)
        self._blocks = np.empty((n_vocab + BLOCK - 1) // BLOCK, np.int32)
        self._heap = np.empty(n_vocab + 1, np.int64)
        self._weights = np.empty(max(n_vocab, LANES * BUCKETS), np.float64)
        self._terms = np.empty(2 * BLOCK, np.float32)

    def sample(
        self, logits: np.ndarray[Any, Any], params: SamplingParams, history: Sequence[int], uniform: float
    ) -> int:
        """The next token after ``history`` (prompt and generated tokens, all below ``n_vocab``).

        ``logits`` float32 [>= n_vocab], left as it is: entries past ``n_vocab`` are padding and never chosen.
        ``uniform`` in [0, 1) decides the draw. Raises ModelError when a logit is NaN or infinite.
        """
        row = logits[: self.n_vocab]
        if params.repetition_penalty != 1.0 and params.repetition_window != 0:
            row = self._penalized(row, params, history)
        # Taking the likeliest is top-k of one.
        top_k = 1 if params.temperature == 0 or params.top_p == 0 else params.top_k
        filters = (params.top_p, params.min_p, params.temperature, uniform)
        scratch = (self._blocks, self._heap, self._weights)
        token: int
        if 0 < top_k <= self.n_vocab:
            token = sample_top_k(row, top_k, *filters, *scratch)
        else:
            token = sample_all(row, *filters, *scratch, self._terms)
        if token < 0:
            bad = -1 - token
            raise ModelError(
                f"the model's logit of token {bad} is {row[bad]}, expected a finite number: "
                "the file's weights are damaged, or the model overflowed on this prompt"
            )
        return token

    def _penalized(
        self, row: np.ndarray[Any, Any], params: SamplingParams, history: Sequence[int]
    ) -> np.ndarray[Any, Any]:
        recent = history if params.repetition_window < 0 else history[-params.repetition_window :]
        ids = np.array(list(set(recent)), np.int64)
        penalty = np.float32(params.repetition_penalty)
        np.copyto(self._row, row)
        with np.errstate(all="ignore"):
            values = self._row[ids]
            self._row[ids] = np.where(values > 0, values / penalty, values * penalty)
        return self._row
