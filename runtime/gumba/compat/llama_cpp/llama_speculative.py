"""Draft models: accepted, since speculation never changes which tokens come out."""

from __future__ import annotations


class LlamaDraftModel:
    """What draft models of one's own derive from. They are not asked: without them all goes on, a token at a time."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guess the next tokens from earlier ones of the same text (``max_ngram_size`` that match, ``num_pred_tokens``)."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
