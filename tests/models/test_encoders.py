"""Encoders, and decoders with a classifier head: hidden states and scores of tiny random models against transformers'.

tools/make_arch_goldens.py made the files, as those of test_architectures.py. Texts pass a page of the KV cache, and the windows
of models that have one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba import GGUFFile
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.models.registry import ARCHITECTURES
from gumba.runner.load import Chunk, Model
from support.arch_models import EXACT, ROUNDED, architecture, has_logits, rewritten
from support.tiny_models import DATA, distance, load, stored

FILES = [
    path
    for path in sorted(DATA.glob("arch_*.gguf"))
    if (module := ARCHITECTURES.get(architecture(path))) and not hasattr(module, "encode") and not has_logits(path)
]
NAMES = [path.stem.removeprefix("arch_") for path in FILES]


def run(model: Model, *texts: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hidden states and the head's outputs at every position, of texts that are computed in one step."""
    chunks = [Chunk(text, 0, model.kv.allocate(-(-len(text) // PAGE_TOKENS)), "all") for text in texts]
    rows, hidden = model.forward(chunks).copy(), model.hidden.copy()
    for chunk in chunks:
        model.kv.release(list(chunk.pages))
    ends = np.cumsum([len(text) for text in texts])
    return [(hidden[end - len(text) : end], rows[end - len(text) : end]) for text, end in zip(texts, ends)]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_hidden_states_and_scores(path: Path) -> None:
    """The golden is hidden states, float32 [n_tokens, n_embd], or the outputs of a head, float32 [n_labels]."""
    tokens, expected = stored(path)
    assert len(tokens) > PAGE_TOKENS
    model = load(path, kv_type="f32", n_threads=1)
    try:
        ((hidden, rows),) = run(model, tokens)
        assert (expected.ndim == 1) == bool(model.config.n_labels)
        pooled = -1 if model.config.causal else 0  # a decoder's last token has seen the whole text
        assert distance(rows[pooled] if expected.ndim == 1 else hidden, expected) < EXACT
    finally:
        model.close()


@pytest.mark.parametrize(("name", "halves"), [("jina_bert_v2", ("gate", "up")), ("jina_bert_v2_code", ("up", "gate"))])
def test_gate_and_up_in_one_tensor(name: str, halves: tuple[str, str], tmp_path: Path) -> None:
    """As llama.cpp's converter writes them since 2025: in the order of the checkpoint, of which there are two."""
    path = DATA / f"arch_{name}.gguf"
    tokens, expected = stored(path)
    with GGUFFile(path) as file:
        given = {key: np.frombuffer(bytes(t.data), np.float32).reshape(t.shape) for key, t in file.tensors.items()}

    def joined(name: str, values: np.ndarray) -> np.ndarray | None:
        if "ffn_gate" in name:
            return None
        if "ffn_up" in name:
            return np.concatenate([given[name.replace("ffn_up", f"ffn_{half}")] for half in halves])
        return values

    model = load(rewritten(path, tmp_path / "joined.gguf", "F32", dequantized=True, change=joined), kv_type="f32")
    assert distance(run(model, tokens)[0][0], expected) < EXACT
    model.close()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_same_bits_in_a_batch(path: Path) -> None:
    """Texts of different lengths in one step, with two threads: the bits of each text alone."""
    model = load(path, n_threads=2, kv_tokens=8 * PAGE_TOKENS)
    try:
        tokens, _ = stored(path)
        texts = [tokens[:50], tokens[20:23], tokens[::-1][:70], tokens[5:6]]
        for text, (hidden, rows) in zip(texts, run(model, *texts)):
            ((alone, alone_rows),) = run(model, text)
            assert np.array_equal(hidden, alone) and np.array_equal(rows, alone_rows)
    finally:
        model.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_quantized(path: Path, kind: str, tmp_path: Path) -> None:
    """Block formats: the results of the same weights as float32, except for the rounding of activations."""
    states = []
    for dequantized in (True, False):
        file = rewritten(path, tmp_path / f"{dequantized}.gguf", kind, dequantized=dequantized)
        model = load(file, kv_type="f32", n_threads=2)
        states.append(run(model, stored(path)[0])[0][0])
        model.close()
    errors = np.sqrt(((states[1] - states[0]) ** 2).mean(axis=1) / (states[0] ** 2).mean(axis=1))
    assert np.median(errors) < ROUNDED
