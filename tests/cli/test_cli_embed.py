"""gumba embed: vectors of texts from arguments, files and stdin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gumba import LLM

MODEL = Path(__file__).parent.parent / "data" / "arch_bert.gguf"
TEXTS = ["the cat sat", "a dog ran"]


def numbers(out: str) -> np.ndarray:
    return np.array([[float(word) for word in line.split()] for line in out.splitlines()])


def test_texts_from_everywhere(gumba: Callable, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    results = [
        gumba("embed", MODEL, *TEXTS, "-t", 1),
        gumba("embed", MODEL, "-f", file, "-t", 1),
        gumba("embed", MODEL, "-t", 1, stdin=file.read_text(encoding="utf-8")),
    ]
    assert {result.code for result in results} == {0}
    assert len({result.out for result in results}) == 1
    with LLM(MODEL, n_threads=1) as llm:
        np.testing.assert_allclose(numbers(results[0].out), llm.embed(TEXTS), rtol=1e-6)


def test_pooling_and_json(gumba: Callable) -> None:
    result = gumba("embed", MODEL, *TEXTS, "--pooling", "cls", "--no-normalize", "--json", "-t", 1)
    with LLM(MODEL, n_threads=1) as llm:
        expected = llm.embed(TEXTS, pooling="cls", normalize=False)
        states = llm.embed(TEXTS[:1], pooling="none")[0]
    assert np.array_equal(np.array(json.loads(result.out)["embeddings"], np.float32), expected)
    each = gumba("embed", MODEL, TEXTS[0], "--pooling", "none", "-t", 1)
    np.testing.assert_allclose(numbers(each.out), states, rtol=1e-6)


def test_what_is_refused(gumba: Callable, tmp_path: Path) -> None:
    for args, stdin, message in (
        (("a", "-f", tmp_path / "no.txt"), "", "not both"),
        ((), "", "no texts"),
        (("--pooling", "max", "a"), "", "invalid choice"),
    ):
        result = gumba("embed", MODEL, *args, stdin=stdin)
        assert result.code == 2 and message in result.err
