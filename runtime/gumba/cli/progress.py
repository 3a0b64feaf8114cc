"""A progress bar on stderr, shown only where stderr is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType

from gumba.cli.text import size

_INTERVAL_S = 0.1
_BAR = 24


class Progress:
    """A line that is drawn over itself while something goes on, and is gone afterwards.

    An instance is called as sources and converters report: with the stage, what is done, and what there is to do
    (0 where that is not known). ``figure`` is shown beside them. ``unit`` says what is counted: "bytes" are
    shown as sizes.
    """

    def __init__(self, unit: str = "bytes") -> None:
        self._unit = unit
        self._shown = sys.stderr.isatty()
        self._stage = ""
        self._began = self._drawn = 0.0
        self._width = 0

    def __call__(self, stage: str, done: float, total: float = 0, *, figure: str = "") -> None:
        if not self._shown:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._drawn = stage, now, 0.0
        if now - self._drawn >= _INTERVAL_S:
            self._drawn = now
            self._draw("  ".join(filter(None, (self._line(done, total, now - self._began), figure))))

    def fraction(self, stage: str) -> Callable[[float], None]:
        """A callback for work that reports a fraction between 0 and 1."""
        return lambda done: self(stage, done, 1.0)

    def clear(self) -> None:
        """Take the bar away, so that something else can be written."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def _line(self, done: float, total: float, elapsed: float) -> str:
        share = min(1.0, done / total) if total else 0.0
        parts = [self._stage]
        if total:
            full = round(share * _BAR)
            parts.append("[" + "#" * full + "." * (_BAR - full) + f"] {share:4.0%}")
        if total != 1.0:
            count = size if self._unit == "bytes" else lambda n: f"{n:.0f} {self._unit}"
            parts.append(count(done) + (f" of {count(total)}" if total else ""))
            if elapsed > 1:
                parts.append(f"{count(done / elapsed)}/s")
        if total and elapsed > 1 and 0 < share < 1:
            parts.append(f"{_clock(elapsed / share - elapsed)} left")
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
