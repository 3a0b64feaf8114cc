"""Token healing: a prompt's last token may be the beginning of a longer one that the model would rather have written.

"The link is http:" ends in the token ":", after which "://" (one token) can no longer come. So the last token is taken off the
prompt, and the first ones generated must spell it again: as it was, longer, or in pieces (Lundberg, "The art of prompt design:
prompt boundaries and token healing", 2023). The answer's text leaves out what the prompt already says.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Sequence, Set
from typing import Any, Protocol

import numpy as np

from gumba.tokenizer.tokenizer import Tokenizer
from gumba.tokenizer.vocabulary import TokenType


class Spellings:
    """The texts of a vocabulary in order, to find all that begin alike."""

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

    def mask(self, wanted: bytes) -> np.ndarray[Any, Any]:
        """Tokens that begin with ``wanted``, and those that it begins with, if others spell the rest of it.

        uint32 bit mask [ceil(n_vocab / 32)].
        """
        allowed = np.zeros(-(-self._n_vocab // 32) * 32, np.bool_)
        whole = self._beginning(wanted)
        allowed[self._tokens[whole]] = True
        # Which ends of ``wanted`` can be spelled: the longer ones by way of the shorter ones.
        spelled: dict[int, bool] = {}
        for start in range(len(wanted) - 1, 0, -1):
            rest = self._beginning(wanted[start:])
            spelled[start] = rest.start < rest.stop or any(
                spelled[end] and self._equal(wanted[start:end]) for end in range(start + 1, len(wanted))
            )
        for length in range(1, len(wanted)):
            if spelled[length]:
                for token in self._equal(wanted[:length]):
                    allowed[token] = True
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def _beginning(self, text: bytes) -> slice:
        """Where the texts are that begin with ``text``."""
        start = bisect_left(self._texts, text)
        return slice(start, bisect_right(self._texts, text, start, key=lambda each: each[: len(text)]))

    def _equal(self, text: bytes) -> list[int]:
        """The tokens of exactly this text."""
        return self._tokens[bisect_left(self._texts, text) : bisect_right(self._texts, text)]


_known: weakref.WeakKeyDictionary[Tokenizer, Spellings] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def spellings(tokenizer: Tokenizer) -> Spellings:
    """The vocabulary's texts, made once (0.1 s for 49,152 tokens)."""
    with _lock:
        found = _known.get(tokenizer)
        if found is None:
            found = _known[tokenizer] = Spellings(tokenizer)
        return found


class Healing:
    """What the first tokens must spell; afterwards anything goes."""

    finished = False

    def __init__(self, tokenizer: Tokenizer, wanted: bytes) -> None:
        self._tokenizer, self._spellings, self._wanted = tokenizer, spellings(tokenizer), wanted

    def mask(self) -> np.ndarray[Any, Any] | None:
        """Tokens allowed next; None when all are."""
        return self._spellings.mask(self._wanted) if self._wanted else None

    def accept(self, token: int) -> None:
        """Take note of the token chosen."""
        self._wanted = self._wanted[len(self._tokenizer.token_bytes(token)) :]

    def fork(self) -> Healing:
        """A copy that goes its own way."""
        return Healing(self._tokenizer, self._wanted)


class _Decoder(Protocol):
    def push(self, token: int, /) -> str: ...

    def finish(self) -> str: ...


class HealedDecoder:
    """Leaves out of a decoder's text the ``length`` characters that the prompt already says."""

    def __init__(self, decoder: _Decoder, length: int) -> None:
        self._decoder, self._left = decoder, length

    def push(self, token: int) -> str:
        """Text that this token completes, behind the prompt's."""
        return self._cut(self._decoder.push(token))

    def finish(self) -> str:
        """What is held back."""
        return self._cut(self._decoder.finish())

    def _cut(self, text: str) -> str:
        cut = min(self._left, len(text))
        self._left -= cut
        return text[cut:]


def healable(tokenizer: Tokenizer, ids: Sequence[int], end_ids: Set[int] = frozenset()) -> str:
    """The text of a prompt's last token, where it can be written anew: whole characters, and not all that there is.

    A token of ``end_ids`` would end the answer before it has begun.
    """
    if len(ids) < 2 or tokenizer.token_type(ids[-1]) is not TokenType.NORMAL or ids[-1] in end_ids:
        return ""
    try:
        return tokenizer.token_bytes(ids[-1]).decode("utf-8")
    except UnicodeDecodeError:
        return ""
