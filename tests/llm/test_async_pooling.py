"""embed, rerank, classify and score on an event loop: the same numbers, a loop that continues, requests that can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gumba import LLM
from gumba.errors import RequestError

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny, n_threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def reranker() -> Iterator[LLM]:
    with LLM(DATA / "classifier_bert_ranks.gguf", n_threads=2) as llm:
        yield llm


def test_the_same_numbers_together(decoder: LLM, reranker: LLM) -> None:
    texts, documents = [[1, 2, 3], [4, 5]], ["a dog", "the cat"]

    async def main() -> tuple[object, ...]:
        return await asyncio.gather(
            decoder.aembed(texts),
            decoder.aembed(texts, pooling="none", normalize=False),
            decoder.ascore([1, 2], [3, 4, 5]),
            reranker.arerank("the cat", documents),
            reranker.aclassify([("the cat", "a dog")]),
        )

    embedded, states, scores, relevances, logits = asyncio.run(main())
    assert isinstance(embedded, np.ndarray) and np.array_equal(embedded, decoder.embed(texts))
    assert isinstance(states, list) and [each.shape[0] for each in states] == [3, 2]
    assert scores == decoder.score([1, 2], [3, 4, 5])
    assert relevances == reranker.rerank("the cat", documents)
    assert isinstance(logits, np.ndarray) and np.array_equal(logits, reranker.classify([("the cat", "a dog")]))


def test_cancelling_the_task_cancels_the_texts(decoder: LLM) -> None:
    async def main() -> None:
        task = asyncio.create_task(decoder.aembed([[1 + i % 7] * 250 for i in range(200)]))
        while not decoder.kv_usage().in_use and not task.done():
            await asyncio.sleep(0)  # the loop runs while texts are computed
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert decoder.embed([[1]]).shape[0] == 1
    assert decoder.kv_usage().in_use == 0


def test_wrong_arguments_raise(decoder: LLM) -> None:
    for wrong in (decoder.aembed([[]]), decoder.ascore([1], []), decoder.arerank("a", ["b"]), decoder.aclassify("a")):
        with pytest.raises(RequestError):
            asyncio.run(wrong)  # type: ignore[arg-type]
