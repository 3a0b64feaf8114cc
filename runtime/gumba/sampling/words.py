"""Texts of parameters as token sequences: bad words, and the sequence breakers of DRY."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol


class Encoder(Protocol):
    """What is needed of ``gumba.text.Tokenizer``."""

    @property
    def n_vocab(self) -> int: ...

    def encode(self, text: str, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...

    def pieces(self, ids: Iterable[int], /) -> Iterable[bytes]: ...


def bad_word_sequences(tokenizer: Encoder, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token sequences that ``words`` are encoded in, at the start of a text and after a space."""
    texts = [text for word in words for text in (word, " " + word.lstrip())]
    found = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    return list(dict.fromkeys(sequence for sequence in found if sequence))


@lru_cache(maxsize=4)
def breaker_sequences(tokenizer: Encoder, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Token sequences that hold one of ``texts``: every token that does, and those that texts of several are encoded in.

    Looks through the whole vocabulary; the last four results are remembered.
    """
    wanted = [text.encode() for text in texts]
    pieces = tokenizer.pieces(range(tokenizer.n_vocab)) if wanted else []
    found = [(token,) for token, piece in enumerate(pieces) if any(text in piece for text in wanted)]
    encoded = (tuple(tokenizer.encode(text, add_special=False, parse_special=False)) for text in texts)
    return (*found, *(sequence for sequence in encoded if len(sequence) > 1))
