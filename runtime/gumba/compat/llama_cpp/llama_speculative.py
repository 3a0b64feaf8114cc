"""Draft models: accepted, since speculative decoding never changes the output."""

from __future__ import annotations


class LlamaDraftModel:
    """Base class of an application's draft models. They are never called: gumba decodes one token at a time."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Prompt lookup: draft ``num_pred_tokens`` tokens from earlier text after ``max_ngram_size`` matching tokens."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
