"""Token ids to text, one token at a time."""

from __future__ import annotations

import codecs

from gumba.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes tokens as they arrive, in whole characters: ``push`` keeps bytes until their character is complete.

    The texts of all ``push`` calls and of ``finish`` concatenate to ``tokenizer.decode(ids, skip_special,
    continuation=continuation)``. ``continuation`` (the usual case) keeps a leading space, because the text continues a prompt;
    it matters only for SentencePiece vocabularies. ``shown``: special tokens that are not skipped.
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
        """The text that this token completes, or "". Raises RequestError for an id out of range."""
        token = self._tokenizer.check_id(token)
        ids = [token] if self._previous is None else [self._previous, token]
        skip_special = self._skip_special and token not in self._shown
        *_, piece = self._tokenizer.pieces(ids, skip_special, self._continuation)
        self._previous = token
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """An incomplete character at the end as U+FFFD; resets the decoder."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._previous = None
        return text
