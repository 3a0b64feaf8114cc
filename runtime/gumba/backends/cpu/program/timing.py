"""Timing a program from within: clocks between its records.

The team walks the same records, cut into the same chunks, but each operation is a phase of its own, opened by a clock (which
the first chunk passes, and writes the time). So an operation's time runs from its opening to the next one's, the wait for its
slowest chunk included. The barriers that a program does without, between operations whose threads keep to their own rows,
add some hundred nanoseconds each.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time

import numpy as np

from gumba.backends.cpu.kernels.record import BARRIER, FIRST_ARGUMENT, RECORD_WORDS, SPLIT_FACTOR, kernel
from gumba.errors import EngineError
from gumba.simd.memory import call_address


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

    ``records``: a finished program's, int64 [n, RECORD_WORDS]. What they point to, and this object, must outlive every run.
    """

    def __init__(self, records: np.ndarray) -> None:
        #: As the clock writes them, seconds and nanoseconds or ticks: one that with the next tells what a clock takes, then
        #: the opening of each operation, then the end of the last one.
        self._times = np.zeros((len(records) + 2, 2), np.int64)
        self.records = np.zeros((2 * len(records) + 2, RECORD_WORDS), np.int64)
        self.records[0] = _clock_record(self._times[0])
        begins, factor = True, 0  # of the program's own phase
        for i, record in enumerate(records):
            factor = int(record[SPLIT_FACTOR]) if begins else factor
            begins = bool(record[BARRIER])
            self.records[2 * i + 1] = _clock_record(self._times[i + 1])
            self.records[2 * i + 2] = record
            # The first phase begins with the clock before the first operation's own.
            self.records[2 * i + (1 if i else 0), SPLIT_FACTOR] = factor
            self.records[2 * i + 2, BARRIER] = 1
        self.records[-1] = _clock_record(self._times[-1])
        self.records[-1, BARRIER] = 1

    def nanoseconds(self) -> np.ndarray:
        """What each record took in the latest run, int64 [n], the reading of the clock taken off (never below 0)."""
        unit = _clock()[2]
        ticks = self._times[:, 0] * 1_000_000_000 + self._times[:, 1] if unit == 1.0 else self._times[:, 0]
        spans = np.diff(ticks) * unit
        nanoseconds: np.ndarray = np.rint(np.maximum(spans[1:] - spans[0], 0.0)).astype(np.int64)
        return nanoseconds


def _clock_record(target: np.ndarray) -> np.ndarray:
    """A record that writes the time to ``target``, int64 [2]."""
    address, first, _ = _clock()
    at = int(target.ctypes.data)
    words = stamp.words({"clock": address, "first": at if first < 0 else first, "second": at})
    record = np.zeros(RECORD_WORDS, np.int64)
    record[0] = stamp.address
    record[FIRST_ARGUMENT : FIRST_ARGUMENT + len(words)] = words
    return record
