"""Every decoder of the registry: logits of tiny random models against those of transformers.

tools/make_arch_goldens.py made the files: a checkpoint by transformers, converted by this project, read by llama.cpp as well.
Prompts pass a page of the KV cache, and the windows of models that have one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.models.registry import ARCHITECTURES
from gumba.runner.load import Chunk
from support.arch_models import EXACT, FILES, NAMES, ROUNDED, architecture, rewritten, where
from support.tiny_models import DATA, distance, load, logits_of, stored


def test_every_architecture_has_a_golden() -> None:
    assert {architecture(path) for path in DATA.glob("arch_*.gguf")} >= set(ARCHITECTURES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_logits_of_every_position(path: Path) -> None:
    tokens, expected = stored(path)
    assert len(tokens) > PAGE_TOKENS
    model = load(path, kv_type="f32", n_threads=1)
    try:
        whole = logits_of(model, tokens, len(tokens))
        assert distance(whole, expected) < EXACT, where(whole, expected)
        for size in (7, 1):
            assert np.array_equal(logits_of(model, tokens, size), whole), f"{size} tokens at a time: not the same bits"
    finally:
        model.close()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_same_bits_in_a_batch(path: Path) -> None:
    """Sequences of different lengths in one step, with two threads: the bits of each sequence alone."""
    tokens, _ = stored(path)
    model = load(path, n_threads=2, kv_tokens=8 * PAGE_TOKENS)
    try:
        parts = [tokens[:50], tokens[20:23], tokens[::-1][:60]]
        alone = []
        for part in parts:
            pages = model.kv.allocate(1)
            alone.append(model.forward([Chunk(part, 0, pages, "all", state=model.allocate_state())]).copy())
            model.kv.release(pages)
        pages = model.kv.allocate(3)
        slots = [model.allocate_state() for _ in parts]
        chunks = [Chunk(part, 0, [page], "all", state=at) for part, page, at in zip(parts, pages, slots)]
        assert np.array_equal(model.forward(chunks), np.concatenate(alone))
        rows = model.forward(
            [
                Chunk(tokens[50:52], 50, [pages[0]], "last", state=slots[0]),
                Chunk([5], 3, [pages[1]], "last", state=slots[1]),
            ]
        ).copy()
        again, place = model.kv.allocate(1), model.allocate_state()
        model.forward([Chunk(tokens[:50], 0, again, "none", state=place)])
        assert np.array_equal(model.forward([Chunk(tokens[50:52], 50, again, "last", state=place)])[0], rows[0])
    finally:
        model.close()


QUANTIZED = [
    (path, kind) for path in FILES for kind in ("Q8_0", "Q4_0", "MXFP4") if kind != "MXFP4" or "gpt_oss" in path.stem
]


@pytest.mark.parametrize("path, kind", QUANTIZED, ids=lambda value: getattr(value, "stem", value))
def test_quantized(path: Path, kind: str, tmp_path: Path) -> None:
    """Block formats: the results of the same weights as float32, except for the rounding of activations."""
    tokens, _ = stored(path)
    rows = []
    for dequantized in (True, False):
        file = rewritten(path, tmp_path / f"{dequantized}.gguf", kind, dequantized=dequantized)
        model = load(file, kv_type="f32", n_threads=2)
        rows.append(logits_of(model, tokens, len(tokens)))
        if not dequantized:
            assert np.array_equal(logits_of(model, tokens, 5), rows[-1])
        model.close()
    errors = np.sqrt(((rows[1] - rows[0]) ** 2).mean(axis=1) / (rows[0] ** 2).mean(axis=1))
    assert np.median(errors) < ROUNDED


def test_a_matrix_of_one_row_as_a_vector(tmp_path: Path) -> None:
    """qwen2moe's shared gate: llama.cpp's converter drops the dimension of size 1."""
    path = DATA / "arch_qwen2moe.gguf"
    tokens, expected = stored(path)

    def squeezed(name: str, values: np.ndarray) -> np.ndarray:
        return values.ravel() if "ffn_gate_inp_shexp" in name else values

    model = load(rewritten(path, tmp_path / "vector.gguf", "F32", dequantized=True, change=squeezed), kv_type="f32")
    assert distance(logits_of(model, tokens, 9), expected) < EXACT
    model.close()
