"""WordPiece (``tokenizer.ggml.model = bert``): words, then the longest pieces from left to right (Devlin et al. 2018).

In the file, pieces that begin a word start with U+2581; pieces that continue one have no mark (U+2581 alone is one of them).
Text is normalized as in BERT's code: control characters are dropped, ideographs and punctuation are separate words, and, if the
model requires it, accents are dropped and letters lowercased.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.errors import TokenizerError
from gumba.tokenizer.normalizers import cleaned, is_ideograph, lowercased, normal_form
from gumba.tokenizer.unicode_sets import NONSPACING, PUNCTUATION, characters
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary

LONGEST_WORD = 100  # characters; a longer word is unknown, to BERT's own code too
_MAX_CACHED, _MAX_CACHED_LENGTH = 1 << 16, 100  # number of cached words, and characters of one
_MARK = "\u2581"


class _Characters(dict[int, str]):
    """Replacements of characters for ``str.translate``, computed on first use."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, point: int) -> str:
        text = self[point] = self._replacement(point)
        return text

    def _replacement(self, point: int) -> str:
        character = cleaned(point)
        if self._strip_accents and point in characters(NONSPACING):
            return ""
        character = lowercased(character) if self._lowercase else character
        return f" {character} " if is_ideograph(point) or point in characters(PUNCTUATION) else character


class WordPieceEncoder:
    """Encodes text without special tokens. Raises TokenizerError if there is no token for unknown words.

    ``longest_word``: in characters; a longer word is unknown. ``prefix``: the mark of pieces that continue a word, with which
    a word may also begin ("" for none).
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
        """Token ids of words, encoded separately."""
        ids: list[int] = []
        for word in words:
            if word:
                pieces = self._known.get(word)
                ids += self._pieces(word) if pieces is None else pieces
        return ids

    def _pieces(self, word: str) -> list[int]:
        """The pieces of one word; the unknown token if the vocabulary does not cover it."""
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
        if len(self._known) < _MAX_CACHED and len(word) <= _MAX_CACHED_LENGTH:
            self._known[word] = pieces
        return pieces
