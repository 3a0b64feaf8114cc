"""Unigram model on pre-tokenized words, as in Hugging Face's tokenizers library (Kudo 2018).

A word is segmented into the pieces with the highest sum of scores. Sums are float64 in the order of that library, so that the
same segmentation wins among equal or nearly equal sums: "..." is "." and ".." in either order. Characters without a piece are
unknown, with a score below all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gumba.errors import TokenizerError
from gumba.tokenizer.vocabulary import PREFIX, TokenType, Vocabulary, byte_ids

_UNKNOWN_PENALTY = 10.0
_LONGEST_PIECES = 4096  # sum of the distinct piece lengths, which are all tried at every character
_MAX_CACHED, _MAX_CACHED_LENGTH = 1 << 16, 64  # number of cached words, and characters of one


class UnigramEncoder:
    """Encodes words.

    Args:
        scores: float64[n_vocab]. unknown: the token of unknown characters, None where there is none.

    Raises TokenizerError for pieces that are too long, and scores that are not finite.
    """

    def __init__(self, vocabulary: Vocabulary, scores: npt.NDArray[np.float64], unknown: int | None) -> None:
        if not np.isfinite(scores).all():
            raise TokenizerError(f"{PREFIX}scores: element {int((~np.isfinite(scores)).argmax())} is not finite")
        self._bytes = byte_ids(vocabulary)
        self._unknown = unknown
        taken = np.isin(vocabulary.types, (TokenType.NORMAL, TokenType.USER_DEFINED))
        self._pieces: dict[str, tuple[int, float]] = {}
        for token in np.flatnonzero(taken).tolist():
            self._pieces[vocabulary.texts[token].decode()] = (token, float(scores[token]))
        self._pieces.pop("", None)
        self._lengths = sorted(set(map(len, self._pieces)))
        if sum(self._lengths) > _LONGEST_PIECES:
            raise TokenizerError(f"{PREFIX}tokens: pieces of {len(self._lengths)} lengths, up to {self._lengths[-1]}")
        normal = scores[np.isin(vocabulary.types, (TokenType.NORMAL, TokenType.BYTE))]
        self._unknown_score = float(normal.min(initial=0.0)) - _UNKNOWN_PENALTY
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of one word. Raises the errors of ``encode_words``."""
        return self.encode_words([text])

    def encode_words(self, words: Sequence[str]) -> list[int]:
        """Token ids of words, each encoded separately.

        Raises TokenizerError for a character that the vocabulary cannot express.
        """
        ids: list[int] = []
        for word in words:
            tokens = self._known.get(word)
            if tokens is None:
                tokens = self._tokens(word)
                if len(word) <= _MAX_CACHED_LENGTH:
                    if len(self._known) >= _MAX_CACHED:
                        self._known.clear()
                    self._known[word] = tokens
            ids += tokens
        return ids

    def _tokens(self, word: str) -> list[int]:
        ids: list[int] = []
        unknown_from = -1  # start of the current run of unknown characters
        for begin, token in self._best(word):
            if token >= 0:
                ids += self._of_unknown(word[unknown_from:begin]) if unknown_from >= 0 else []
                ids.append(token)
                unknown_from = -1
            elif unknown_from < 0:
                unknown_from = begin
        return ids + self._of_unknown(word[unknown_from:]) if unknown_from >= 0 else ids

    def _best(self, word: str) -> list[tuple[int, int]]:
        """The segmentation with the highest score, as (start, token) pairs (-1: an unknown character)."""
        n, pieces = len(word), self._pieces
        begins, tokens, sums = [-1] * (n + 1), [-1] * (n + 1), [0.0] * (n + 1)
        for begin in range(n):
            base = sums[begin]
            single = False
            for length in self._lengths:
                end = begin + length
                if end > n:
                    break
                piece = pieces.get(word[begin:end])
                if piece is None:
                    continue
                total = base + piece[1]
                if begins[end] < 0 or total > sums[end]:
                    begins[end], tokens[end], sums[end] = begin, piece[0], total
                single = single or length == 1
            if not single:
                total = base + self._unknown_score
                if begins[begin + 1] < 0 or total > sums[begin + 1]:
                    begins[begin + 1], tokens[begin + 1], sums[begin + 1] = begin, -1, total
        best = []
        end = n
        while end > 0:
            best.append((begins[end], tokens[end]))
            end = begins[end]
        return best[::-1]

    def _of_unknown(self, text: str) -> list[int]:
        if self._bytes:
            return [self._bytes[byte] for byte in text.encode()]
        if self._unknown is None:
            raise TokenizerError(f"{PREFIX}tokens: a character of the text has no piece, and there are no byte tokens and no "
                                 "unknown token")  # fmt: skip
        return [self._unknown]
