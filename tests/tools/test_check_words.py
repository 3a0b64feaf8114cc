"""tools/check_words.py finds retired words in every form that a name or a sentence can have, and only those."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def check_words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_words", TOOLS / "check_words.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("def weave(rows):", ["weave"]),
        ("_weave_rows = WeaveRows()", ["weave", "Weave"]),
        ("# Whoever asked: somebody.", ["Whoever", "asked", "somebody"]),
        ("class Judges(Answering):", ["Judges", "Answering"]),
        ("near_pages = _near_slots", ["near_pages", "_near_slots"]),
        ("norms=decoder.AROUND", ["AROUND"]),
        ("# the tokens around it, and those before", []),
        ("linear_attention, masked, silent, answer, nearest", []),
        ('header["near_from"], ``near_bytes``', []),
    ],
)
def test_words_of_a_line(check_words: ModuleType, line: str, words: list[str]) -> None:
    lines = (TOOLS / "retired_words.txt").read_text(encoding="utf-8").splitlines()
    assert check_words.Retired(lines).in_line(line) == words
