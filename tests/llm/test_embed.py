"""Embedding vectors: the pooled hidden states before the output matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from gumba.engine.engine import Engine
from gumba.engine.pooling import EmbedSequence, LogitsSequence
from gumba.gguf import GGUFFile
from gumba.runner.load import LoadConfig, load_model

DATA = Path(__file__).parent.parent / "data" / "model_plain.gguf"
TOKENS = [3, 9, 4, 1, 7, 7, 2, 11, 5, 8, 3, 3, 6, 10, 2, 9, 1]


@pytest.fixture(scope="module")
def gguf() -> Iterator[GGUFFile]:
    with GGUFFile(DATA) as file:
        yield file


def make(gguf: GGUFFile, **options: int) -> Engine:
    model = load_model(gguf, LoadConfig(n_ctx=64, kv_type="f32", **options))
    return Engine(model, model.config.n_vocab, max_sequences=8)


def embed(engine: Engine, tokens: list[int], pooling: str, skip: int = 0) -> np.ndarray:
    sequence = EmbedSequence(tokens, engine._core.model.config.n_embd, pooling, skip=skip)
    engine.finish([sequence])
    return sequence.vector


def test_the_last_vector_times_the_output_matrix_gives_the_logits(gguf: GGUFFile) -> None:
    engine = make(gguf)
    (output,) = [t for t in GGUFReader(DATA).tensors if t.name == "output.weight"]
    matrix = output.data.astype(np.float64)
    for n in (1, 5, 17):
        scoring = LogitsSequence(TOKENS[:n], engine._core.model.config.n_vocab)
        engine.finish([scoring])
        found = matrix @ embed(engine, TOKENS[:n], "last")
        np.testing.assert_allclose(found, scoring.logits[-1], rtol=1e-4, atol=1e-4)
    engine.close()


@pytest.mark.parametrize("max_batch_tokens", [3, 64])
def test_pooling(gguf: GGUFFile, max_batch_tokens: int) -> None:
    """Each token's vector equals the last vector of the text up to it; the number of steps changes no bit."""
    engine, whole = make(gguf, max_batch_tokens=max_batch_tokens), make(gguf)
    each = [embed(engine, TOKENS[: i + 1], "last") for i in range(len(TOKENS))]
    mean = np.zeros_like(each[0])
    for row in each:
        mean = mean + row
    assert np.array_equal(embed(engine, TOKENS, "mean"), mean / len(TOKENS))
    assert np.array_equal(embed(engine, TOKENS, "first"), each[0])
    assert np.array_equal(embed(whole, TOKENS, "mean"), mean / len(TOKENS))
    engine.close()
    whole.close()


@pytest.mark.parametrize("max_batch_tokens", [3, 64])
def test_tokens_that_are_not_pooled(gguf: GGUFFile, max_batch_tokens: int) -> None:
    """Leading tokens of a prompt; if there are no others, zeros, or the first token's state, as in sentence-transformers."""
    engine = make(gguf, max_batch_tokens=max_batch_tokens)
    each = [embed(engine, TOKENS[: i + 1], "last") for i in range(len(TOKENS))]
    for skip in (1, 4, len(TOKENS) - 1):
        mean = np.zeros_like(each[0])
        for row in each[skip:]:
            mean = mean + row
        assert np.array_equal(embed(engine, TOKENS, "mean", skip), mean / (len(TOKENS) - skip))
        assert np.array_equal(embed(engine, TOKENS, "first", skip), each[skip])
        assert np.array_equal(embed(engine, TOKENS, "last", skip), each[-1])
    for skip in (len(TOKENS), 99):
        assert not embed(engine, TOKENS, "mean", skip).any() and not embed(engine, TOKENS, "last", skip).any()
        assert np.array_equal(embed(engine, TOKENS, "first", skip), each[0])
    assert engine.kv_usage().in_use == 0
    engine.close()


def test_a_batch_gives_the_same_vectors_as_each_text_alone(gguf: GGUFFile) -> None:
    engine = make(gguf)
    n_embd = engine._core.model.config.n_embd
    texts = [TOKENS[i : i + 1 + i % 7] for i in range(12)]
    together = [EmbedSequence(tokens, n_embd, "mean") for tokens in texts]
    engine.finish(together)
    assert all(np.array_equal(a.vector, embed(engine, tokens, "mean")) for a, tokens in zip(together, texts))
    assert engine.kv_usage().in_use == 0
    engine.close()
