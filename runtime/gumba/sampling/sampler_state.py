"""What one sequence carries from token to token for its sampler, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from types import EllipsisType
from typing import Any

import numpy as np

from gumba.errors import RequestError
from gumba.sampling_params import SAMPLERS, SamplingParams

#: Up to this many tokens top-k collects them in a heap.
HEAP = 1024
#: Samplers, in this order, that need no candidates: they are one compiled call.
_ONE_CALL = ("top_k", "top_p", "min_p", "temperature")
#: Samplers that change logits, where the others drop candidates.
_EDITS = ("penalties", "dry")


class UniformStream:
    """Uniform numbers in [0, 1) of one request: number ``i`` depends on the seed, the stream and ``i`` alone.

    Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the seed and the stream, 53
    bits a number. So a request's draws do not depend on who shares its steps, nor on being computed again.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._bits = np.random.Philox(key=seed | stream << 64)
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while index >= len(self._numbers):
            self._numbers += ((self._bits.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers[index]


class Chain:
    """What the parameters ask for, worked out once: which samplers really do something, and how they are run."""

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        named = SAMPLERS if params.samplers is None else params.samplers
        does_something = {
            "penalties": params.repetition_window != 0
            and (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0),
            "dry": params.dry_multiplier > 0 and params.dry_range != 0,
            "top_n_sigma": params.top_n_sigma > 0,
            "top_k": 0 < params.top_k < n_vocab,
            "typical_p": params.typical_p < 1,
            "top_p": params.top_p < 1,
            "min_p": params.min_p > 0,
            "epsilon_cutoff": params.epsilon_cutoff > 0,
            "eta_cutoff": params.eta_cutoff > 0,
            "xtc": params.xtc_probability > 0,
            "temperature": True,
        }
        active = [name for name in named if does_something[name]]
        #: Whether the likeliest token is taken.
        self.greedy = "temperature" in active and params.temperature == 0
        #: 1 or 2, or 0 for none.
        self.mirostat = 0 if self.greedy else params.mirostat
        if self.greedy or self.mirostat:
            active = [name for name in active if name in _EDITS or (name == "temperature" and not self.greedy)]
        edits = 0
        while edits < len(active) and active[edits] in _EDITS:
            edits += 1
        #: Samplers that change the row before there are candidates, and those that work on candidates.
        self.edits, self.filters = active[:edits], active[edits:]
        #: Whether it matters which logits are positive after the temperature has divided them.
        self.signed = "penalties" in self.filters and "temperature" in self.filters[: self.filters.index("penalties")]
        order = [_ONE_CALL.index(name) for name in self.filters if name in _ONE_CALL]
        #: Whether all filters are one compiled call.
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
            self.top_k, self.top_p = 1, 1.0  # taking the likeliest is top-k of one


class SamplerState:
    """One sequence's side of sampling: its tokens, as far as samplers look at them, and what its parameters rule out.

    Args:
        params: How its tokens are chosen.
        n_vocab: Tokens of the vocabulary.
        prompt_ids: Tokens of the prompt.
        seed: Of its random numbers, 0 to 2**64 - 1.
        end_ids: Tokens that end it, ruled out before ``params.min_tokens`` are generated.
        bad_words: Token sequences that must not be generated: ``params.bad_words`` (see ``gumba.sampling.token_sequences``).
        breakers: Token sequences across which DRY sees no repetition: ``params.dry_sequence_breakers`` (the same).
        logprobs: How many likeliest tokens to report; None reports no log-probabilities. By default ``params.logprobs``.

    Raises:
        RequestError: A token id of ``params`` is not below ``n_vocab``.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        prompt_ids: Sequence[int] = (),
        *,
        seed: int = 0,
        end_ids: Set[int] = frozenset(),
        bad_words: Iterable[Sequence[int]] = (),
        breakers: Iterable[Sequence[int]] = (),
        logprobs: int | EllipsisType | None = ...,
    ) -> None:
        self.params = params
        self.n_vocab = n_vocab
        self.chain = Chain(params, n_vocab)
        self.logprobs: int | None = params.logprobs if isinstance(logprobs, EllipsisType) else logprobs
        #: Tokens accepted after the prompt.
        self.n_generated = 0
        #: Mirostat's bound of the surprise in bits, and what it becomes when the token just drawn is accepted.
        self.mu = 2.0 * params.mirostat_tau
        self.drawn: tuple[int, float] | None = None
        words = [tuple(each) for each in bad_words]
        bias = params.logit_bias.items() if isinstance(params.logit_bias, Mapping) else params.logit_bias
        biases = dict(bias)
        _check("bad_words", [token for word in words for token in word], n_vocab)
        _check("logit_bias", biases, n_vocab)
        _check("allowed_token_ids", params.allowed_token_ids or (), n_vocab)
        #: Sequences of two or more tokens whose last one is ruled out after the others.
        self.bad_sequences = [word for word in words if len(word) > 1]
        self.bias_ids = np.array(list(biases), np.int64)
        self.biases = np.array(list(biases.values()), np.float32)
        banned = {word[0] for word in words if len(word) == 1}
        self._mask = _mask(n_vocab, params.allowed_token_ids, banned)
        self._mask_before_end = self._mask
        if params.min_tokens > 0 and end_ids:
            self._mask_before_end = _mask(n_vocab, params.allowed_token_ids, banned | set(end_ids))
        self._breakers: dict[int, list[tuple[int, ...]]] = {}
        for sequence in map(tuple, breakers):
            self._breakers.setdefault(sequence[-1], []).append(sequence)
        self._edits = bool(
            self.chain.edits
            or self.bias_ids.size
            or self.bad_sequences
            or params.no_repeat_ngram_size
            or params.logits_processors
        )
        self._set_seed(seed)
        self._looks_back = bool({"penalties", "dry"} & {*self.chain.edits, *self.chain.filters}) or bool(
            params.no_repeat_ngram_size or self.bad_sequences or params.logits_processors
        )
        #: Tokens after the last sequence breaker.
        self.unbroken = 0
        self._tokens: np.ndarray[Any, Any] = np.empty(len(prompt_ids) + 64 if self._looks_back else 0, np.int32)
        self._size = 0
        if self._looks_back:
            for token in prompt_ids:
                self._append(token)

    @property
    def tokens(self) -> np.ndarray[Any, Any]:
        """Tokens of prompt and answer, int32; none when nothing of the parameters looks at them."""
        return self._tokens[: self._size]

    @property
    def mask(self) -> np.ndarray[Any, Any] | None:
        """Tokens that the parameters allow next, as a bit mask (see ``Sampler.sample``); None for all."""
        return self._mask if self.n_generated >= self.params.min_tokens else self._mask_before_end

    @property
    def edits_row(self) -> bool:
        """Whether the model's logits are changed before filters see them."""
        return self._edits or self.mask is not None

    def window(self, size: int) -> np.ndarray[Any, Any]:
        """The last ``size`` tokens, all for -1."""
        tokens = self.tokens
        return tokens if size < 0 or size >= tokens.size else tokens[tokens.size - size :]

    def coin(self) -> float:
        """A second uniform number for the next token, which depends on seed and index alone."""
        return self._coins[self.n_generated]

    def accept(self, token: int) -> None:
        """Take in the next token of the answer: the one just sampled, or any other."""
        self.n_generated += 1
        if self.drawn is not None:
            if self.drawn[0] == token:
                self.mu = self.drawn[1]
            self.drawn = None
        if self._looks_back:
            self._append(token)

    def fork(self, seed: int | None = None) -> SamplerState:
        """A copy that goes on by itself, with random numbers of ``seed`` (by default its own)."""
        twin = object.__new__(SamplerState)
        twin.__dict__.update(self.__dict__)
        twin._tokens = self._tokens.copy()
        if seed is not None:
            twin._set_seed(seed)
        return twin

    def _set_seed(self, seed: int) -> None:
        self._coins = UniformStream(seed, stream=1)

    def _append(self, token: int) -> None:
        if self._size == self._tokens.size:
            self._tokens = np.concatenate([self._tokens, np.empty(self._tokens.size, np.int32)])
        self._tokens[self._size] = token
        self._size += 1
        self.unbroken += 1
        for sequence in self._breakers.get(token, ()):
            if self._size >= len(sequence) and tuple(self._tokens[self._size - len(sequence) : self._size]) == sequence:
                self.unbroken = 0


def _check(name: str, ids: Iterable[int], n_vocab: int) -> None:
    for token in ids:
        if token >= n_vocab:
            raise RequestError(f"{name}: expected token ids below n_vocab {n_vocab}, found {token}")


def _mask(n_vocab: int, allowed: Iterable[int] | None, banned: Set[int]) -> np.ndarray[Any, Any] | None:
    """The bit mask of tokens that are allowed (None: all) and not banned; None when that is all."""
    if allowed is None and not banned:
        return None
    kept = np.zeros(-(-n_vocab // 32) * 32, bool)
    kept[:n_vocab] = True
    if allowed is not None:
        kept[:] = False
        kept[list(allowed)] = True
    kept[[token for token in banned if token < n_vocab]] = False
    words: np.ndarray[Any, Any] = np.packbits(kept, bitorder="little").view("<u4").astype(np.uint32)
    return words
