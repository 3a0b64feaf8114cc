"""WordPiece (``tokenizer.ggml.model = bert``): words, then the longest pieces from left to right (Devlin et al. 2018).

In the file U+2581 begins the pieces that begin words; those that continue one have no mark (U+2581 alone is one
of them). Text is normalized as BERT's
own code does: control characters are left out, ideographs and punctuation are words of their own, and, if the model wants
that, accents are left out and letters made small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.errors import TokenizerError
from gumba.tokenizer.normalizers import cleaned, is_ideograph, lowercased, normal_form
from gumba.tokenizer.unicode_sets import NONSPACING, PUNCTUATION, characters
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

LONGEST_WORD = 100  # characters; a longer word is unknown, to BERT's own code too
_REMEMBERED, _LONGEST_KEPT = 1 << 16, 100  # words, and characters of one, that are remembered
_MARK = "\u2581"


class _Characters(dict[int, str]):
    """What a character becomes (for ``str.translate``), found out when it is first met."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, point: int) -> str:
        text = self[point] = self._made(point)
        return text

    def _made(self, point: int) -> str:
        character = cleaned(point)
        if self._strip_accents and point in characters(NONSPACING):
            return ""
        character = lowercased(character) if self._lowercase else character
        return f" {character} " if is_ideograph(point) or point in characters(PUNCTUATION) else character


class WordPieceEncoder:
    """Encodes text without special tokens. Raises TokenizerError when there is no token for unknown words.

    ``longest_word``: characters; a longer word is unknown. ``prefix``: what pieces that continue a word have in front of
    them in the vocabulary, and may begin a word with ("" for nothing).
    """

    def __init__(self, vocabulary: Vocabulary, longest_word: int = LONGEST_WORD, prefix: str = "") -> None:
        if "unk" not in vocabulary.special:
            raise TokenizerError(f"{PREFIX}unknown_token_id: missing, which a bert vocabulary needs")
        self._unknown = vocabulary.special["unk"]
        self._strip_accents = vocabulary.strip_accents
        self._characters = _Characters(vocabulary.lowercase, vocabulary.strip_accents)
        self._begin: dict[str, int] = {}
        self._continue: dict[str, int] = {}
        taken = ~np.isin(vocabulary.types, (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE))
        for token in np.flatnonzero(taken).tolist():
            text = vocabulary.texts[token].decode()
            if text.startswith(_MARK) and text != _MARK:
                self._begin[text[1:]] = token
            elif text:
                self._continue[text] = token
        if prefix:
            self._begin = {prefix + text: token for text, token in self._continue.items()} | self._begin
        self._longest = max(map(len, [*self._begin, *self._continue, ""]))
        self._known: dict[str, list[int]] = {}
        self._longest_word = longest_word

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        if self._strip_accents and not text.isascii():
            text = normal_form("NFD", text)
        return self.encode_words(text.translate(self._characters).split(" "))

    def encode_words(self, words: Sequence[str]) -> list[int]:
        """Token ids of words, each by itself."""
        ids: list[int] = []
        for word in words:
            if word:
                pieces = self._known.get(word)
                ids += self._pieces(word) if pieces is None else pieces
        return ids

    def _pieces(self, word: str) -> list[int]:
        """The pieces of one word; the unknown token when not all of it is in the vocabulary."""
        pieces: list[int] = []
        known, begin = self._begin, 0
        while begin < len(word) <= self._longest_word:
            for end in range(min(len(word), begin + self._longest), begin, -1):
                token = known.get(word[begin:end])
                if token is not None:
                    break
            else:
                break
            pieces.append(token)
            known, begin = self._continue, end
        if begin < len(word):
            pieces = [self._unknown]
        if len(self._known) < _REMEMBERED and len(word) <= _LONGEST_KEPT:
            self._known[word] = pieces
        return pieces
