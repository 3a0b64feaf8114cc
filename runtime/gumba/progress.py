"""A progress bar on stderr, shown only where stderr is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType

_INTERVAL_S = 0.1
_BAR = 24


class Progress:
    """A line that is drawn over itself while something goes on, and is gone afterwards.

    An instance is called as sources and converters report: with the stage, what is done, and what there is to do
    (0 where that is not known). ``figure`` is shown beside them. ``unit`` says what is counted: "bytes" are
    shown as sizes. Without ``shown`` nothing is drawn.
    """

    def __init__(self, unit: str = "bytes", shown: bool = True) -> None:
        self._unit = unit
        self._shown = shown and sys.stderr is not None and sys.stderr.isatty()
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
            self._draw(self._parts(done, total, now - self._began, figure))

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

    def _parts(self, done: float, total: float, elapsed: float, figure: str) -> list[str]:
        """What there is to say: the stage and ``figure`` first, then the rest, what matters most first."""
        share = min(1.0, done / total) if total else 0.0
        parts = [self._stage, figure]
        if total:
            full = round(share * _BAR)
            parts.append("[" + "#" * full + "." * (_BAR - full) + f"] {share:4.0%}")
        if total and elapsed > 1 and 0 < share < 1:
            parts.append(f"{_clock(elapsed / share - elapsed)} left")
        if total != 1.0 and self._unit == "bytes":
            parts.append(size(done) + (f" of {size(total)}" if total else ""))
            if elapsed > 1:
                parts.append(f"{size(done / elapsed)}/s")
        elif total != 1.0:
            parts.append(f"{done:.0f}" + (f" of {total:.0f}" if total else ""))
        return [part for part in parts if part]

    def _draw(self, parts: list[str]) -> None:
        """Draw as many of ``parts`` as the terminal is wide enough for."""
        width = shutil.get_terminal_size().columns - 1
        while len(parts) > 1 and len("  ".join(parts)) > width:
            parts = parts[:-1]
        line = "  ".join(parts)[: max(0, width)]
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)


def size(n_bytes: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
