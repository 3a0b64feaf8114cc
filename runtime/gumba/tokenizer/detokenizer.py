"""Token ids to text, one token at a time."""

from __future__ import annotations

import codecs

from gumba.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Gives text as tokens arrive, never half a character: ``push`` holds bytes back until their character is whole.

    The texts of all ``push`` calls and of ``finish`` are together ``tokenizer.decode(ids, skip_special,
    continuation=continuation)``. ``continuation`` (the usual case) keeps a space at the very beginning, because the text
    goes on after a prompt; only SentencePiece vocabularies know the difference. ``shown``: special tokens that are text
    nevertheless.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special: bool = False,
        continuation: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._continuation = continuation
        self._shown = shown
        self._previous: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes ("" when none). Raises RequestError for an id out of range."""
        token = self._tokenizer.check_id(token)
        ids = [token] if self._previous is None else [self._previous, token]
        skip_special = self._skip_special and token not in self._shown
        *_, piece = self._tokenizer.pieces(ids, skip_special, self._continuation)
        self._previous = token
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is held back, as U+FFFD; the decoder is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._previous = None
        return text
