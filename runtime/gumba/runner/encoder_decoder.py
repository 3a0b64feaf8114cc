"""Encoder-decoders: a model whose sequences begin with a source, which a program of its own reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gumba.errors import RequestError
from gumba.runner.model import Chunk, Model


class EncoderDecoder(Model):
    """A model whose chunks say how many of the sequence's first tokens are its source: one at least, all in the same step.

    Logits are the decoder's: there are none of a source. ``encoder``: the model that reads sources, of the same cache and
    threads; the other arguments are those of ``Model``.
    """

    def __init__(self, encoder: Model, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.encoder = encoder

    def _step(self, chunks: Sequence[Chunk], records: np.ndarray) -> np.ndarray:
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
            self._refuse(answers)  # before anything is computed
            self.encoder.forward(sources)
        return super()._step(answers, records)

    def close(self) -> None:
        """See ``Model.close``."""
        self.encoder.close()
        super().close()
