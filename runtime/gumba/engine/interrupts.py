"""Ctrl-C in its place: not in the middle of a change of the engine's state.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also inside a ``finally`` and between taking a
lock and noting that it is taken. While the engine's state changes, SIGINT is only remembered; the handler that was there
(whoever's it is) gets it right after.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Held:
    """A context in which SIGINT waits. Only the main thread gets signals: elsewhere, and when nested, it does nothing."""

    _active = False  # of the main thread, which alone changes it

    def __enter__(self) -> None:
        self._came: FrameType | None = None
        self._holds = False
        if threading.current_thread() is not threading.main_thread() or Held._active:
            return
        self._before: Any = signal.getsignal(signal.SIGINT)
        if callable(self._before):
            signal.signal(signal.SIGINT, self._remember)
            Held._active = self._holds = True

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holds:
            Held._active = False
            signal.signal(signal.SIGINT, self._before)
            if self._came is not None:
                self._before(signal.SIGINT, self._came)
