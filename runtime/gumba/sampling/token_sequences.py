"""Texts of parameters as token sequences: bad words, and the sequence breakers of DRY."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol


class Encoder(Protocol):
    """What is needed of ``gumba.tokenizer.tokenizer.Tokenizer``."""

    @property
    def n_vocab(self) -> int: ...

    def encode(self, text: str, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...

    def pieces(self, ids: Iterable[int], /) -> Iterable[bytes]: ...


def bad_word_sequences(tokenizer: Encoder, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token sequences that ``words`` are encoded in, at the start of a text and after a space."""
    texts = [text for word in words for text in (word, " " + word.lstrip())]
    found = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    return list(dict.fromkeys(sequence for sequence in found if sequence))


#: By tokenizer and texts.
_breakers: weakref.WeakKeyDictionary[Encoder, dict[tuple[str, ...], tuple[tuple[int, ...], ...]]]
_breakers = weakref.WeakKeyDictionary()
_lock = threading.Lock()
#: Results remembered of a tokenizer.
REMEMBERED = 4


def breaker_sequences(tokenizer: Encoder, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Token sequences that hold one of ``texts``: every token that does, and those that texts of several are encoded in.

    Looks through the whole vocabulary; a tokenizer's last results are remembered as long as it lives. Any thread may ask.
    """
    with _lock:
        known = _breakers.setdefault(tokenizer, {})
        if texts in known:
            return known[texts]
    wanted = [text.encode() for text in texts]
    pieces = tokenizer.pieces(range(tokenizer.n_vocab)) if wanted else []
    tokens = [(token,) for token, piece in enumerate(pieces) if any(text in piece for text in wanted)]
    encoded = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    found = (*tokens, *(sequence for sequence in encoded if len(sequence) > 1))
    with _lock:
        while len(known) >= REMEMBERED:
            del known[next(iter(known))]
        known[texts] = found
    return found
