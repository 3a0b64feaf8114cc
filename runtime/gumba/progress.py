"""Progress on stderr: tqdm's bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

_INTERVAL_S = 0.1
#: Seconds between two redraws of a bar while no call arrives (``Progress.ticking``).
_TICK_S = 1.0
#: Width of the bar in characters, and the marks that stand for it until tqdm draws it.
_BAR_WIDTH = 24
_BAR_MARKS = "\0" * _BAR_WIDTH
#: Seconds before the first line where stderr is no terminal. The pause doubles from line to line, up to the second number.
_FIRST_LINE_S, _MAX_PAUSE_S = 10.0, 600.0


class Progress:
    """Shows how far a piece of work is; a bar disappears at the end.

    An instance is the callback of sources and converters: it takes the stage, the amount done, and the total (0 if unknown).
    ``figure`` is shown beside them. ``rare``: the next call may be seconds away, so this one is drawn even shortly after the
    last.

    Args:
        unit: What is counted; "bytes" are shown as sizes.
        shown: False draws nothing.
        quiet: Write no lines where stderr is no terminal.
        delayed: Draw no bar, and import no tqdm, for work that ends within a tenth of a second.
    """

    def __init__(self, unit: str = "bytes", shown: bool = True, quiet: bool = False, *, delayed: bool = False) -> None:
        self._unit = unit
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = shown and sys.stderr is not None and (self._on_terminal or not quiet)
        self._delayed = delayed
        self._stage = ""
        self._began = self._drawn = self._last_line = 0.0
        self._pause = _FIRST_LINE_S
        self._bar: Any = None  # tqdm's, while one is on the terminal
        self._lock = threading.RLock()  # of the terminal's line; a signal handler may take it again
        self._last: tuple[float, float, str, float] = (0.0, 0.0, "", 0.0)  # done, total, figure, when

    def __call__(self, stage: str, done: float, total: float = 0, *, figure: str = "", rare: bool = False) -> None:
        if not self._shown:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._drawn = now if self._delayed and not self._stage else 0.0
            self._stage, self._began = stage, now
            self._last_line = self._last_line or now
        if not self._on_terminal:
            self._write_line(now, done, total, figure)
        elif rare or now - self._drawn >= _INTERVAL_S:
            self._drawn = now
            with self._lock:
                self._last = (done, total, figure, now)
                self._draw(done, total, self._parts(done, total, now - self._began, figure))

    def fraction(self, stage: str) -> Callable[[float], None]:
        """A callback for work that reports a fraction between 0 and 1."""
        return lambda done: self(stage, done, 1.0)

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Redraw the bar once a second inside the ``with`` block, so that the remaining time counts down between calls."""
        if not (self._shown and self._on_terminal):
            yield
            return
        done = threading.Event()

        def tick() -> None:
            while not done.wait(_TICK_S):
                self._redraw()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _redraw(self) -> None:
        """Redraw the last call, unless the bar was cleared since."""
        with self._lock:
            if self._bar is not None:
                done, total, figure, then = self._last
                silent = time.monotonic() - then
                self._draw(done, total, self._parts(done, total, then - self._began, figure, silent))

    def clear(self) -> None:
        """Remove the bar, so that something else can be written."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def _parts(self, done: float, total: float, elapsed: float, figure: str, silent: float = 0.0) -> list[str]:
        """The parts of a line: the stage and ``figure``, then the rest by importance.

        ``elapsed``: seconds until the last call; ``silent``: seconds since then.
        """
        share = min(1.0, done / total) if total else 0.0
        parts = [self._stage, figure]
        if total:
            bar = f"[{_BAR_MARKS}] " if self._on_terminal else ""
            parts.append(f"{bar}{share:4.0%}")
        if total and elapsed > 1 and 0 < share < 1:
            left = elapsed / share - elapsed
            parts.append(f"{_clock(max(left - silent, min(left, 1.0)))} left")
        counted = total != 1.0 and (done > 0 or total > 0)
        if counted and self._unit == "bytes":
            parts.append(size(done) + (f" of {size(total)}" if total else ""))
            if elapsed > 1:
                parts.append(f"{size(done / elapsed)}/s")
        elif counted:
            parts.append(f"{done:.0f}" + (f" of {total:.0f}" if total else ""))
        return [part for part in parts if part]

    def _write_line(self, now: float, done: float, total: float, figure: str) -> None:
        """Write a line, unless the pause since the last one is too short."""
        if now - self._last_line < self._pause:
            return
        self._last_line, self._pause = now, min(2 * self._pause, _MAX_PAUSE_S)
        parts = [part.strip() for part in self._parts(done, total, now - self._began, figure)]
        sys.stderr.write(f"gumba: {parts[0]} {', '.join(parts[1:])}\n")
        sys.stderr.flush()

    def _draw(self, done: float, total: float, parts: list[str]) -> None:
        """Draw as many of ``parts`` as the terminal is wide enough for."""
        width = shutil.get_terminal_size().columns - 1
        if len("  ".join(parts)) > width:  # the percentage and the remaining time say more than the picture of the bar
            parts = [part.rpartition("] ")[2].strip() if part.startswith("[") else part for part in parts]
        while len(parts) > 1 and len("  ".join(parts)) > width:
            parts = parts[:-1]
        line = "  ".join(parts).replace("{", "{{").replace("}", "}}").replace(_BAR_MARKS, f"{{bar:{_BAR_WIDTH}}}")
        state = {"n": min(done, total or done), "total": total or None, "bar_format": line, "ncols": max(1, width)}
        if self._bar is None:
            first = {"initial": state.pop("n"), **state}
            # nrows: tqdm hides the bar of a terminal that does not report its size.
            fixed = {"leave": False, "position": 0, "nrows": 24, "ascii": ".#", "disable": False}
            self._bar = _bar_type()(file=sys.stderr, **fixed, **first)
        else:
            vars(self._bar).update(state)
            self._bar.refresh()


@functools.cache
def _bar_type() -> Any:
    """tqdm with a lock of threads alone, and without its own thread, which redraws bars that are not updated."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0

    Bar.set_lock(threading.RLock())
    return Bar


def size(n_bytes: float) -> str:
    """``n_bytes`` as text, with a unit."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
