"""Choosing a token: a pure function of a row of logits, the sequence's state and a uniform number."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gumba.errors import ModelError, RequestError
from gumba.outputs import Logprobs
from gumba.sampling.kernels import filters
from gumba.sampling.kernels import penalties as edit
from gumba.sampling.kernels.logprobs import log_softmax
from gumba.sampling.kernels.sample import BLOCK, BUCKETS, LANES, sample_all, sample_top_k
from gumba.sampling.sampler_state import HEAP, SamplerState, UniformStream
from gumba.sampling_params import SamplingParams

__all__ = ["Choice", "Sampler", "SamplerState", "UniformStream"]

_NO_MASK = np.empty(0, np.uint32)
#: Mirostat looks at this many of the likeliest tokens (version 1).
_MIROSTAT_TOKENS = 100


class Choice(NamedTuple):
    """The token chosen; if asked for: its log-probability, the likeliest tokens with theirs, and its rank from 1."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Sampler:
    """Samples from rows of ``n_vocab`` logits; holds the scratch memory, so one thread may use it at a time."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._blocks = np.empty((n_vocab + BLOCK - 1) // BLOCK, np.int32)
        self._heap = np.empty(n_vocab + 1, np.int64)
        self._weights = np.empty(max(n_vocab, LANES * BUCKETS), np.float64)
        self._terms = np.empty(2 * BLOCK, np.float32)
        self._result = np.empty(2, np.float64)
        self._wide = np.empty(4 * BLOCK, np.float64)
        self._rare: _Rare | None = None

    def sample(
        self,
        logits: np.ndarray[Any, Any],
        state: SamplerState,
        uniform: float,
        mask: np.ndarray[Any, Any] | None = None,
    ) -> Choice:
        """The next token of the sequence of ``state``, which is left to ``state.accept``.

        Args:
            logits: float32 [>= n_vocab], left as they are: entries past ``n_vocab`` are padding and never chosen.
            state: Of the sequence.
            uniform: In [0, 1), decides the draw.
            mask: Tokens allowed, uint32 [>= ceil(n_vocab / 32)]: bit i % 32 of word i // 32 is token i. None allows all.

        Raises:
            ModelError: A logit is NaN or infinite.
            RequestError: No token is left to choose from, or a logits processor returned no logits.
        """
        row, chain = logits[: self.n_vocab], state.chain
        edited = mask is not None or state.edits_row
        changed = self._rare_room.edit(row, state, mask) if edited else row
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
                raise _not_finite(row, -1 - token)
            if edited and changed[token] == edit.BANNED:
                raise _nothing_left()
        else:
            token = self._rare_room.choose(changed, state, uniform, self._blocks, self._heap)
        if state.logprobs is None:
            return Choice(token)
        measured = self.logprobs(row, token, state.logprobs)
        return Choice(token, measured.logprob, measured.top, measured.rank)

    def logprobs(self, logits: np.ndarray[Any, Any], token: int, top: int) -> Logprobs:
        """Log-probability of ``token`` and of the ``top`` likeliest tokens under the softmax of ``logits``, in float64.

        ``logits`` as in ``sample``. Raises ModelError when a logit is NaN or infinite.
        """
        row = logits[: self.n_vocab]
        top = min(top, self.n_vocab)
        likelier = log_softmax(row, token, top, self._blocks, self._heap, self._wide, self._result)
        if likelier < 0:
            raise _not_finite(row, -1 - likelier)
        largest, total = self._result.tolist()
        ids = 0xFFFFFFFF - (self._heap[:top] & 0xFFFFFFFF)
        values = row[ids].astype(np.float64) - largest - total
        return Logprobs(float(row[token]) - largest - total, likelier + 1, tuple(zip(ids.tolist(), values.tolist())))

    @property
    def _rare_room(self) -> _Rare:
        if self._rare is None:
            self._rare = _Rare(self.n_vocab)
        return self._rare


class _Rare:
    """What only some parameters need: changed logits, and filters on candidates, with their scratch memory."""

    def __init__(self, n_vocab: int) -> None:
        self._row = np.empty(n_vocab, np.float32)
        self._marks = np.zeros(n_vocab, np.int32)
        self._lengths = np.empty(0, np.int32)
        self._ids = np.empty(n_vocab, np.int32)
        self._x = np.empty(n_vocab, np.float64)
        self._room = np.empty(3 * n_vocab + filters.ROOM, np.float64)
        self._number = np.empty(1, np.float64)

    def edit(
        self, logits: np.ndarray[Any, Any], state: SamplerState, mask: np.ndarray[Any, Any] | None
    ) -> np.ndarray[Any, Any]:
        """A copy of ``logits`` after all that changes logits before the first filter."""
        row, params = self._row, state.params
        if params.logits_processors:
            logits = self._processed(logits, state)
        bad = edit.copy_row(logits, self._joined(mask, state.mask), row)
        if bad < 0:
            raise _not_finite(logits, -1 - bad)
        if state.bias_ids.size:
            values = row[state.bias_ids]
            with np.errstate(over="ignore"):
                biased = np.minimum(np.maximum(values + state.biases, edit.BANNED), -edit.BANNED)
            row[state.bias_ids] = np.where(values == edit.BANNED, values, biased)
        tokens = state.tokens
        if params.no_repeat_ngram_size:
            edit.ban_ngrams(row, tokens, params.no_repeat_ngram_size)
        for word in state.bad_sequences:
            before = word[:-1]
            if tokens.size >= len(before) and tuple(tokens[tokens.size - len(before) :].tolist()) == before:
                row[word[-1]] = edit.BANNED
        for name in state.chain.edits:
            if name == "penalties":
                window = state.window(params.repetition_window)
                edit.penalize_row(row, window, self._marks, *_penalties(params))
            else:
                edit.dry_row(row, *self._dry(state))
        return row

    def choose(
        self,
        row: np.ndarray[Any, Any],
        state: SamplerState,
        uniform: float,
        blocks: np.ndarray[Any, Any],
        heap: np.ndarray[Any, Any],
    ) -> int:
        """Draw a token of ``row``, the logits after ``edit``, by way of candidates; ``blocks`` and ``heap`` are scratch."""
        todo = list(state.chain.filters)
        k = max(state.params.top_k, state.params.min_keep)
        if todo and todo[0] == "top_k" and k <= min(HEAP, row.size):
            n = filters.gather_top_k(row, k, blocks, heap, self._ids, self._x)
            del todo[0]
        else:
            n = filters.gather(row, self._ids, self._x)
        if n < 0:
            raise _not_finite(row, -1 - n)
        if n == 0:
            raise _nothing_left()
        for name in todo:
            n = self._filtered(name, n, state)
        if state.chain.mirostat == 1:
            n = self._mirostat_top_k(n, state)
        elif state.chain.mirostat == 2:
            # The bound in nats, of the distance from the likeliest token, which stays even beyond it.
            bound = state.mu * math.log(2) - filters.log_total(self._x, n, self._number, self._room)
            if bound >= 0:
                n = filters.within(self._ids, self._x, n, bound, 1, self._room)
            else:
                n = filters.top_k(self._ids, self._x, n, 1, self._room)
        token = int(self._ids[filters.draw(self._x, n, uniform, self._number, self._room)])
        if state.chain.mirostat:
            surprise = float(self._number[0])
            state.drawn = token, state.mu - state.params.mirostat_eta * (surprise - state.params.mirostat_tau)
        return token

    def _filtered(self, name: str, n: int, state: SamplerState) -> int:
        """Apply a sampler to the first ``n`` candidates; how many are left."""
        params, ids, x, room = state.params, self._ids, self._x, self._room
        keep = max(params.min_keep, 1)
        left: int = n
        if name == "penalties":
            filters_window = state.window(params.repetition_window)
            edit.penalize(ids, x, n, filters_window, self._marks, *_penalties(params))
        elif name == "dry":
            edit.dry(ids, x, n, *self._dry(state))
        elif name == "temperature":
            self._divide(n, self._temperature(n, params), signed=state.chain.signed)
        elif n == 1:
            pass
        elif name == "top_k":
            k = max(params.top_k, keep)
            left = n if k >= n else filters.top_k(ids, x, n, k, room)
        elif name == "top_p":
            left = filters.top_p(ids, x, n, params.top_p, keep, room)
        elif name == "typical_p":
            left = filters.typical(ids, x, n, params.typical_p, keep, room)
        elif name == "min_p":
            left = filters.within(ids, x, n, -math.log(params.min_p), keep, room)
        elif name == "top_n_sigma":
            left = filters.within(ids, x, n, params.top_n_sigma * filters.deviation(x, n, room), keep, room)
        elif name == "epsilon_cutoff":
            left = self._above(n, params.epsilon_cutoff, keep)
        elif name == "eta_cutoff":
            filters.log_total(x, n, self._number, room)
            eta = params.eta_cutoff
            left = self._above(n, min(eta, math.sqrt(eta) * math.exp(-self._number[0])), keep)
        elif name == "xtc" and state.coin() < params.xtc_probability:
            floor = -math.inf
            if params.xtc_threshold > 0:
                total = filters.log_total(x, n, self._number, room)
                floor = float(x[:n].max()) + total + math.log(params.xtc_threshold)
            left = filters.exclude_top(ids, x, n, floor, keep)
        return left

    def _above(self, n: int, probability: float, keep: int) -> int:
        """Keep candidates of at least this probability."""
        if probability == 0:
            return n
        total = filters.log_total(self._x, n, self._number, self._room)
        left: int = filters.within(self._ids, self._x, n, -math.log(probability) - total, keep, self._room)
        return left

    def _temperature(self, n: int, params: SamplingParams) -> float:
        """The temperature, dynamic or not."""
        if params.dynatemp_range == 0 or n == 1:
            return params.temperature
        filters.log_total(self._x, n, self._number, self._room)
        share = min(max(float(self._number[0]) / math.log(n), 0.0), 1.0)
        low, high = max(params.temperature - params.dynatemp_range, 0.0), params.temperature + params.dynatemp_range
        return float(low + (high - low) * share**params.dynatemp_exponent)

    def _divide(self, n: int, temperature: float, signed: bool) -> None:
        """Logits divided by ``temperature``; the largest becomes 0, unless it is ``signed``."""
        best = float(self._x[:n].max()) if signed else 0.0
        filters.divide(self._x, n, temperature, self._room)
        top = best / temperature if temperature else 0.0
        if math.isfinite(top):
            self._x[:n] += top

    def _mirostat_top_k(self, n: int, state: SamplerState) -> int:
        """Keep as many of the likeliest tokens as Zipf's law gives the wanted surprise (Basu et al., algorithm 1)."""
        if n == 1:
            return n
        m = min(_MIROSTAT_TOKENS, n)
        likeliest = np.empty(m)
        filters.largest(self._x, n, likeliest)
        places = np.arange(1, m)
        gaps = np.log((places + 1) / places)
        exponent = float((gaps * (likeliest[:-1] - likeliest[1:])).sum() / (gaps * gaps).sum())
        # k = (e 2^mu / (1 - N^-e)) ^ (1 / exponent) with e = exponent - 1: in logarithms, which do not overflow.
        size, excess = math.log(state.n_vocab), exponent - 1.0
        if excess < -1e-9:
            ratio = math.log(-excess) - (-excess * size) - math.log1p(-math.exp(excess * size))
        else:
            ratio = math.log(excess / -math.expm1(-excess * size)) if excess > 1e-9 else -math.log(size)
        wanted = ratio + state.mu * math.log(2)
        most = math.log(n) + 1.0
        # Equal logits, whose exponent is 0, keep all or one.
        logarithm = wanted / exponent if exponent > 0 else math.copysign(math.inf, wanted)
        k = min(max(int(math.exp(min(max(logarithm, 0.0), most))), 1), n)
        left: int = n if k == n else filters.top_k(self._ids, self._x, n, k, self._room)
        return left

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

    def _processed(self, logits: np.ndarray[Any, Any], state: SamplerState) -> np.ndarray[Any, Any]:
        """What the user's functions make of ``logits``; float32, with BANNED for minus infinity."""
        bad = edit.copy_row(logits, _NO_MASK, self._row)
        if bad < 0:
            raise _not_finite(logits, -1 - bad)
        found: Any = logits.copy()
        tokens = state.tokens.tolist()
        for function in state.params.logits_processors:
            found = function(tokens.copy(), found)
            if not isinstance(found, np.ndarray) or found.shape != logits.shape or found.dtype.kind not in "fiu":
                what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
                raise RequestError(f"logits_processors: expected an array of {logits.size} numbers, found {what}")
        # A float64 beyond float32's range is as good as infinite.
        with np.errstate(over="ignore"):
            changed = np.array(found, np.float32, order="C")
        wrong = np.flatnonzero(np.isnan(changed) | (changed == np.inf))
        if wrong.size:
            token = int(wrong[0])
            raise RequestError(
                f"logits_processors: expected finite logits or -inf, found {changed[token]} of token {token}"
            )
        np.maximum(changed, edit.BANNED, out=changed)
        return changed

    def _joined(self, mask: np.ndarray[Any, Any] | None, own: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
        """The tokens that both masks allow."""
        if mask is None:
            return _NO_MASK if own is None else own
        words = -(-self._row.size // 32)
        if mask.dtype != np.uint32 or mask.ndim != 1 or mask.size < words:
            raise RequestError(f"mask: expected uint32 [{words}], found {mask.dtype} {list(mask.shape)}")
        part = np.ascontiguousarray(mask[:words])
        return part if own is None else part & own


def _penalties(params: SamplingParams) -> tuple[float, float, float]:
    return params.repetition_penalty, params.frequency_penalty, params.presence_penalty


def _not_finite(row: np.ndarray[Any, Any], token: int) -> ModelError:
    return ModelError(
        f"the model's logit of token {token} is {row[token]}, expected a finite number: "
        "the file's weights are damaged, or the model overflowed on this prompt"
    )


def _nothing_left() -> RequestError:
    return RequestError(
        "no token is left to choose from: allowed_token_ids, bad_words, logit_bias, min_tokens, no_repeat_ngram_size, "
        "logits_processors and structured_outputs together rule all of them out"
    )
