"""WordPiece (``tokenizer.ggml.model = bert``): words, then the longest pieces from left to right (Devlin et al. 2018).

In the file U+2581 begins the pieces that begin words; those that continue one have no mark. Text is normalized as BERT's
own code does: control characters are left out, ideographs and punctuation are words of their own, and, if the model wants
that, accents are left out and letters made small.
"""

from __future__ import annotations

import unicodedata

import numpy as np

from gumba.errors import TokenizerError
from gumba.text.vocabulary import PREFIX, TokenType, Vocabulary

LONGEST_WORD = 100  # characters; a longer word is unknown, to BERT's own code too
_REMEMBERED = 1 << 16  # words
_MARK = "\u2581"
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class _Characters(dict[int, str]):
    """What a character becomes (for ``str.translate``), found out when it is first met."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, point: int) -> str:
        made = self[point] = self._made(chr(point))
        return made

    def _made(self, character: str) -> str:
        category, point = unicodedata.category(character), ord(character)
        if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
            return " "
        if category in ("Cc", "Cf", "Co", "Cs") or point == 0xFFFD or (self._strip_accents and category == "Mn"):
            return ""
        character = character.lower() if self._lowercase else character
        if any(first <= point <= last for first, last in _IDEOGRAPHS) or category[0] == "P":
            return f" {character} "
        return f" {character} " if point < 0x80 and not character.isalnum() else character


class WordPieceEncoder:
    """Encodes text without special tokens. Raises TokenizerError when there is no token for unknown words."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if "unk" not in vocabulary.special:
            raise TokenizerError(f"{PREFIX}unknown_token_id: missing, which a bert vocabulary needs")
        self._unknown = vocabulary.special["unk"]
        self._strip_accents = vocabulary.strip_accents
        self._characters = _Characters(vocabulary.lowercase, vocabulary.strip_accents)
        self._begin: dict[str, int] = {}
        self._continue: dict[str, int] = {}
        taken = ~np.isin(vocabulary.types, (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE))
        for token in np.flatnonzero(taken).tolist():
            try:
                text = vocabulary.texts[token].decode()
            except UnicodeDecodeError:
                raise TokenizerError(
                    f"{PREFIX}tokens: token {token} is not UTF-8: {vocabulary.texts[token]!r:.80}"
                ) from None
            if text.startswith(_MARK):
                self._begin[text[1:]] = token
            elif text:
                self._continue[text] = token
        self._longest = max(map(len, [*self._begin, *self._continue, ""]))
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        if self._strip_accents and not text.isascii():
            text = unicodedata.normalize("NFD", text)
        ids: list[int] = []
        for word in text.translate(self._characters).split(" "):
            if word:
                pieces = self._known.get(word)
                ids += self._pieces(word) if pieces is None else pieces
        return ids

    def _pieces(self, word: str) -> list[int]:
        """The pieces of one word; the unknown token when not all of it is in the vocabulary."""
        pieces: list[int] = []
        known, begin = self._begin, 0
        while begin < len(word) <= LONGEST_WORD:
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
        if len(self._known) < _REMEMBERED and len(word) <= LONGEST_WORD:
            self._known[word] = pieces
        return pieces
