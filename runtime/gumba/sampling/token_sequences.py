"""Token sequences of texts in the parameters: bad words, and the sequence breakers of DRY."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol


class Encoder(Protocol):
    """The members of ``gumba.tokenizer.tokenizer.Tokenizer`` that this module uses."""

    @property
    def n_vocab(self) -> int: ...

    def encode(self, text: str, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...

    def pieces(self, ids: Iterable[int], /) -> Iterable[bytes]: ...


def bad_word_sequences(tokenizer: Encoder, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token sequences that encode ``words`` at the start of a text and after a space."""
    texts = [text for word in words for text in (word, " " + word.lstrip())]
    sequences = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    return list(dict.fromkeys(sequence for sequence in sequences if sequence))


#: Breaker sequences by tokenizer and texts.
_breakers: weakref.WeakKeyDictionary[Encoder, dict[tuple[str, ...], tuple[tuple[int, ...], ...]]]
_breakers = weakref.WeakKeyDictionary()
_lock = threading.Lock()
#: Cached results per tokenizer.
MAX_CACHED = 4


def breaker_sequences(tokenizer: Encoder, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Token sequences that contain one of ``texts``: every token that contains one, and the encodings of longer texts.

    Scans the whole vocabulary; the last results are cached for the lifetime of the tokenizer. Thread-safe.
    """
    with _lock:
        cached = _breakers.setdefault(tokenizer, {})
        if texts in cached:
            return cached[texts]
    needles = [text.encode() for text in texts]
    pieces = tokenizer.pieces(range(tokenizer.n_vocab)) if needles else []
    tokens = [(token,) for token, piece in enumerate(pieces) if any(needle in piece for needle in needles)]
    encoded = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    sequences = (*tokens, *(sequence for sequence in encoded if len(sequence) > 1))
    with _lock:
        while len(cached) >= MAX_CACHED:
            del cached[next(iter(cached))]
        cached[texts] = sequences
    return sequences
