"""Sampling a token: a pure function of a row of logits, the sequence's sampler state and a uniform number."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gumba.errors import RequestError
from gumba.outputs import Logprobs
from gumba.sampling.arrays import Float32Array, TokenMask
from gumba.sampling.candidates import Candidates
from gumba.sampling.chain import HEAP
from gumba.sampling.filters import FILTERS
from gumba.sampling.kernels.logprobs import log_softmax
from gumba.sampling.kernels.sample import BLOCK, BUCKETS, LANES, sample_all, sample_top_k
from gumba.sampling.mirostat import keep_below_surprise, keep_zipf_top_k
from gumba.sampling.row_edits import BANNED, RowEditor, not_finite
from gumba.sampling.sampler_state import SamplerState, UniformStream
from gumba.sampling_params import SamplingParams

__all__ = ["Choice", "Sampler", "SamplerState", "UniformStream"]


class Choice(NamedTuple):
    """A sampled token; with log-probabilities also its own, those of the most likely tokens, and its rank from 1."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Sampler:
    """Samples from rows of ``n_vocab`` logits. Holds the scratch memory, so one thread may use it at a time."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._blocks = np.empty((n_vocab + BLOCK - 1) // BLOCK, np.int32)
        self._heap = np.empty(n_vocab + 1, np.int64)
        self._weights = np.empty(max(n_vocab, LANES * BUCKETS), np.float64)
        self._terms = np.empty(2 * BLOCK, np.float32)
        self._result = np.empty(2, np.float64)
        self._scratch = np.empty(4 * BLOCK, np.float64)
        # Allocated on first use: most requests need neither.
        self._editor: RowEditor | None = None
        self._candidates: Candidates | None = None

    def sample(
        self, logits: Float32Array, state: SamplerState, uniform: float, mask: TokenMask | None = None
    ) -> Choice:
        """The next token of the sequence of ``state``; the caller passes it to ``state.accept``.

        Args:
            logits: float32 [>= n_vocab], not modified; entries from ``n_vocab`` on are padding and never chosen.
            state: The sequence's sampler state.
            uniform: In [0, 1), determines the draw.
            mask: Allowed tokens, uint32 [>= ceil(n_vocab / 32)]: bit i % 32 of word i // 32 is token i. None allows all.

        Raises:
            ModelError: A logit is NaN or infinite.
            RequestError: All tokens are ruled out, or a logits processor returned a wrong result.
        """
        row, chain = logits[: self.n_vocab], state.chain
        edited = mask is not None or state.edits_row
        changed = self._row_editor.edit(row, state, mask) if edited else row
        if chain.one_call:
            draw = (
                chain.top_p,
                chain.min_p,
                chain.temperature or 1.0,
                uniform,
                self._blocks,
                self._heap,
                self._weights,
            )
            if 0 < chain.top_k <= self.n_vocab:
                token: int = sample_top_k(changed, chain.top_k, *draw)
            else:
                token = sample_all(changed, *draw, self._terms)
            if token < 0:
                raise not_finite(row, -1 - token)
            if edited and changed[token] == BANNED:
                raise _all_ruled_out()
        else:
            token = self._sample_candidates(changed, state, uniform)
        if state.logprobs is None:
            return Choice(token)
        logprobs = self.logprobs(row, token, state.logprobs)
        return Choice(token, logprobs.logprob, logprobs.top, logprobs.rank)

    def logprobs(self, logits: Float32Array, token: int, top: int) -> Logprobs:
        """Log-probabilities of ``token`` and of the ``top`` most likely tokens under the softmax of ``logits``, in float64.

        ``logits`` as for ``sample``. Raises ModelError when a logit is NaN or infinite.
        """
        row = logits[: self.n_vocab]
        top = min(top, self.n_vocab)
        n_better = log_softmax(row, token, top, self._blocks, self._heap, self._scratch, self._result)
        if n_better < 0:
            raise not_finite(row, -1 - n_better)
        largest, total = self._result.tolist()
        ids = 0xFFFFFFFF - (self._heap[:top] & 0xFFFFFFFF)
        values = row[ids].astype(np.float64) - largest - total
        return Logprobs(float(row[token]) - largest - total, n_better + 1, tuple(zip(ids.tolist(), values.tolist())))

    def _sample_candidates(self, row: Float32Array, state: SamplerState, uniform: float) -> int:
        """Sample a token from ``row``, the logits after all edits: gather candidates, apply the filters, draw one."""
        if self._candidates is None:
            self._candidates = Candidates(self.n_vocab)
        candidates, names = self._candidates, list(state.chain.filters)
        k = max(state.params.top_k, state.params.min_keep)
        if names and names[0] == "top_k" and k <= min(HEAP, row.size):
            n = candidates.gather_top_k(row, k, self._blocks, self._heap)
            del names[0]
        else:
            n = candidates.gather(row)
        if n < 0:
            raise not_finite(row, -1 - n)
        if n == 0:
            raise _all_ruled_out()
        for name in names:
            self._apply(name, candidates, state)
        if state.chain.mirostat == 1:
            keep_zipf_top_k(candidates, state.mu, state.n_vocab)
        elif state.chain.mirostat == 2:
            keep_below_surprise(candidates, state.mu)
        token, surprise = candidates.draw(uniform)
        if state.chain.mirostat:
            state.drawn = token, state.mu - state.params.mirostat_eta * (surprise - state.params.mirostat_tau)
        return token

    def _apply(self, name: str, candidates: Candidates, state: SamplerState) -> None:
        """Apply a sampler of the chain to the candidates."""
        if name == "penalties":
            self._row_editor.penalize(candidates, state)
        elif name == "dry":
            self._row_editor.apply_dry(candidates, state)
        elif name == "temperature":
            candidates.divide(_dynamic_temperature(candidates, state.params), signed=state.chain.signed)
        elif candidates.n > 1:
            FILTERS[name].apply(candidates, state)

    @property
    def _row_editor(self) -> RowEditor:
        if self._editor is None:
            self._editor = RowEditor(self.n_vocab)
        return self._editor


def _dynamic_temperature(candidates: Candidates, params: SamplingParams) -> float:
    """The temperature, which ``dynatemp_range`` moves with the entropy of the candidates."""
    if params.dynatemp_range == 0 or candidates.n == 1:
        return params.temperature
    fraction = min(max(candidates.entropy() / math.log(candidates.n), 0.0), 1.0)
    low, high = max(params.temperature - params.dynatemp_range, 0.0), params.temperature + params.dynatemp_range
    return float(low + (high - low) * fraction**params.dynatemp_exponent)


def _all_ruled_out() -> RequestError:
    return RequestError(
        "no token is left to choose from: allowed_token_ids, bad_words, logit_bias, min_tokens, no_repeat_ngram_size, "
        "logits_processors and structured_outputs together rule all of them out"
    )
