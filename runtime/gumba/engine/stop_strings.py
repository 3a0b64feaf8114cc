"""Stop strings: text is held back while it might become part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through up to the first stop string (``include``: and with it), whatever pieces the text comes in.

    The stop string that is *complete* first wins (of several that end together, the one that began first), so that the
    result does not depend on where the pieces are cut.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        #: The stop string that was seen; nothing comes out any more.
        self.reason: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was seen."""
        return self.reason is not None

    def push(self, text: str) -> str:
        """Add ``text``; returns what can be shown for certain."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        held = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            end, start, self.reason = min(found)
            self._held = ""
            return held[: end if self._include else start]
        keep = min(self._longest - 1, len(held))
        while keep and not any(stop.startswith(held[-keep:]) for stop in self._stops):
            keep -= 1
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
