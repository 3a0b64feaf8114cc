"""Timing a program from within: a clock record before the first operation and after each one.

The team walks the same records as always, with the same barriers; thread 0 writes the time whenever it passes a clock. So an
operation's time is thread 0's: its share of the work and, where a barrier follows, the wait for the slowest thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time

import numpy as np

from gumba.errors import EngineError
from gumba.kernels.op import FIRST_ARGUMENT, RECORD_WORDS, kernel
from gumba.simd.memory import call_address

#: Clock records before the first operation: from one to the next lies what reading the clock itself takes.
LEADING = 2


@kernel
def stamp(batch, thread, n_threads, clock, first, second):
    """Call the clock ``void f(int64, int64)``, which writes the time where one of its arguments points."""
    if thread == 0:
        call_address(clock, first, second, 0, 0)


@functools.cache
def _clock() -> tuple[int, int, float]:
    """Address of the system's steady clock, its first argument (-1: where to write), nanoseconds of a written unit."""
    try:
        if os.name == "nt":
            library = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
            frequency = ctypes.c_int64()
            library.QueryPerformanceFrequency(ctypes.byref(frequency))
            return ctypes.cast(library.QueryPerformanceCounter, ctypes.c_void_p).value or 0, -1, 1e9 / frequency.value
        function = ctypes.CDLL(None).clock_gettime
        return ctypes.cast(function, ctypes.c_void_p).value or 0, time.CLOCK_MONOTONIC, 1.0
    except (OSError, AttributeError):
        raise EngineError("this system has no clock that compiled code can read: nothing can be profiled") from None


class Timing:
    """``records`` with clocks between them.

    ``records``: a finished program's, int64 [n, RECORD_WORDS]. They, and this object, must outlive every run.
    """

    def __init__(self, records: np.ndarray) -> None:
        address, first, self._unit = _clock()
        n = len(records)
        self._times = np.zeros(
            (n + LEADING, 2), np.int64
        )  # as the clock writes them: seconds and nanoseconds, or ticks
        self.records = np.zeros((2 * n + LEADING, RECORD_WORDS), np.int64)
        places = [*range(LEADING - 1), *range(LEADING - 1, 2 * n + LEADING, 2)]
        for place, target in zip(places, self._times):
            at = int(target.ctypes.data)
            words = stamp.words({"clock": address, "first": at if first < 0 else first, "second": at})
            self.records[place, 0] = stamp.address
            self.records[place, FIRST_ARGUMENT : FIRST_ARGUMENT + len(words)] = words
        self.records[LEADING::2] = records

    def nanoseconds(self) -> np.ndarray:
        """What each record took in the latest run, int64 [n], the reading of the clock taken off (never below 0)."""
        ticks = self._times[:, 0] * 1_000_000_000 + self._times[:, 1] if self._unit == 1.0 else self._times[:, 0]
        spans = np.diff(ticks * self._unit if self._unit != 1.0 else ticks)
        return np.maximum(spans[LEADING - 1 :] - spans[: LEADING - 1].min(), 0).astype(np.int64)
