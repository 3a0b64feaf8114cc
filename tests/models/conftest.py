"""Fixtures that the tests of models share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gumba.engine.sequence import Generation


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], bytes]:
    """The logits that each token was chosen by, by all tokens before it: whoever has the same tokens has the same bits."""
    seen: dict[tuple[int, ...], bytes] = {}
    choose: Any = Generation._choose

    def checked(self: Generation, row: np.ndarray, *rest: Any) -> Any:
        assert seen.setdefault(tuple(self.tokens), row.tobytes()) == row.tobytes(), "other bits after the same tokens"
        return choose(self, row, *rest)

    monkeypatch.setattr(Generation, "_choose", checked)
    return seen
