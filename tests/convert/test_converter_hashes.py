"""Every family's checkpoint converts to the recorded bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.converter_hashes import CHECKPOINTS, hashes_of, recorded


def test_every_checkpoint_is_recorded_and_no_other() -> None:
    assert set(recorded()) == set(CHECKPOINTS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_same_bytes_as_recorded(name: str, tmp_path: Path) -> None:
    """After an intended change of files, record them again with `cd tests && python -m support.converter_hashes`."""
    assert hashes_of(name, tmp_path) == recorded()[name]
