"""Streams side by side as operations of a program: shared memory, barriers, threads far ahead of others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.simd.detect import current
from support import programs
from support.programs import batch, named, walk

TOKENS = np.array([3, 40, 0, 7, 7, 22, 49], np.int32)
OUTPUTS = np.array([6, 0, 4], np.int32)
WIDTH = 72  # a row of its own has 128


def written(p: Program, x: Buffer, y: Buffer, selected: bool) -> list[Buffer]:
    """All that there is to do with streams; of the rows whose logits are wanted, if ``selected``."""
    all_streams = p.stack_streams([x, y, p.match_magnitude(y, x, 1e-5)])
    if selected:
        all_streams, x, y = p.select_output_streams(all_streams), p.select_outputs(x), p.select_outputs(y)
    mixed = p.mix_streams(all_streams, p.slice(y, 3, 9))
    added = p.add_to_streams(mixed, p.keep_greatest(x, 0.5), p.slice(x, 20, 3))
    last = p.add_to_streams(added, x, [0.0, 1.0, 2.0])
    return [p.stream(last, i) for i in range(3)]


def expected(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    third = y * np.sqrt((x * x).mean(1) / (y * y).mean(1))[:, None]
    found = np.stack([x, y, third])
    found = found + np.einsum("tij,jtw->itw", y[:, 3:12].reshape(-1, 3, 3), found)
    greatest = np.maximum(0, x - (x.mean(1) + 0.5 * x.std(1))[:, None])
    return np.asarray(found + x[:, 20:23].T[:, :, None] * greatest + np.array([0, 1, 2])[:, None, None] * x)


@pytest.mark.parametrize("selected", [False, True])
def test_streams(selected: bool) -> None:
    results = []
    for n_threads, order in ((1, [0]), (3, [0, 1, 2]), (3, [2, 1, 0]), (5, [3, 0, 4, 1, 2])):
        p = Program(current(), n_threads, 8, 40)
        inputs = [p.scale(p.embed(programs.matrix(named("f32"), 50, WIDTH, seed)), 6.0) for seed in (1, 2)]
        made = written(p, *inputs, selected)
        records = p.finish([*made, *inputs])
        p._arena[:] = 0xFF  # NaN
        walk(records, batch(len(TOKENS), TOKENS, OUTPUTS), n_threads, order)
        x, y = (p.rows(each)[: len(TOKENS), :WIDTH].astype(np.float64) for each in inputs)
        rows = OUTPUTS if selected else np.arange(len(TOKENS))
        results.append(np.stack([p.rows(each)[: len(rows), :WIDTH] for each in made]))
        np.testing.assert_allclose(results[-1], expected(x, y)[:, rows], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(results[-1], results[0])


def test_what_does_not_fit_is_refused() -> None:
    p = Program(current(), 1, 8, 41)
    x = p.embed(programs.matrix(named("f32"), 50, WIDTH))
    narrow, chosen = p.slice(x, 0, 40), p.select_outputs(x)
    two, wrong = p.stack_streams([x, x]), p.slice(x, 0, 3)
    calls: list[Callable[[], object]] = [
        lambda: p.stack_streams([x, narrow]),
        lambda: p.stack_streams([x, chosen]),
        lambda: p.mix_streams(two, wrong),
        lambda: p.mix_streams(two, p.slice(chosen, 0, 4)),
        lambda: p.add_to_streams(two, narrow, [1.0, 1.0]),
        lambda: p.add_to_streams(two, chosen, [1.0, 1.0]),
        lambda: p.add_to_streams(two, x, [1.0]),
        lambda: p.add_to_streams(two, x, wrong),
        lambda: p.match_magnitude(x, narrow, 1e-5),
        lambda: p.match_magnitude(x, chosen, 1e-5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"columns|coefficients"):
            call()
