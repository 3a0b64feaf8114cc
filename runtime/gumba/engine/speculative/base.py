"""What the engine needs of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Drafter(Protocol):
    """Proposes the next tokens of one sequence. A wrong proposal costs time; it never changes the answer."""

    def propose(self, tokens: Sequence[int], limit: int, /) -> list[int]:
        """At most ``limit`` tokens that may follow ``tokens``; none if it has no proposal."""

    def on_verified(self, n_cached: int, /) -> None:
        """Learn that the last proposal was right as far as ``n_cached`` tokens of the sequence are computed."""

    def close(self) -> None:
        """Free everything that the drafter holds."""
