"""The same prompt gives the same bits: whatever the threads, the chunks, the neighbours in a batch, the pages, the processor.

And close values for every block format against the same weights in float32.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.runner.load import Chunk, Model
from gumba.simd import detect
from support import tiny_models
from support.tiny_models import GOLDENS, PROMPT, TYPES, load, logits_of, prompt, stored, write_model

#: Root mean square of the logits' error, relative to that of the logits, against the same weights in float32.
#: Activations are rounded to 8 bits per 32 values where weights are blocks: that error is the format's own, here of
#: two layers of random weights. llama.cpp on the same files has 0.023 (Q8_0, Q4_0), 0.025 (Q4_1), 0.036 (Q6_K). Float
#: formats are multiplied in float32, and only the order of sums could differ (llama.cpp: F16 0.0008, BF16 0.0062).
#: A format that is not here has the budgets of DOT_BUDGET.
FORMAT_BUDGET = {"F32": 1e-5, "F16": 1e-5, "BF16": 1e-5, "Q8_0": 0.026, "Q4_0": 0.026, "Q4_1": 0.028, "Q6_K": 0.028}
DOT_BUDGET = 0.03

#: What runs on every instruction set without ``-m isas``: each more takes a second or more to compile for each set.
CHOSEN = ["F16", "Q4_1", "Q6_K"]

#: Room for the prompt, in tokens.
CONTEXT = 640


def digest(logits: np.ndarray) -> str:
    """A hash of every bit of ``logits``."""
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def rms_distance(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the error, relative to that of the logits."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The random model of a block format, written on first use."""
    folder = tmp_path_factory.mktemp("quantized")

    def path(kind: str) -> Path:
        file = folder / f"{kind}.gguf"
        return file if file.exists() else write_model(file, kind)

    return path


def beside_others(model: Model, tokens: list[int], size: int) -> np.ndarray:
    """Logits of every position, fed ``size`` tokens at a time between chunks of two other sequences."""
    before, own, after = (model.kv.allocate(-(-CONTEXT // model.kv.page_tokens)) for _ in range(3))
    rows = []
    for position in range(0, len(tokens), size):
        part = tokens[position : position + size]
        k = position // size
        # neighbours of changing size, going on where they were; after 60 steps they begin anew
        others = [token % model.config.n_vocab for token in prompt(8, seed=k)]
        first = Chunk(tokens=others[: 3 + k % 5], position=3 * (k % 60), pages=before, outputs="last")
        middle = Chunk(tokens=part, position=position, pages=own, outputs="all")
        last = Chunk(tokens=others[-1:], position=k % 60, pages=after, outputs="none")
        rows.append(model.forward([first, middle, last])[1:].copy())
    for pages in (before, own, after):
        model.kv.release(pages)
    return np.concatenate(rows)


def check_same_bits(path: Path, tokens: list[int], kv_type: str | None = None) -> None:
    """All ways of running ``tokens`` through the model of ``path`` give the bits of one thread and large steps."""
    seen = {}
    for n_threads in (1, 2, 4):
        model = load(path, kv_type=kv_type, n_threads=n_threads, kv_tokens=4 * CONTEXT)
        try:
            for size in (512, 32, 1):
                seen[f"{n_threads} threads, {size} at a time"] = digest(logits_of(model, tokens, size))
            held = model.kv.allocate(3)  # now the sequence gets other pages, some of them used before
            seen[f"{n_threads} threads, other pages"] = digest(logits_of(model, tokens, 100))
            model.kv.release(held)
            for size in (64, 1) if n_threads == 2 else (37,):
                seen[f"{n_threads} threads, {size} beside others"] = digest(beside_others(model, tokens, size))
        finally:
            model.close()
    expected = seen["1 threads, 512 at a time"]
    assert {how for how, found in seen.items() if found != expected} == set()


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_same_bits_float(path: Path) -> None:
    check_same_bits(path, stored(path)[0])


@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_same_bits_of_every_cache(quantized: Callable[[str], Path], kv_type: str) -> None:
    check_same_bits(quantized("Q4_0"), prompt(PROMPT), kv_type)


@pytest.mark.parametrize("kind", TYPES)
def test_same_bits_quantized(quantized: Callable[[str], Path], kind: str) -> None:
    check_same_bits(quantized(kind), prompt(PROMPT))


@pytest.mark.parametrize("kind", TYPES)
def test_block_formats_against_float32(quantized: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """The same weights in float32 give the same logits, but for the rounding of activations."""
    tokens = prompt(150)
    logits = []
    for path in (quantized(kind), write_model(tmp_path / "float.gguf", kind, dequantized=True)):
        model = load(path, kv_type="f32", n_threads=1)
        logits.append(logits_of(model, tokens, len(tokens)))
        model.close()
    assert rms_distance(*logits) < FORMAT_BUDGET.get(kind, DOT_BUDGET)


@pytest.mark.parametrize("kinds", [CHOSEN, pytest.param(TYPES, marks=pytest.mark.isas)], ids=["chosen", "all"])
def test_every_instruction_set(quantized: Callable[[str], Path], tmp_path: Path, kinds: list[str]) -> None:
    """Portable models agree to the bit: lanes are rows, so that their number changes no sum, and all round alike."""
    files = [quantized(kind) for kind in kinds]
    found = {}
    for name in detect.available():
        out = tmp_path / f"{name}.npz"
        command = [sys.executable, tiny_models.__file__, str(out), *map(str, files)]
        subprocess.run(command, check=True, env={**os.environ, "GUMBA_ISA": name}, timeout=600)
        with np.load(out) as logits:
            found[name] = {kind: logits[kind] for kind in kinds}
    for kind in kinds:
        assert len({digest(logits[kind]) for logits in found.values()}) == 1, f"{kind}: {', '.join(found)}"
