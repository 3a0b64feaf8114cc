"""Rerankers and classifiers: texts in, numbers out, against transformers with the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gumba import LLM
from gumba.errors import RequestError

DATA = Path(__file__).parent.parent / "data"
NAMES = ["bert_pairs", "bert_ranks", "roberta", "xlmr", "modern_bert", "qwen3_reranker"]


@pytest.fixture(scope="module", params=NAMES)
def head_model(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, list[tuple[str, str]], np.ndarray]]:
    """A model with a classification head, pairs of texts, and their logits by transformers, float32 [pairs, labels]."""
    path = DATA / f"classifier_{request.param}.gguf"
    with np.load(path.with_suffix(".npz")) as golden:
        pairs = [(str(first), str(second)) for first, second in golden["pairs"]]
        scores = golden["pair_scores"]
    with LLM(path, kv_type="f32", n_threads=2) as llm:
        yield llm, pairs, scores


def test_pairs(head_model: tuple[LLM, list[tuple[str, str]], np.ndarray]) -> None:
    llm, pairs, scores = head_model
    found = llm.classify(pairs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-4)
    assert len(llm.labels) == scores.shape[1]
    assert llm.classify([]).shape == (0, scores.shape[1])
    assert np.array_equal(np.concatenate([llm.classify([pair]) for pair in pairs]), found), "alone: the same bits"


def test_rerank(head_model: tuple[LLM, list[tuple[str, str]], np.ndarray]) -> None:
    llm, pairs, scores = head_model
    query, documents = pairs[0][0], [second for _, second in pairs]
    if llm.labels == ("yes", "no"):
        scores = scores[:, :1] - scores[:, 1:]
    elif scores.shape[1] > 1:
        with pytest.raises(RequestError, match="not a reranker"):
            llm.rerank(query, documents)
        return
    found = llm.rerank(query, documents)
    rows = llm.classify([(query, document) for document in documents])
    assert found == [float(row[0] - row[1]) if len(row) == 2 else float(row[0]) for row in rows]
    assert found[0] == pytest.approx(float(scores[0, 0]), abs=1e-4)
    assert llm.rerank(query, []) == []


def test_one_text_and_token_ids(head_model: tuple[LLM, list[tuple[str, str]], np.ndarray]) -> None:
    llm, _, _ = head_model
    ids = llm.tokenizer.encode("the cat")
    assert np.array_equal(llm.classify("the cat"), llm.classify([ids]))
    assert not np.array_equal(llm.classify("the cat"), llm.classify([("the cat", "the cat")]))


def test_wrong_arguments(head_model: tuple[LLM, list[tuple[str, str]], np.ndarray]) -> None:
    llm, _, _ = head_model
    with pytest.raises(RequestError, match="do not fit"):
        llm.classify([("a " * 600, "b")])
    with pytest.raises(RequestError, match=r"without logits|instead of logits"):
        llm.generate(["the cat"])
    with pytest.raises(RequestError, match="documents"):
        llm.rerank("the cat", "a dog")
    with pytest.raises(RequestError, match=r"texts: expected texts, token ids, or pairs of texts, \(first, second\)"):
        llm.classify([("a", "b", "c")])  # type: ignore[list-item]
    if len(llm.labels) == 1 or llm.labels == ("yes", "no"):
        with pytest.raises(RequestError, match=r"query: expected a text, found \['the cat'\]"):
            llm.rerank(["the cat"], ["a dog"])  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"documents\[1\]: expected a text, found 5"):
            llm.rerank("the cat", ["a dog", 5])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="expected token ids"):
        llm.classify([[llm.tokenizer.n_vocab]])


ENCODERS = [
    ("arch_bert", "use embed"),
    ("classifier_bert_ranks", "use rerank"),
    ("classifier_roberta", "use (rerank|classify)"),
]


@pytest.mark.parametrize(("name", "use"), ENCODERS)
def test_models_that_generate_no_text(name: str, use: str) -> None:
    """The error comes before any about a chat template, which these files lack."""
    with LLM(DATA / f"{name}.gguf", n_threads=1) as llm:
        messages = [{"role": "user", "content": "a"}]
        for ask in (llm.chat, llm.chat_stream, lambda _: llm.conversation(), lambda _: llm.generate(["a"])):
            with pytest.raises(RequestError, match=rf"generates? no text.*{use}$"):
                ask(messages)


def test_models_without_a_head() -> None:
    for name in ("arch_bert", "model_plain"):
        with LLM(DATA / f"{name}.gguf", n_threads=1) as llm:
            assert llm.labels == ()
            with pytest.raises(RequestError, match="no classification head"):
                llm.classify(["a"])


def test_embeddings_of_an_encoder() -> None:
    """Pooled from the states of all tokens; a batch gives the same bits as each text alone."""
    with LLM(DATA / "arch_bert.gguf", kv_type="f32", n_threads=2) as llm:
        texts = ["the cat sat on the mat", "a dog ran"]
        states = llm.embed(texts, pooling="none", normalize=False)
        assert [len(each) for each in states] == [len(llm.tokenizer.encode(text)) for text in texts]
        mean = llm.embed(texts, normalize=False)
        np.testing.assert_allclose(mean, [each.mean(axis=0) for each in states], rtol=1e-5, atol=1e-6)
        assert np.array_equal(llm.embed(texts, pooling="cls", normalize=False), [each[0] for each in states])
        assert np.array_equal(llm.embed(texts[1], normalize=False)[0], mean[1])
