"""Edits of logits before and between filters: logits processors, bias, bans, penalties and DRY."""

from __future__ import annotations

from typing import Any

import numpy as np

from gumba.errors import ModelError, RequestError
from gumba.sampling.arrays import Float32Array, TokenMask
from gumba.sampling.candidates import Candidates
from gumba.sampling.kernels import penalties as kernels
from gumba.sampling.sampler_state import SamplerState
from gumba.sampling_params import SamplingParams

#: The logit of a banned token.
BANNED = kernels.BANNED
_ALLOW_ALL = np.empty(0, np.uint32)


class RowEditor:
    """Copies and edits rows of ``n_vocab`` logits, and edits candidates; holds the scratch memory for both."""

    def __init__(self, n_vocab: int) -> None:
        self._row = np.empty(n_vocab, np.float32)
        self._marks = np.zeros(n_vocab, np.int32)
        self._lengths = np.empty(0, np.int32)

    def edit(self, logits: Float32Array, state: SamplerState, mask: TokenMask | None) -> Float32Array:
        """A copy of ``logits`` after everything that changes logits before the first filter.

        Raises ModelError for a logit that is not finite, RequestError for a wrong mask or a wrong result of a logits
        processor.
        """
        row, params = self._row, state.params
        if params.logits_processors:
            logits = self._processed(logits, state)
        bad = kernels.copy_row(logits, self._joined(mask, state.mask), row)
        if bad < 0:
            raise not_finite(logits, -1 - bad)
        if state.bias_ids.size:
            values = row[state.bias_ids]
            with np.errstate(over="ignore"):
                biased = np.minimum(np.maximum(values + state.biases, BANNED), -BANNED)
            row[state.bias_ids] = np.where(values == BANNED, values, biased)
        tokens = state.tokens
        if params.no_repeat_ngram_size:
            kernels.ban_ngrams(row, tokens, params.no_repeat_ngram_size)
        for word in state.bad_sequences:
            prefix = word[:-1]
            if tokens.size >= len(prefix) and tuple(tokens[tokens.size - len(prefix) :].tolist()) == prefix:
                row[word[-1]] = BANNED
        for name in state.chain.edits:
            if name == "penalties":
                kernels.penalize_row(row, state.window(params.repetition_window), self._marks, *_penalties(params))
            else:
                kernels.dry_row(row, *self._dry(state))
        return row

    def penalize(self, candidates: Candidates, state: SamplerState) -> None:
        """Apply the repetition, frequency and presence penalties to candidates."""
        window = state.window(state.params.repetition_window)
        kernels.penalize(
            candidates.ids, candidates.logits, candidates.n, window, self._marks, *_penalties(state.params)
        )

    def apply_dry(self, candidates: Candidates, state: SamplerState) -> None:
        """Apply DRY to candidates."""
        kernels.dry(candidates.ids, candidates.logits, candidates.n, *self._dry(state))

    def _dry(self, state: SamplerState) -> tuple[Any, ...]:
        """The arguments of DRY's kernels."""
        params = state.params
        window = state.window(params.dry_range)
        if self._lengths.size < window.size:
            self._lengths = np.empty(2 * window.size, np.int32)
        limit = min(state.unbroken, window.size)
        return (
            window, limit, max(params.dry_allowed_length, 1), params.dry_multiplier, params.dry_base, self._lengths, self._marks,
        )  # fmt: skip

    def _processed(self, logits: Float32Array, state: SamplerState) -> Float32Array:
        """``logits`` after the user's logits processors; float32, with BANNED for minus infinity."""
        bad = kernels.copy_row(logits, _ALLOW_ALL, self._row)
        if bad < 0:
            raise not_finite(logits, -1 - bad)
        result: Any = logits.copy()
        tokens = state.tokens.tolist()
        for function in state.params.logits_processors:
            result = function(tokens.copy(), result)
            if not isinstance(result, np.ndarray) or result.shape != logits.shape or result.dtype.kind not in "fiu":
                kind = type(result).__name__
                what = f"{result.dtype} {list(result.shape)}" if isinstance(result, np.ndarray) else kind
                raise RequestError(f"logits_processors: expected an array of {logits.size} numbers, found {what}")
        # A float64 beyond float32's range is as good as infinite.
        with np.errstate(over="ignore"):
            processed: Float32Array = np.array(result, np.float32, order="C")
        invalid = np.flatnonzero(np.isnan(processed) | (processed == np.inf))
        if invalid.size:
            token = int(invalid[0])
            raise RequestError(
                f"logits_processors: expected finite logits or -inf, found {processed[token]} of token {token}"
            )
        np.maximum(processed, BANNED, out=processed)
        return processed

    def _joined(self, mask: TokenMask | None, own: TokenMask | None) -> TokenMask:
        """The tokens that both masks allow."""
        if mask is None:
            return _ALLOW_ALL if own is None else own
        n_words = -(-self._row.size // 32)
        if mask.dtype != np.uint32 or mask.ndim != 1 or mask.size < n_words:
            raise RequestError(f"mask: expected uint32 [{n_words}], found {mask.dtype} {list(mask.shape)}")
        words = np.ascontiguousarray(mask[:n_words])
        return words if own is None else words & own


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    return params.repetition_penalty, params.frequency_penalty, params.presence_penalty


def not_finite(row: Float32Array, token: int) -> ModelError:
    """The error of a model whose logit of ``token`` is NaN or infinite."""
    return ModelError(
        f"the model's logit of token {token} is {row[token]}, expected a finite number: "
        "the file's weights are damaged, or the model overflowed on this prompt"
    )
