"""tools/quality.py without models: the figures, where two answers part, and how a text is assembled."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import quality


def test_figures_of_two_engines() -> None:
    """Two tokens of a vocabulary of three; the second engine doubles one probability at the cost of another."""
    first = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    second = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32)) + np.float32(3)
    figures = quality.Figures()
    figures.add({"llama.cpp": first, "gumba": second}, np.array([0, 2]))
    found = figures.report()
    assert found["perplexity"] == pytest.approx({"llama.cpp": (0.5 * 0.6) ** -0.5, "gumba": (0.25 * 0.6) ** -0.5})
    assert found["ratio"]["value"] == pytest.approx(2**0.5)
    assert found["kl"] == pytest.approx({"llama.cpp to gumba": (0.5 * np.log(2) - 0.25 * np.log(2)) / 2})
    assert found["same_best"] == {"llama.cpp to gumba": 0.5}
    assert found["scored"] == 2


def test_figures_do_not_depend_on_the_slices() -> None:
    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((2 * quality.ROWS + 3, 7)).astype(np.float32) for name in ("llama.cpp", "gumba")}
    targets = rng.integers(0, 7, 2 * quality.ROWS + 3)
    whole, parts = quality.Figures(), quality.Figures()
    whole.add(rows, targets)
    for k in range(len(targets)):
        parts.add({name: logits[k : k + 1] for name, logits in rows.items()}, targets[k : k + 1])
    assert whole == parts


def test_where_two_answers_part() -> None:
    found = quality.parting(([1, 2, 3], [0.5, 0.25, 0.1]), {"ids": [1, 9, 3], "margins": [0.5, 0.125, 0.3]})
    assert found["equal"] == 1 and found["margins"] == {"gumba": 0.25, "llama.cpp": 0.125}
    same = quality.parting(([1, 2], [0.5, 0.25]), {"ids": [1, 2], "margins": [0.5, 0.25]})
    assert same["equal"] == 2 and "margins" not in same


def test_texts_are_cut_and_joined(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ganz süß", encoding="utf-8")
    (tmp_path / "b.1.gz").write_bytes(gzip.compress(b"manual page"))
    assert quality.assembled([tmp_path / "a.txt", tmp_path / "b.1.gz"], 6) == "ganz s\n\nmanual"
