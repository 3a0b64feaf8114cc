"""Stop strings: text is withheld while it might become part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through up to the first stop string.

    The stop string that is *complete* first wins (of several that end together, the one that began first), so the result does
    not depend on how the text is cut into pieces.

    Args:
        stops: The stop strings.
        include: Whether the text includes the stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops, self._include = tuple(stops), include
        self._longest = max(map(len, stops), default=0)
        self._withheld = ""
        #: The stop string that occurred; no more text is returned after it.
        self.reason: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has occurred."""
        return self.reason is not None

    def push(self, text: str) -> str:
        """Add ``text``; returns the text that cannot be part of a stop string any more."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        text = self._withheld + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, start, self.reason = min(matches)
            self._withheld = ""
            return text[: end if self._include else start]
        keep = min(self._longest - 1, len(text))
        while keep and not any(stop.startswith(text[-keep:]) for stop in self._stops):
            keep -= 1
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The withheld text, at the end of the answer."""
        text, self._withheld = self._withheld, ""
        return text
