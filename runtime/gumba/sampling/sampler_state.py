"""The sampler state of one sequence: its tokens, the tokens its parameters rule out, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from types import EllipsisType

import numpy as np

from gumba.errors import RequestError
from gumba.sampling.arrays import Int32Array, TokenMask
from gumba.sampling.chain import Chain
from gumba.sampling_params import SamplingParams


class UniformStream:
    """Uniform numbers in [0, 1) of one request: number ``i`` depends only on the seed, the stream and ``i``.

    Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by the seed and the stream, 53
    bits per number. So a request's draws do not depend on the batch, nor on recomputation after a preemption.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._bits = np.random.Philox(key=seed | stream << 64)
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while index >= len(self._numbers):
            self._numbers += ((self._bits.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers[index]


class SamplerState:
    """Sampler state of one sequence: the token history that samplers read, and the tokens that its parameters rule out.

    Args:
        params: The request's sampling parameters.
        n_vocab: Vocabulary size.
        prompt_ids: Tokens of the prompt.
        seed: Seed of the random numbers, 0 to 2**64 - 1.
        end_ids: Tokens that end the sequence, ruled out before ``params.min_tokens`` are generated.
        bad_words: Token sequences that must not be generated: ``params.bad_words`` (see ``gumba.sampling.token_sequences``).
        breakers: Token sequences across which DRY matches no repetition: ``params.dry_sequence_breakers`` (likewise).
        logprobs: Number of most likely tokens to report; None reports no log-probabilities. Default: ``params.logprobs``.

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
        #: Mirostat's bound of the surprise in bits; ``drawn`` is the sampled token and the bound after accepting it.
        self.mu = 2.0 * params.mirostat_tau
        self.drawn: tuple[int, float] | None = None
        words = [tuple(sequence) for sequence in bad_words]
        bias = params.logit_bias.items() if isinstance(params.logit_bias, Mapping) else params.logit_bias
        biases = dict(bias)
        _check("bad_words", [token for word in words for token in word], n_vocab)
        _check("logit_bias", biases, n_vocab)
        _check("allowed_token_ids", params.allowed_token_ids or (), n_vocab)
        #: Bad words of two or more tokens: the last token is ruled out after the others.
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
        self._keeps_history = bool({"penalties", "dry"} & {*self.chain.edits, *self.chain.filters}) or bool(
            params.no_repeat_ngram_size or self.bad_sequences or params.logits_processors
        )
        #: Tokens after the last sequence breaker.
        self.unbroken = 0
        self._tokens: Int32Array = np.empty(len(prompt_ids) + 64 if self._keeps_history else 0, np.int32)
        self._size = 0
        if self._keeps_history:
            for token in prompt_ids:
                self._append(token)

    @property
    def tokens(self) -> Int32Array:
        """Tokens of the prompt and the answer, int32; empty if no parameter needs the history."""
        return self._tokens[: self._size]

    @property
    def mask(self) -> TokenMask | None:
        """Tokens that the parameters allow next, as a bit mask (see ``Sampler.sample``); None allows all."""
        return self._mask if self.n_generated >= self.params.min_tokens else self._mask_before_end

    @property
    def edits_row(self) -> bool:
        """Whether the model's logits change before the first filter."""
        return self._edits or self.mask is not None

    @property
    def min_keep(self) -> int:
        """Minimum number of candidates that a filter keeps."""
        return max(self.params.min_keep, 1)

    def window(self, size: int) -> Int32Array:
        """The last ``size`` tokens; all for -1."""
        tokens = self.tokens
        return tokens if size < 0 or size >= tokens.size else tokens[tokens.size - size :]

    def coin(self) -> float:
        """A second uniform number for the next token; depends only on the seed and the token's index."""
        return self._coins[self.n_generated]

    def accept(self, token: int) -> None:
        """Append the next token of the answer: the sampled one, or any other."""
        self.n_generated += 1
        if self.drawn is not None:
            if self.drawn[0] == token:
                self.mu = self.drawn[1]
            self.drawn = None
        if self._keeps_history:
            self._append(token)

    def fork(self, seed: int | None = None) -> SamplerState:
        """An independent copy, with random numbers of ``seed`` (default: its own)."""
        copy = object.__new__(SamplerState)
        copy.__dict__.update(self.__dict__)
        copy._tokens = self._tokens.copy()
        if seed is not None:
            copy._set_seed(seed)
        return copy

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


def _mask(n_vocab: int, allowed: Iterable[int] | None, banned: Set[int]) -> TokenMask | None:
    """The bit mask of tokens that are allowed (None: all) and not banned; None if that is every token."""
    if allowed is None and not banned:
        return None
    bits = np.zeros(-(-n_vocab // 32) * 32, bool)
    bits[:n_vocab] = True
    if allowed is not None:
        bits[:] = False
        bits[list(allowed)] = True
    bits[[token for token in banned if token < n_vocab]] = False
    words: TokenMask = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
    return words
