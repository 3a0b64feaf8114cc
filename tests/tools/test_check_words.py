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


def test_files_of_a_copy_without_git(check_words: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an archive of the sources has is checked too, and what git ignores is not."""
    written = ["README.md", ".ci/run", "runtime/a.py", "tests/data/b.txt", "CHANGELOG.md", "c.gguf"]
    ignored = [".venv/d.py", "build/e.py", "runtime/gumba.egg-info/f.txt", "runtime/__pycache__/g.py"]
    for name in written + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(check_words, "ROOT", tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in check_words.files()} == {*written[:3]}


def test_this_repository_is_checked(check_words: ModuleType) -> None:
    names = {path.relative_to(TOOLS.parent).as_posix() for path in check_words.files()}
    assert {"README.md", ".ci/run", "tools/lint", "runtime/gumba/llm/llm.py", "docs/glossary.md"} <= names
