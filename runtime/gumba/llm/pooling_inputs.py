"""Texts to the engine sequences of ``embed``, ``rerank``, ``classify`` and ``logits``, with all arguments checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from gumba.chat.rerank_template import PairTemplate
from gumba.engine.pooling import ClassifySequence, EmbedSequence, LogitsSequence
from gumba.errors import RequestError, ResourceError
from gumba.llm.embedding_settings import EmbeddingSettings, encode_after, prompt_tokens
from gumba.llm.input_processor import InputProcessor
from gumba.llm.prompts import Prompt, plain_prompt, prompt_list
from gumba.validation import is_iterable, require_boolean, show

#: An input of a classifier: a prompt, or two texts that it reads together.
ClassifyInput = Prompt | tuple[str, str]
#: Pooling of hidden states to one vector; "cls" is sentence-transformers' name of "first".
VectorPooling = Literal["mean", "cls", "first", "last"]
Pooling = Literal["mean", "cls", "first", "last", "none"]


class PoolingInputs:
    """Builds the sequences of requests that compute no text.

    Args:
        inputs: Checks and encodes prompts.
        embedding: The file's embedding settings.
        pair_template: How a decoder is shown a query and a document; None: the tokenizer joins the two texts.

    Methods raise as those of ``InputProcessor``.
    """

    def __init__(
        self, inputs: InputProcessor, embedding: EmbeddingSettings, pair_template: PairTemplate | None
    ) -> None:
        self._inputs, self._tokenizer, self._config = inputs, inputs.tokenizer, inputs.model_config
        self._pair_template = pair_template
        self.embedding = embedding

    def embeddings(
        self,
        prompts: Prompt | Iterable[Prompt],
        pooling: Pooling | None,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> list[EmbedSequence]:
        """Sequences whose hidden states are pooled.

        Args:
            prompts: Texts or token ids.
            pooling: None: the one that the model was trained with, or the mean.
            prompt: The name of the prompt to prepend to texts (``EmbeddingSettings.prompt``).
            truncate: Truncate long texts instead of raising RequestError.
        """
        if pooling is None:
            trained = self._config.pooling
            pooling = "first" if trained == "first" else "last" if trained == "last" else "mean"
        if not isinstance(pooling, str) or pooling not in ("mean", "cls", "first", "last", "none"):
            raise RequestError(f'pooling: expected "mean", "cls", "first", "last" or "none", found {show(pooling)}')
        require_boolean("truncate", truncate)
        kind: Literal["mean", "first", "last", "none"] = "first" if pooling == "cls" else pooling
        self._inputs.check_usable()
        self._inputs.refuse_encoder_decoder("embeddings need a file with its encoder alone")
        before = self.embedding.prompt(prompt)
        skip = prompt_tokens(self._tokenizer, before) if before and not self.embedding.include_prompt else 0
        single_step, sequences = not self._config.causal, []
        for i, item in enumerate(prompt_list(cast("Iterable[Prompt]", prompts))):
            try:
                plain = cast("Prompt", plain_prompt(item)) if isinstance(item, Mapping) else item
                is_text = isinstance(plain, str)
                if prompt and not is_text:
                    raise RequestError(f"prompt: {show(prompt)} needs a text to precede, found {show(plain)}")
                ids = self._inputs.prompt_ids(encode_after(self._tokenizer, before, str(plain)) if is_text else plain)
                ids = self._embeddable(ids, truncate, is_text=is_text)
            except RequestError as error:
                if isinstance(prompts, str | Mapping):
                    raise
                numbered = RequestError(f"prompts[{i}]: {str(error).removeprefix('prompt: ')}")
                numbered.index = i
                raise numbered from None
            sequence = EmbedSequence(
                ids, self._config.n_embd, kind, single_step=single_step, skip=skip if is_text else 0
            )
            sequences.append(self._inputs.with_caching(sequence))
        return sequences

    def _embeddable(self, ids: list[int], truncate: bool, *, is_text: bool) -> list[int]:
        """``ids``, truncated to the maximum text length with ``truncate``; only the context limits token ids of the caller."""
        longest, n_ctx = self.embedding.max_seq_length, self._inputs.n_ctx
        limit = n_ctx if longest is None else min(longest, n_ctx)
        if truncate:
            return self._tokenizer.truncated(ids, limit, self.embedding.truncation_side)
        if is_text and len(ids) > limit and limit == longest:
            raise RequestError(
                f"prompt: {len(ids)} tokens are more than the model's maximum of {limit} (max_seq_length); "
                "truncate=True cuts texts to that"
            )
        return self._inputs.fitting(ids, "prompt", can_truncate=True)

    def rankings(self, query: str, documents: Iterable[str], truncate: bool = False) -> list[ClassifySequence]:
        """Sequences of ``query`` with each of ``documents`` for a reranker; ``truncate``: truncate long pairs."""
        require_boolean("truncate", truncate)
        if not isinstance(query, str):
            raise RequestError(f"query: expected a text, found {show(query)}")
        if isinstance(documents, str) or not is_iterable(documents):
            raise RequestError(f"documents: expected a list of texts, found {show(documents)}")
        n_labels = self._check_head()
        if n_labels != 1 and not self._inputs.yes_no_labels:
            raise RequestError(f"the model is a classifier of {n_labels} labels, not a reranker: use classify")
        sequences = []
        for i, document in enumerate(documents):
            if not isinstance(document, str):
                raise RequestError(f"documents[{i}]: expected a text, found {show(document)}")
            sequences.append(self._classification(self._pair_ids(query, document, truncate)))
        return sequences

    def classifications(self, texts: str | Iterable[ClassifyInput], truncate: bool = False) -> list[ClassifySequence]:
        """Sequences of ``texts`` for a classifier; ``truncate``: truncate long texts."""
        require_boolean("truncate", truncate)
        self._check_head()
        sequences = []
        for text in prompt_list(cast("Iterable[Prompt]", texts)):
            if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
                first, second = text
                ids = self._pair_ids(str(first), str(second), truncate)
            elif isinstance(text, list | tuple) and any(isinstance(part, str) for part in text):
                raise RequestError(
                    f"texts: expected texts, token ids, or pairs of texts, (first, second), found {show(text)}"
                )
            elif truncate:
                ids = self._tokenizer.truncated(self._inputs.prompt_ids(text), self._inputs.n_ctx)
            else:
                ids = self._inputs.fitting(self._inputs.prompt_ids(text), "prompt", can_truncate=True)
            sequences.append(self._classification(ids))
        return sequences

    def _classification(self, ids: list[int]) -> ClassifySequence:
        return self._inputs.with_caching(ClassifySequence(ids, single_step=not self._config.causal))

    def _pair_ids(self, first: str, second: str, truncate: bool) -> list[int]:
        """Token ids of two texts. Models with token types have ids of their own for those of the second text."""
        self._inputs.check_usable()
        if self._pair_template is not None:
            if truncate:
                raise RequestError("truncate: this model renders both texts in a template and cannot truncate them")
            return self._inputs.fitting(self._pair_template.encode(self._tokenizer, first, second), "the two texts")
        ids, types = self._tokenizer.encode_pair(first, second, self._inputs.n_ctx if truncate else None)
        if self._config.n_types > 1:
            ids = [token + self._config.n_vocab * kind for token, kind in zip(ids, types)]
        return self._inputs.fitting(ids, "the two texts", can_truncate=True)

    def _check_head(self) -> int:
        """The number of labels. Raises RequestError for a model without a classification head."""
        if not self._config.n_labels:
            raise RequestError(f"this {self._config.architecture} model has no classification head")
        return self._config.n_labels

    def logits(self, tokens: Sequence[int] | np.ndarray[Any, Any], n_vocab: int) -> LogitsSequence:
        """A sequence with the ``n_vocab`` logits after each of ``tokens``."""
        self._inputs.check_usable()
        self._inputs.check_generates()
        self._inputs.refuse_encoder_decoder("it has no logits of a prompt")
        ids = self._inputs.fitting(self._inputs.checked_ids(tokens, "tokens"), "tokens")
        try:
            return self._inputs.with_caching(LogitsSequence(ids, n_vocab))
        except MemoryError:
            raise ResourceError(
                f"logits of {len(ids)} tokens need {len(ids) * n_vocab * 4 / 1e6:.0f} MB, more than there is"
            ) from None
