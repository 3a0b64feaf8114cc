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


def test_texts_from_all_sources(gumba: Callable, tmp_path: Path) -> None:
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


def test_texts_after_options(gumba: Callable) -> None:
    expected = gumba("embed", MODEL, *TEXTS, "--pooling", "cls", "-t", 1).out
    for args in (
        (MODEL, "--pooling", "cls", "-t", 1, *TEXTS),
        (MODEL, TEXTS[0], "--pooling", "cls", TEXTS[1], "-t", 1),
        ("--pooling", "cls", MODEL, "-t", 1, *TEXTS),
        (MODEL, "--pooling", "cls", "-t", 1, "--", *TEXTS),
    ):
        result = gumba("embed", *args)
        assert (result.code, result.out) == (0, expected), result.err
    dashes = gumba("embed", MODEL, "-c", 64, "-t", 1, "--", "-x")
    assert dashes.code == 0 and dashes.out != gumba("embed", MODEL, "-c", 64, "-t", 1, "x").out
    result = gumba("embed", MODEL, "-t", 1, "--cls", TEXTS[0])
    assert result.code == 2 and "unrecognized arguments: --cls" in result.err
    result = gumba("embed")
    assert "the following arguments are required: MODEL (" in result.err
    assert "stdin" in gumba("embed", "--help").out


def test_tokenize_a_text_after_an_option(gumba: Callable) -> None:
    expected = gumba("tokenize", MODEL, TEXTS[0], "--json")
    assert expected.code == 0 and gumba("tokenize", MODEL, "--json", TEXTS[0]).out == expected.out
    result = gumba("tokenize", MODEL, "--json", *TEXTS)
    assert result.code == 2 and "expected one TEXT" in result.err


def test_refused_arguments(gumba: Callable, tmp_path: Path) -> None:
    for args, stdin, message in (
        (("a", "-f", tmp_path / "no.txt"), "", "not both"),
        ((), "", "no texts"),
        (("--pooling", "max", "a"), "", "invalid choice"),
    ):
        result = gumba("embed", MODEL, *args, stdin=stdin)
        assert result.code == 2 and message in result.err


def test_an_empty_text_is_named(gumba: Callable, tiny: Path) -> None:
    assert gumba("embed", tiny, "").err == (
        "gumba: error: text 1: the text is empty, and this model adds no special tokens to it\n"
    )
    assert "error: line 2 of stdin: the text is empty" in gumba("embed", tiny, stdin="a\n\nb\n").err


def test_prompts_and_long_texts(gumba: Callable, tmp_path: Path) -> None:
    model = MODEL.parent / "embedder_bert.gguf"
    long = "the cat sat on the mat the cat sat on the mat"
    for args, stdin, message in (
        (("a", long), "", "text 2: 14 tokens are more"),
        ((), f"a\n\n{long}\n", "line 3 of stdin: 14 tokens are more"),
        (("a", "--prompt", "passage"), "", "no prompt 'passage': its prompts are 'query', 'document', 'none'"),
    ):
        result = gumba("embed", model, *args, "-t", 1, stdin=stdin)
        assert (result.code, result.out) == (2, "") and message in result.err, result.err
    file = tmp_path / "texts.txt"
    file.write_text(f"{long}\n", encoding="utf-8")
    result = gumba("embed", model, "-f", file, "-t", 1)
    assert result.code == 2 and f"line 1 of {file}: 14 tokens" in result.err and "--truncate cuts" in result.err
    result = gumba("embed", model, "a", long, "-t", 1, "--truncate", "--prompt", "query")
    with LLM(model, n_threads=1) as llm:
        np.testing.assert_allclose(
            numbers(result.out), llm.embed(["a", long], prompt="query", truncate=True), rtol=1e-6
        )
    assert "gumba.embedding.prompt.query" in gumba("inspect", model).out
