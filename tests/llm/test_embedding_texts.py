"""Embeddings as sentence-transformers users expect them: prompts, the longest text, what is pooled.

tools/make_embedder_goldens.py made the files and the vectors, by sentence-transformers 6.2: one model leaves the prompt's tokens
out of the mean, one takes the first token behind the prompt and cuts texts at their beginning, one keeps 24 values of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gumba import LLM
from gumba.errors import GumbaError, ModelError, RequestError
from support.changed_models import rewrite

DATA = Path(__file__).parent.parent / "data"
TEXTS = ["the cat", "The dog ran on 7 mats, and 8 cats sat.", "a", "", "the mat the mat the mat the dog"]
NAMES = {"bert": 13, "distilbert": 12, "mpnet": 14}


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Iterator[tuple[str, LLM]]:
    with LLM(DATA / f"embedder_{request.param}.gguf", kv_type="f32", n_threads=1) as llm:
        yield request.param, llm


def test_vectors(model: tuple[str, LLM]) -> None:
    """The second text exceeds each model's maximum length, with and without a prompt."""
    name, llm = model
    with np.load(DATA / f"embedder_{name}.npz") as golden:
        for prompt in golden.files:
            chosen = None if prompt == "default" else prompt
            found = llm.embed(TEXTS, prompt=chosen, truncate=True)
            np.testing.assert_allclose(found, golden[prompt], atol=1e-6, err_msg=prompt)
        np.testing.assert_allclose(llm.embed(TEXTS, prompt="", truncate=True), golden["none"], atol=1e-6)
        as_mappings = llm.embed([{"prompt": text} for text in TEXTS], truncate=True)  # as vLLM takes prompts
        np.testing.assert_allclose(as_mappings, golden["default"], atol=1e-6)
    assert llm.embed([]).shape == (0, found.shape[1])
    assert dict(llm.embedding_prompts) == {"query": "find the cat: ", "document": "dog ", "none": ""}


def test_long_texts_are_refused_by_number(model: tuple[str, LLM]) -> None:
    name, llm = model
    message = rf"prompts\[1\]: 18 tokens are more than the model's maximum of {NAMES[name]} .*truncate=True"
    with pytest.raises(RequestError, match=message) as error:
        llm.embed(TEXTS, prompt="")
    assert error.value.index == 1
    with pytest.raises(RequestError, match=r"^prompt: 18 tokens") as error:
        llm.embed(TEXTS[1], prompt="")
    assert error.value.index is None
    ids = llm.tokenizer.encode(TEXTS[1])  # token ids are the caller's responsibility
    whole, cut = llm.embed([ids]), llm.embed([ids], truncate=True)
    assert not np.allclose(whole, cut, atol=1e-3)
    with pytest.raises(RequestError, match=r"prompts\[0\]: 97 tokens do not fit|prompts\[0\]: 257 tokens do not fit"):
        llm.embed([ids[:1] * (llm.model.n_ctx + 1)])


def test_names_of_prompts(model: tuple[str, LLM]) -> None:
    _, llm = model
    with pytest.raises(RequestError, match="no prompt 'passage': its prompts are 'query', 'document', 'none'"):
        llm.embed("a", prompt="passage")
    with pytest.raises(RequestError, match="prompt: the model has no prompt 7"):
        llm.embed("a", prompt=7)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="'query' needs a text to precede, found"):
        llm.embed([[5, 6]], prompt="query")
    with (
        LLM(DATA / "classifier_bert_pairs.gguf", n_threads=1) as plain,
        pytest.raises(RequestError, match="no prompt 'query': it has no prompts"),
    ):
        plain.embed("a", prompt="query")


def test_states_of_all_tokens(model: tuple[str, LLM]) -> None:
    """One for every token, the prompt's included."""
    _, llm = model
    (states,) = llm.embed(["the cat"], prompt="query", pooling="none")
    assert len(states) == len(llm.tokenizer.encode("find the cat: the cat"))


