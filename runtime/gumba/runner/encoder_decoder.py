"""Encoder-decoders (T5): sequences begin with a source text, which the encoder reads in a program of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.base import Chunk
from gumba.errors import RequestError
from gumba.runner.model import Model, ModelParts


class EncoderDecoder(Model):
    """An encoder and a decoder that share a KV cache and threads; ``encoder`` is the model of the encoder.

    ``Chunk.n_source`` says how many of a sequence's first tokens are its source: at least one, all in one step. Only the
    decoder's tokens get logits.
    """

    def __init__(self, encoder: Model, parts: ModelParts) -> None:
        super().__init__(parts)
        self.encoder = encoder

    def forward(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """See ``Model.forward``."""
        return self._runner.run(self._encode(chunks))

    def forward_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """See ``Model.forward_timed``; the encoder's operations are not timed."""
        return self._runner.run_timed(self._encode(chunks))

    def _encode(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Run the encoder on the sources of ``chunks``; returns the chunks that remain for the decoder."""
        sources, answers = [], []
        for chunk in chunks:
            n, position, end = chunk.n_source, chunk.position, chunk.position + len(chunk.tokens)
            if type(n) is not int or n < 1 or 0 < position < n or (position == 0 and end < n):
                raise RequestError(
                    f"positions {position} to {end - 1} of a sequence with a source of {n} tokens: an encoder-decoder "
                    "expects one at least, and all in one step"
                )
            if position == 0:
                sources.append(chunk._replace(tokens=chunk.tokens[:n], outputs="none", n_source=0))
                chunk = chunk._replace(tokens=chunk.tokens[n:], position=n)
            if len(chunk.tokens):
                answers.append(chunk)
        if sources:
            self._limits.check(answers)  # before anything is computed
            self.encoder.forward(sources)
        return answers

    def close(self) -> None:
        """See ``Model.close``."""
        self.encoder.close()
        super().close()
