"""Token healing: regenerate a prompt's last token, which may be the beginning of a longer one that the model prefers.

"The link is http:" ends in the token ":", after which "://" (one token) can no longer come. Token healing removes the last
token from the prompt and constrains the first generated tokens to reproduce its text: as it was, longer, or in several
tokens (Lundberg, "The art of prompt design: prompt boundaries and token healing", 2023). The answer's text leaves out what
the prompt already contains.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence, Set
from typing import Protocol

import numpy as np

from gumba.sampling.arrays import TokenMask
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.tokenizer.vocabulary import TokenType


class PrefixIndex:
    """The token texts of a vocabulary in sorted order, to look up all that share a prefix."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [
            (tokenizer.token_bytes(token), token)
            for token in range(tokenizer.n_vocab)
            if tokenizer.token_type(token) in (TokenType.NORMAL, TokenType.BYTE) and token not in tokenizer.eog_ids
        ]
        texts = sorted((text, token) for text, token in texts if text)
        self._texts = [text for text, _ in texts]
        self._tokens = [token for _, token in texts]
        self._n_vocab = tokenizer.n_vocab

    def mask(self, prefix: bytes) -> TokenMask:
        """Tokens whose text begins with ``prefix``, and tokens that are a beginning of it which others can complete.

        uint32 bit mask [ceil(n_vocab / 32)].
        """
        allowed = np.zeros(-(-self._n_vocab // 32) * 32, np.bool_)
        allowed[self._tokens[self._starting_with(prefix)]] = True
        # Whether tokens can produce prefix[start:]; longer suffixes build on shorter ones.
        completable: dict[int, bool] = {}
        for start in range(len(prefix) - 1, 0, -1):
            rest = self._starting_with(prefix[start:])
            completable[start] = rest.start < rest.stop or any(
                completable[end] and self._equal(prefix[start:end]) for end in range(start + 1, len(prefix))
            )
        for length in range(1, len(prefix)):
            if completable[length]:
                for token in self._equal(prefix[:length]):
                    allowed[token] = True
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def _starting_with(self, prefix: bytes) -> slice:
        """The range of texts that begin with ``prefix``."""
        start = bisect_left(self._texts, prefix)
        return slice(start, bisect_right(self._texts, prefix, start, key=lambda text: text[: len(prefix)]))

    def _equal(self, text: bytes) -> list[int]:
        """The tokens with exactly this text."""
        return self._tokens[bisect_left(self._texts, text) : bisect_right(self._texts, text)]


_indexes: weakref.WeakKeyDictionary[Tokenizer, PrefixIndex] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def prefix_index(tokenizer: Tokenizer) -> PrefixIndex:
    """The index of a tokenizer's vocabulary, built once (0.1 s for 49,152 tokens)."""
    with _lock:
        index = _indexes.get(tokenizer)
        if index is None:
            index = _indexes[tokenizer] = PrefixIndex(tokenizer)
        return index


class Healing:
    """Constraint on the first tokens of an answer: they reproduce ``prefix``, the text of the removed prompt token."""

    finished = False

    def __init__(self, tokenizer: Tokenizer, prefix: bytes) -> None:
        self._tokenizer, self._index, self._prefix = tokenizer, prefix_index(tokenizer), prefix

    def mask(self) -> TokenMask | None:
        """Tokens allowed next; None allows all."""
        return self._index.mask(self._prefix) if self._prefix else None

    def accept(self, token: int) -> None:
        """Advance by the sampled token."""
        self._prefix = self._prefix[len(self._tokenizer.token_bytes(token)) :]

    def fork(self) -> Healing:
        """An independent copy."""
        return Healing(self._tokenizer, self._prefix)


class _Decoder(Protocol):
    def push(self, token: int, /) -> str: ...

    def finish(self) -> str: ...


class HealedDecoder:
    """Drops the first ``length`` characters of a decoder's text, which the prompt already contains."""

    def __init__(self, decoder: _Decoder, length: int) -> None:
        self._decoder, self._n_left = decoder, length

    def push(self, token: int) -> str:
        """The text that this token completes, without the prompt's part."""
        return self._drop(self._decoder.push(token))

    def finish(self) -> str:
        """The pending text at the end."""
        return self._drop(self._decoder.finish())

    def _drop(self, text: str) -> str:
        n = min(self._n_left, len(text))
        self._n_left -= n
        return text[n:]


def healable(tokenizer: Tokenizer, ids: Sequence[int], end_ids: Set[int] = frozenset()) -> str:
    """The text of a prompt's last token if it can be regenerated, else "".

    It must be whole characters, not the whole prompt, and not a token of ``end_ids``, which would end the answer at once.
    """
    if len(ids) < 2 or tokenizer.token_type(ids[-1]) is not TokenType.NORMAL or ids[-1] in end_ids:
        return ""
    try:
        return tokenizer.token_bytes(ids[-1]).decode("utf-8")
    except UnicodeDecodeError:
        return ""
