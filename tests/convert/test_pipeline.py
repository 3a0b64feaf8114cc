"""Parallel jobs: order, bounds, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

from gumba_convert.common import parallel
from gumba_convert.common.parallel import in_order, row_pieces


def test_results_are_in_order_and_bounded() -> None:
    begun = 0

    def jobs() -> Iterator[Callable[[], np.ndarray]]:
        nonlocal begun
        for i in range(50):
            begun += 1
            yield lambda i=i: (time.sleep(0.002 * (i % 3)), np.array([i]))[1]  # type: ignore[misc]

    for taken, result in enumerate(in_order(jobs(), 2)):
        assert result[0] == taken
        assert begun - taken <= 2 + 3


def test_an_error_stops_all_threads() -> None:
    before = threading.active_count()
    jobs: list[Callable[[], np.ndarray]] = [lambda: np.zeros(1), lambda: np.zeros(1 // 0), lambda: np.zeros(1)]
    results = in_order(jobs, 2)
    next(results)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with closing(in_order(jobs[:1] * 100, 2)) as unfinished:
        next(unfinished)
    assert threading.active_count() == before


@pytest.mark.parametrize(("rows", "length", "unit"), [(7, 3, 1), (64, 10, 16), (64, 1000, 16), (1, 5, 1)])
def test_row_pieces_cover_all_rows_in_multiples_of_the_unit(
    rows: int, length: int, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "CHUNK", 40)
    pieces = list(row_pieces(rows, length, unit))
    assert [first for first, _ in pieces] == [sum(n for _, n in pieces[:i]) for i in range(len(pieces))]
    assert sum(n for _, n in pieces) == rows
    assert all(n % unit == 0 and n * length <= max(40, unit * length) for _, n in pieces)
