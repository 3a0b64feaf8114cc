"""Every family's checkpoint converts to the recorded bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import converter_hashes
from support.converter_hashes import CHECKPOINTS, hashes_of, recorded


def test_every_checkpoint_is_recorded_and_no_other() -> None:
    assert set(recorded()) == set(CHECKPOINTS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_same_bytes_as_recorded(name: str, tmp_path: Path) -> None:
    """Files that are meant to change are recorded again."""
    how = f"where a change of files is intended, `cd tests && python -m support.converter_hashes {name}` records it"
    assert hashes_of(name, tmp_path) == recorded()[name], how


@pytest.mark.parametrize(
    ("names", "missing", "expected"),
    [((), False, "new new"), ((), True, "old new"), (["b"], False, "old new"), (["a"], False, "new new")],
)
def test_recording(
    names: list[str], missing: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two checkpoints, a with a hash and b without: all, those without, or the named; what has none is always recorded."""
    monkeypatch.setattr(converter_hashes, "RECORDING", tmp_path / "hashes.json")
    monkeypatch.setattr(converter_hashes, "CHECKPOINTS", dict.fromkeys("ab"))
    monkeypatch.setattr(converter_hashes, "hashes_of", lambda name, folder: {"f32": "new"})
    (tmp_path / "hashes.json").write_text('{"a": {"f32": "old"}, "gone": {"f32": "old"}}', encoding="utf-8")
    converter_hashes.record(names, missing=missing)
    assert converter_hashes.recorded() == dict(zip("ab", ({"f32": word} for word in expected.split())))


def test_recording_of_an_unknown_checkpoint() -> None:
    with pytest.raises(SystemExit, match="unknown: heron; known are "):
        converter_hashes.record(["heron"])