def test_control_tokens_of_a_prompt(tmp_path: Path) -> None:
    """They count in the model's own prompt; the same characters in a text are text."""
    prompts = {"gumba.embedding.prompt.query": "[SEP]the ", "gumba.embedding.max_seq_length": 40}
    path = rewrite(tmp_path / "out.gguf", prompts, model=DATA / "embedder_bert.gguf")
    with LLM(path, n_threads=1) as llm:
        encode, sep = llm.tokenizer.encode, llm.tokenizer.sep_id
        wanted = [llm.tokenizer.bos_id, sep, *encode("the cat [SEP]", add_special=False), sep]
        assert wanted.count(sep) == 2
        (states,) = llm.embed(["cat [SEP]"], prompt="query", pooling="none")
        assert np.array_equal(states, llm.embed([wanted], pooling="none")[0])
        pooled = llm.embed(["cat [SEP]"], prompt="query", normalize=False)
        raw = llm.embed(["cat [SEP]"], prompt="query", pooling="none", normalize=False)[0]
        np.testing.assert_allclose(pooled[0], raw[3:].mean(axis=0), rtol=1e-4)  # [CLS] [SEP] the


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_seq_length", 0, "max_seq_length is 0, expected a positive"),
        ("max_seq_length", "12", "max_seq_length, byte .*expected"),
        ("max_seq_length", 1, "1 tokens leave no room for the special tokens"),
        ("truncation_side", "middle", "truncation_side is 'middle'"),
        ("default_prompt", "passage", "default_prompt is 'passage', expected the name of a prompt of the file"),
        ("prompt.query", 7, "prompt.query, byte .*expected"),
        ("include_prompt", "no", "include_prompt, byte .*expected"),
        ("dimensions", 0, "dimensions is 0"),
        ("pooling", 7, "unknown metadata key gumba.embedding.pooling"),
    ],
)
def test_damaged_keys(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = rewrite(tmp_path / "out.gguf", {f"gumba.embedding.{key}": value}, model=DATA / "embedder_bert.gguf")
    with pytest.raises(GumbaError, match=message) as error, LLM(path, n_threads=1) as llm:
        llm.embed("the cat", truncate=True)
    assert isinstance(error.value, (ModelError, RequestError))


@pytest.mark.parametrize(("name", "n_special"), [("bert_pairs", 3), ("roberta", 4)])
def test_pairs_are_cut_at_the_longer_text(name: str, n_special: int) -> None:
    """tokenizers 0.23's `longest_first`: (tokens of both texts, limit, tokens that remain)."""
    with LLM(DATA / f"classifier_{name}.gguf", n_threads=1) as llm:
        word, tokenizer = ("the " if name == "bert_pairs" else "a"), llm.tokenizer
        for first, second, room, left in (
            (8, 8, 16, (8, 8)),
            (8, 3, 9, (6, 3)),
            (3, 8, 9, (3, 6)),
            (8, 7, 9, (5, 4)),
            (7, 8, 9, (4, 5)),
            (8, 8, 5, (2, 3)),
            (8, 2, 1, (1, 0)),
            (2, 8, 1, (0, 1)),
            (8, 8, 0, (0, 0)),
        ):
            ids, types = tokenizer.encode_pair(word * first, word * second, room + n_special)
            wanted = tokenizer.encode_pair(word * left[0], word * left[1])
            assert (ids, types) == wanted, (first, second, room)
        with pytest.raises(RequestError, match="2 tokens leave no room"):
            tokenizer.encode_pair(word, word, 2)
        long = word * 200
        capacity = llm.model.n_ctx
        half = word * ((capacity - n_special) // 2)
        np.testing.assert_array_equal(
            llm.classify([(long, half)], truncate=True), llm.classify([(long[: -len(word)], half)], truncate=True)
        )
        assert llm.classify([long], truncate=True).shape == llm.classify(["a"]).shape
        with pytest.raises(RequestError, match=r"the two texts: .*truncate=True"):
            llm.classify([(long, half)])


def test_a_template_of_two_texts_cannot_be_cut() -> None:
    with (
        LLM(DATA / "classifier_qwen3_reranker.gguf", n_threads=1) as llm,
        pytest.raises(RequestError, match="truncate: this model renders both texts in a template"),
    ):
        llm.rerank("the cat", ["a dog"], truncate=True)
