"""Every family's checkpoint converts to the bytes that are recorded: whatever is moved, renamed or rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.converter_hashes import CHECKPOINTS, hashes_of, recorded


def test_every_checkpoint_is_recorded_and_no_other() -> None:
    assert set(recorded()) == set(CHECKPOINTS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_same_bytes_as_recorded(name: str, tmp_path: Path) -> None:
    """Where a change of files is intended, `cd tests && python -m support.converter_hashes` records them anew."""
    assert hashes_of(name, tmp_path) == recorded()[name]
