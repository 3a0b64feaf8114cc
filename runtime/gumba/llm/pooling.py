"""Pooling API of ``LLM``: embed, rerank, classify, score, and the logits of the bare forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gumba.engine.pooling import ClassifySequence
from gumba.errors import EngineError, ModelError
from gumba.llm.base import LLMBase
from gumba.llm.pooling_inputs import ClassifyInput, Pooling, VectorPooling
from gumba.llm.prompts import Prompt
from gumba.outputs import Logprobs
from gumba.sampling_params import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PoolingMixin(LLMBase):
    """Pooling API of ``LLM``: embed, rerank, classify, score."""

    def logits(self, tokens: Sequence[int] | np.ndarray[Any, Any]) -> NDArray[np.float32]:
        """Logits after each of ``tokens``, float32 [len(tokens), n_vocab]: the bare forward pass.

        Raises:
            RequestError: ``tokens`` is empty, longer than the context, or has an id out of range.
            ResourceError: The result does not fit the memory.
            EngineError: The LLM is closed or forked, or ``cancel`` was called.
        """
        sequence = self._pooling_inputs.logits(tokens, self.model.config.n_vocab)
        self._engine.finish([sequence])
        if sequence.finish_reason == "cancelled":
            raise EngineError("cancelled")
        return sequence.logits

    @overload
    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: VectorPooling | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]: ...
    @overload
    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Literal["none"],
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> list[NDArray[np.float32]]: ...
    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Embedding vectors of texts, float32 [prompts, n_embd]: the pooled final hidden states.

        Args:
            prompts: As for ``generate``. A prompt of token ids is used unchanged, without ``prompt``.
            pooling: "mean" over all tokens, only the "first" ("cls") or the "last" token, or "none": a list with the states of
                every token of each prompt, float32 [tokens, n_embd]. None: the file's pooling, else the mean.
            normalize: Scale vectors to length 1, so that a dot product is the cosine.
            prompt: The name of one of ``embedding_prompts`` to prepend to every text; None: the file's default prompt, if
                any; "": no prompt.
            truncate: Truncate texts longer than the model's ``max_seq_length`` or the context, with special tokens kept, as
                in sentence-transformers; otherwise they raise RequestError.

        Raises the errors of ``stream``.
        """
        sequences = self._pooling_inputs.embeddings(prompts, pooling, prompt, truncate)
        self._engine.finish(sequences)
        n_embd: int = self.model.config.n_embd
        width = min(n_embd, self._pooling_inputs.embedding.dimensions or n_embd)
        vectors = []
        for sequence in sequences:
            if sequence.finish_reason == "cancelled":
                raise EngineError("cancelled")
            rows = np.atleast_2d(sequence.rows if pooling == "none" else sequence.vector)[:, :width].astype(np.float64)
            if not np.isfinite(rows).all():
                raise ModelError(f"the model's hidden states of a prompt of {sequence.n_prompt} tokens are not finite")
            if normalize:
                # Not np.linalg.norm, whose products BLAS sums in an order that depends on the processor.
                lengths = np.array([[float(np.sqrt((row * row).sum()))] for row in rows])
                rows /= np.where(lengths == 0.0, 1.0, lengths)
            vectors.append(rows)
        if pooling == "none":
            return [rows.astype(np.float32) for rows in vectors]
        return np.concatenate([*vectors, np.empty((0, width))]).astype(np.float32)

    @property
    def embedding_prompts(self) -> Mapping[str, str]:
        """The model's prompts for ``embed``: name -> text; empty if the file has none."""
        return self._pooling_inputs.embedding.prompts

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels, in the order of ``classify``'s columns; empty if it has none."""
        labels: tuple[str, ...] = self.model.config.labels
        return labels

    def rerank(self, query: str, documents: Iterable[str], *, truncate: bool = False) -> list[float]:
        """Scores of ``documents`` for ``query`` by a reranker, the logit of its classification head: higher is better.

        The model reads query and document together; the logistic function turns a score into a probability. The score of a
        decoder with the labels yes and no (Qwen3-Reranker) is the logit of yes minus that of no. ``truncate``: a pair that does
        not fit the context loses the end of its longer text (as in transformers).
        Raises RequestError for a model without such a head and for texts that do not fit its context, else as ``embed``.
        """
        rows = self._head_outputs(self._pooling_inputs.rankings(query, documents, truncate))
        return [float(row[0] - row[1] if self._inputs.yes_no_labels else row[0]) for row in rows]

    def classify(self, texts: str | Iterable[ClassifyInput], *, truncate: bool = False) -> NDArray[np.float32]:
        """Logits of a classifier, float32 [texts, labels], in the order of ``labels``.

        ``texts``: prompts as for ``generate``, or pairs ``(first, second)`` that are read together. The softmax of a row gives
        probabilities if exactly one label applies. ``truncate``: truncate texts that do not fit the context.
        Raises RequestError for a model without a head, else as ``embed``.
        """
        rows = self._head_outputs(self._pooling_inputs.classifications(texts, truncate))
        n_labels: int = self.model.config.n_labels
        return np.array(rows, np.float32).reshape(len(rows), n_labels)

    def _head_outputs(self, sequences: list[ClassifySequence]) -> list[NDArray[np.float32]]:
        """The outputs of the classification head for each sequence, float32 [n_labels]."""
        self._engine.finish(sequences)
        for sequence in sequences:
            if sequence.finish_reason == "cancelled":
                raise EngineError("cancelled")
            if not np.isfinite(sequence.scores).all():
                raise ModelError(f"the model's scores of a text of {sequence.n_prompt} tokens are not finite")
        return [sequence.scores for sequence in sequences]

    def score(self, prompt: Prompt, continuation: Prompt) -> list[Logprobs]:
        """Log-probability of each token of ``continuation`` after ``prompt``, by the model's own logits.

        Both are text (the continuation's own tokens follow the prompt's) or token ids. Raises as ``generate`` does.
        """
        before = self._inputs.prompt_ids(prompt)
        if isinstance(continuation, str):
            continuation = self._tokenizer.encode(continuation, add_special=False, parse_special=False)
        ids = before + self._inputs.checked_ids(continuation, "continuation")
        batch = self._inputs.completions([ids], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
        self._engine.finish(batch.sequences)
        (output,) = batch.outputs()
        if output.finish_reason == "cancelled":
            raise EngineError("cancelled")
        return [logprobs for logprobs in (output.prompt_logprobs or [])[len(before) :] if logprobs is not None]
