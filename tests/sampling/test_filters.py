"""Filters of candidates against plain NumPy, on vocabularies of one block of 256, of several, and of a part of one."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.sampling.kernels import filters, penalties

SIZES = [1, 2, 64, 65, 255, 256, 257, 1000, 5000]
every_size = pytest.mark.parametrize("n", SIZES)


def row_of(n: int, seed: int = 0) -> np.ndarray:
    """Logits with ties: eighths."""
    rng = np.random.default_rng([n, seed])
    row: np.ndarray = (np.round(rng.standard_normal(n) * 24) / 8).astype(np.float32)
    return row


def candidates(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = row.size
    return np.arange(n, dtype=np.int32), row.astype(np.float64), np.empty(3 * n + filters.SCRATCH_EXTRA)


def descending(x: np.ndarray) -> np.ndarray:
    """Places by (logit descending, id ascending)."""
    order: np.ndarray = np.argsort(-x, kind="stable")
    return order


@every_size
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_gather_leaves_out_what_is_banned(n: int, share: float) -> None:
    row = row_of(n)
    row[np.random.default_rng(n).random(n) < share] = penalties.BANNED
    ids, x, _ = candidates(row)
    size = filters.gather(row, ids, x)
    expected = np.flatnonzero(row != penalties.BANNED)
    np.testing.assert_array_equal(ids[:size], expected)
    np.testing.assert_array_equal(x[:size], row[expected])


@every_size
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gather_names_the_first_logit_that_is_not_finite(n: int, value: float) -> None:
    for at in {0, n // 2, n - 1}:
        row = row_of(n)
        row[[at, n - 1]] = value
        ids, x, _ = candidates(row)
        assert filters.gather(row, ids, x) == -1 - at


@every_size
@pytest.mark.parametrize("k", [1, 2, 40, 300, 4000])
def test_top_k_keeps_the_lower_ids_of_equal_ones(n: int, k: int) -> None:
    ids, x, room = candidates(row_of(n))
    expected = np.sort(descending(x)[:k])
    size = filters.top_k(ids, x, n, k, room)
    np.testing.assert_array_equal(ids[:size], expected)
    np.testing.assert_array_equal(x[:size], row_of(n)[expected])


@every_size
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_as_many_as_hold_enough(n: int, p: float) -> None:
    ids, x, room = candidates(row_of(n))
    order = descending(x)
    weights = np.exp(x[order] - x.max())
    expected = np.sort(order[: np.searchsorted(np.cumsum(weights), p * weights.sum()) + 1])
    size = filters.top_p(ids, x, n, p, 1, room)
    np.testing.assert_array_equal(ids[:size], expected)


@every_size
@pytest.mark.parametrize("distance", [0.0, 1.0, 3.0, 100.0])
def test_within_keeps_all_that_are_near(n: int, distance: float) -> None:
    ids, x, room = candidates(row_of(n))
    expected = np.flatnonzero(x >= x.max() - distance)
    size = filters.within(ids, x, n, distance, 1, room)
    np.testing.assert_array_equal(ids[:size], expected)


@every_size
def test_deviation(n: int) -> None:
    _, x, room = candidates(row_of(n))
    assert filters.deviation(x, n, room) == pytest.approx(x.std(), rel=1e-12, abs=1e-12)


@every_size
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 0.3, 1.0, 100.0])
def test_divide(n: int, temperature: float) -> None:
    _, x, room = candidates(row_of(n))
    below = x - x.max()
    expected = np.zeros(n)
    with np.errstate(all="ignore"):
        np.divide(below, temperature, out=expected, where=below < 0)
    filters.divide(x, n, temperature, room)
    np.testing.assert_array_equal(x, np.maximum(expected, -1e300))


@every_size
@pytest.mark.parametrize("m", [1, 2, 100])
def test_largest(n: int, m: int) -> None:
    _, x, _ = candidates(row_of(n))
    out = np.empty(min(m, n))
    filters.largest(x, n, out)
    np.testing.assert_array_equal(out, np.sort(x)[::-1][: out.size])


@every_size
def test_draw_inverts_the_cumulative_distribution(n: int) -> None:
    _, x, room = candidates(row_of(n))
    x[::3] = -1e300  # of no probability: never drawn, whatever the number
    x[n // 2] = x.max()
    probabilities = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    cumulative, surprise = np.cumsum(probabilities), np.empty(1)
    for uniform in [0.0, *np.random.default_rng(n).random(20), 1 - 2.0**-53]:
        place = filters.draw(x, n, uniform, surprise, room)
        assert probabilities[place] > 0
        assert cumulative[place] - probabilities[place] - 1e-12 <= uniform <= cumulative[place] + 1e-12
        assert surprise[0] == pytest.approx(-np.log2(probabilities[place]), rel=1e-9, abs=1e-9)
