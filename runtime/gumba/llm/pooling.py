"""Pooling API of ``LLM``: embed, rerank, classify, score, and the logits of the bare forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gumba.engine.pooling import ClassifySequence, EmbedSequence
from gumba.errors import EngineError, ModelError
from gumba.llm.base import LLMBase
from gumba.llm.output_processor import RequestBatch
from gumba.llm.pooling_inputs import ClassifyInput, Pooling, VectorPooling
from gumba.llm.prompts import Prompt
from gumba.outputs import Logprobs, RequestOutput
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
        return self._vectors(sequences, pooling, normalize)

    @overload
    async def aembed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: VectorPooling | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32]: ...
    @overload
    async def aembed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Literal["none"],
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> list[NDArray[np.float32]]: ...
    async def aembed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """As ``embed``, for an event loop, which continues meanwhile. Cancelling the task cancels the texts."""
        sequences = await asyncio.to_thread(self._pooling_inputs.embeddings, prompts, pooling, prompt, truncate)
        await self._engine.afinish(sequences)
        return self._vectors(sequences, pooling, normalize)

    def _vectors(
        self, sequences: list[EmbedSequence], pooling: Pooling | None, normalize: bool
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """What ``embed`` returns, of sequences that have ended."""
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
        sequences = self._pooling_inputs.rankings(query, documents, truncate)
        self._engine.finish(sequences)
        return self._relevances(sequences)

    async def arerank(self, query: str, documents: Iterable[str], *, truncate: bool = False) -> list[float]:
        """As ``rerank``, for an event loop."""
        sequences = await asyncio.to_thread(self._pooling_inputs.rankings, query, documents, truncate)
        await self._engine.afinish(sequences)
        return self._relevances(sequences)

    def _relevances(self, sequences: list[ClassifySequence]) -> list[float]:
        """What ``rerank`` returns, of sequences that have ended."""
        yes_no = self._inputs.yes_no_labels
        return [float(row[0] - row[1] if yes_no else row[0]) for row in self._head_outputs(sequences)]

    def classify(self, texts: str | Iterable[ClassifyInput], *, truncate: bool = False) -> NDArray[np.float32]:
        """Logits of a classifier, float32 [texts, labels], in the order of ``labels``.

        ``texts``: prompts as for ``generate``, or pairs ``(first, second)`` that are read together. The softmax of a row gives
        probabilities if exactly one label applies. ``truncate``: truncate texts that do not fit the context.
        Raises RequestError for a model without a head, else as ``embed``.
        """
        sequences = self._pooling_inputs.classifications(texts, truncate)
        self._engine.finish(sequences)
        return self._class_logits(sequences)

    async def aclassify(self, texts: str | Iterable[ClassifyInput], *, truncate: bool = False) -> NDArray[np.float32]:
        """As ``classify``, for an event loop."""
        sequences = await asyncio.to_thread(self._pooling_inputs.classifications, texts, truncate)
        await self._engine.afinish(sequences)
        return self._class_logits(sequences)

    def _class_logits(self, sequences: list[ClassifySequence]) -> NDArray[np.float32]:
        """What ``classify`` returns, of sequences that have ended."""
        rows, n_labels = self._head_outputs(sequences), self.model.config.n_labels
        return np.array(rows, np.float32).reshape(len(rows), n_labels)

    @staticmethod
    def _head_outputs(sequences: list[ClassifySequence]) -> list[NDArray[np.float32]]:
        """The outputs of the classification head for each of the sequences, which have ended, float32 [n_labels]."""
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
        batch, n_before = self._scoring(prompt, continuation)
        self._engine.finish(batch.sequences)
        return _continuation_logprobs(batch, n_before)

    async def ascore(self, prompt: Prompt, continuation: Prompt) -> list[Logprobs]:
        """As ``score``, for an event loop."""
        batch, n_before = await asyncio.to_thread(self._scoring, prompt, continuation)
        await self._engine.afinish(batch.sequences)
        return _continuation_logprobs(batch, n_before)

    def _scoring(self, prompt: Prompt, continuation: Prompt) -> tuple[RequestBatch[RequestOutput], int]:
        """The request of ``score``, and the number of the prompt's tokens."""
        before = self._inputs.prompt_ids(prompt)
        if isinstance(continuation, str):
            continuation = self._tokenizer.encode(continuation, add_special=False, parse_special=False)
        ids = before + self._inputs.checked_ids(continuation, "continuation")
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        return self._inputs.completions([ids], params), len(before)


def _continuation_logprobs(batch: RequestBatch[RequestOutput], n_before: int) -> list[Logprobs]:
    """What ``score`` returns, of a request that has ended, whose first ``n_before`` tokens are the prompt's."""
    (output,) = batch.outputs()
    if output.finish_reason == "cancelled":
        raise EngineError("cancelled")
    return [logprobs for logprobs in (output.prompt_logprobs or [])[n_before:] if logprobs is not None]
