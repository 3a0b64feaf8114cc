"""Encoder-decoders: logits of an output for a source, of tiny random models against those of transformers.

tools/make_arch_goldens.py made the files, as those of test_architectures.py; the first half of the tokens is the source. Both
halves pass pages of the KV cache, and the distance from which all tokens have the same bias.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba import GGUFFile
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.errors import ModelError, RequestError
from gumba.models.registry import ARCHITECTURES
from gumba.runner.load import Chunk, Model
from support.arch_models import EXACT, ROUNDED, architecture, rewritten, where
from support.tiny_models import DATA, distance, load, steps, stored

FILES = [
    path
    for path in sorted(DATA.glob("arch_*.gguf"))
    if architecture(path) in ARCHITECTURES and hasattr(ARCHITECTURES[architecture(path)], "encode")
]
NAMES = [path.stem.removeprefix("arch_") for path in FILES]
T5 = DATA / "arch_t5.gguf"


def halves(path: Path) -> tuple[list[int], list[int], np.ndarray]:
    """Source, output, and the expected logits of the output's tokens."""
    tokens, expected = stored(path)
    half = len(tokens) // 2
    return tokens[:half], tokens[half:], expected


def answer(model: Model, source: list[int], tokens: list[int], size: int) -> np.ndarray:
    """Logits of every token of an output, ``size`` tokens per step; the first step also reads the source."""
    pages = model.kv.allocate(-(-(len(source) + len(tokens)) // PAGE_TOKENS))
    rows = []
    for start, part in steps(tokens, size):
        position, chunk = (len(source) + start, part) if start else (0, source + part)
        rows.append(model.forward([Chunk(chunk, position, pages, "all", n_source=len(source))]).copy())
    model.kv.release(pages)
    return np.concatenate(rows)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_logits_of_every_position(path: Path) -> None:
    source, tokens, expected = halves(path)
    assert min(len(source), len(tokens)) > 2 * PAGE_TOKENS
    model = load(path, kv_type="f32", n_threads=1)
    try:
        whole = answer(model, source, tokens, len(tokens))
        assert distance(whole, expected) < EXACT, where(whole, expected)
        for size in (7, 1):
            assert np.array_equal(answer(model, source, tokens, size), whole), f"{size} tokens at a time: other bits"
    finally:
        model.close()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_same_bits_in_a_batch(path: Path) -> None:
    """Sources and outputs of different lengths, some encoded while others are decoded, with two threads."""
    source, tokens, _ = halves(path)
    model = load(path, n_threads=2)
    try:
        pairs = [(source[:70], tokens[:9]), (source[:1], tokens[:80]), (source[::-1], tokens[::-1][:3])]
        alone = [answer(model, *pair, 100) for pair in pairs]
        pages = [model.kv.allocate(4) for _ in pairs]
        (one, first), (two, second), (three, third) = pairs
        model.forward([Chunk(one, 0, pages[0], "none", n_source=len(one))])
        rows = model.forward(
            [
                Chunk(first, len(one), pages[0], "all", n_source=len(one)),
                Chunk(two + second[:4], 0, pages[1], "all", n_source=len(two)),
                Chunk(three, 0, pages[2], "all", n_source=len(three)),
            ]
        ).copy()
        assert np.array_equal(rows, np.concatenate([alone[0], alone[1][:4]]))
        rows = model.forward(
            [
                Chunk(third, len(three), pages[2], "last", n_source=len(three)),
                Chunk(second[4:], len(two) + 4, pages[1], "all", n_source=len(two)),
            ]
        )
        assert np.array_equal(rows, np.concatenate([alone[2][-1:], alone[1][4:]]))
    finally:
        model.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantized(kind: str, tmp_path: Path) -> None:
    """Block formats: the results of the same weights as float32, except for the rounding of activations."""
    source, tokens, _ = halves(T5)
    rows = []
    for dequantized in (True, False):
        file = rewritten(T5, tmp_path / f"{dequantized}.gguf", kind, dequantized=dequantized)
        model = load(file, kv_type="f32", n_threads=2)
        rows.append(answer(model, source, tokens, len(tokens)))
        if not dequantized:
            assert np.array_equal(answer(model, source, tokens, 50), rows[-1])
        model.close()
    errors = np.sqrt(((rows[1] - rows[0]) ** 2).mean(axis=1) / (rows[0] ** 2).mean(axis=1))
    assert np.median(errors) < ROUNDED


def test_output_matrix_tied_to_the_embedding(tmp_path: Path) -> None:
    """For the first models other converters write one matrix; the decoder divides hidden states by the root of their width."""
    source, tokens, expected = halves(T5)
    file = rewritten(
        T5,
        tmp_path / "tied.gguf",
        "F32",
        dequantized=True,
        change=lambda name, values: None if name == "output.weight" else values,
    )
    model = load(file, kv_type="f32", n_threads=1)
    assert distance(answer(model, source, tokens[:20], 20), expected[:20]) < EXACT
    model.close()


def test_chunks_refused() -> None:
    model = load(T5, n_ctx=200, n_threads=1)
    pages = model.kv.allocate(4)
    for chunk in (
        Chunk([5, 6], 0, pages),
        Chunk([5, 6], 0, pages, n_source=3),
        Chunk([5, 6], 2, pages, n_source=3),
        Chunk([5, 6], 2, pages, n_source=0),
        Chunk([5, 6], 2, pages, n_source=-1),
        Chunk([5, 6], 2, pages, n_source=1.0),  # type: ignore[arg-type]
        Chunk([5] * 201, 0, pages, n_source=200),
        Chunk([5, 131], 0, pages, n_source=1),
        Chunk([131, 5], 0, pages, n_source=1),
    ):
        with pytest.raises(RequestError):
            model.forward([chunk])
    assert len(model.forward([Chunk([5] * 200, 0, pages, n_source=199)])) == 1
    model.close()


def test_a_source_longer_than_in_training() -> None:
    with GGUFFile(T5) as file:
        trained = file.require("t5.context_length", int)
    model = load(T5, n_ctx=4 * trained, kv_type="f32", n_threads=1)
    pages = model.kv.allocate(4 * trained // PAGE_TOKENS)
    rows = model.forward([Chunk([5, 9] * (trained + 3) + [0], 0, pages, n_source=2 * trained + 6)])
    assert np.isfinite(rows).all()
    model.close()


@pytest.mark.parametrize(
    "key, value",
    [
        ("attention.relative_buckets_count", 3),
        ("attention.relative_buckets_count", 0),
        ("attention.relative_buckets_count", 256),
        ("attention.head_count_kv", 2),
        ("decoder_start_token_id", 131),
        ("decoder_block_count", 0),
        ("decoder_block_count", 3),
    ],
)
def test_files_refused(key: str, value: int, tmp_path: Path) -> None:
    file = rewritten(T5, tmp_path / "t5.gguf", "F32", dequantized=True, own={key: value})
    with pytest.raises(
        ModelError, match="dec.blk" if (key, value) == ("decoder_block_count", 3) else key.split(".")[-1]
    ):
        load(file)
