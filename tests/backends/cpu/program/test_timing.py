"""Clocks between a program's records: the same results, a time for each operation; and the work that operations name."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gumba.backends.cpu.kernels import activations_q8
from gumba.backends.cpu.kernels.record import BARRIER, FIRST_ARGUMENT, SPLIT_FACTOR
from gumba.backends.cpu.program.builder import Program
from gumba.backends.cpu.program.executor import Team
from gumba.backends.cpu.program.timing import Timing, stamp
from gumba.errors import EngineError
from gumba.runner.load import Chunk
from gumba.simd.detect import current
from support.programs import GOLDENS, batch, load, matrix, named, two_norms


@pytest.mark.serial
@pytest.mark.parametrize("n_threads", [1, 2])
def test_times_add_up_and_results_stay(n_threads: int) -> None:
    tokens, rows = np.arange(7, dtype=np.int32), np.array([6], np.int32)
    program = Program(current(), n_threads, 8)
    out, _ = two_norms(program, named("q8_0"))
    records = program.finish([out])
    timing, team, words = Timing(records), Team(n_threads), batch(7, tokens, rows)
    try:
        team.run(records, words)
        plain = program.rows(out)[:1].copy()
        program.rows(out)[:] = 0
        for _ in range(3):
            began = time.perf_counter_ns()
            team.run(timing.records, words)
            wall = time.perf_counter_ns() - began
            spans = timing.nanoseconds()
            assert spans.shape == (len(records),) and (spans >= 0).all()
            assert 0 < spans.sum() <= wall
    finally:
        team.close()
    assert np.array_equal(program.rows(out)[:1], plain)


@pytest.mark.serial
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_time_stands_with_the_operation_that_took_it(n_threads: int) -> None:
    """Among small products stands one with two thousand times their work."""
    format, width = named("f32"), 64
    for heavy in range(3):
        program = Program(current(), n_threads, 4)
        x = program.embed(matrix(format, 50, width))
        for i in range(3):
            last = program.matmul(matrix(format, 131072 if i == heavy else 64, width), x)
        records = program.finish([last])
        timing, team, tokens = Timing(records), Team(n_threads), np.zeros(4, np.int32)
        team.run(timing.records, batch(4, tokens))
        team.close()
        assert int(timing.nanoseconds().argmax()) == 1 + heavy


def test_each_operation_is_a_phase_cut_as_its_own_was() -> None:
    """What the team sees of a program with clocks: the same operations, each with a clock before it."""
    program = Program(current(), 4, 32)
    records = program.finish([two_norms(program, named("q8_0"))[0]])
    timed = Timing(records).records
    clocks = timed[:, 0] == stamp.address
    assert np.array_equal(timed[~clocks][:, FIRST_ARGUMENT:], records[:, FIRST_ARGUMENT:])
    assert np.array_equal(timed[~clocks][:, 0], records[:, 0])
    assert timed[:, BARRIER].tolist() == [*(~clocks[:-1]).astype(int), 1]
    begins = np.flatnonzero([True, *timed[:-1, BARRIER]])  # the record that says how a phase is cut
    own = np.flatnonzero([True, *records[:-1, BARRIER]])
    expected = records[own[np.searchsorted(own, np.arange(len(records)), side="right") - 1], SPLIT_FACTOR]
    assert timed[begins, SPLIT_FACTOR].tolist() == [*expected, 0] and expected.any()


def test_a_model_times_its_operations_and_goes_on_as_before() -> None:
    model = load(GOLDENS[0], n_threads=2)
    pages = model.kv.allocate(1)
    chunk = Chunk([1, 2, 3], 0, pages)
    plain = model.forward([chunk]).copy()
    spans = model.forward_timed([chunk])
    assert len(spans) == len(model.operations) and spans.sum() > 0
    assert np.array_equal(model.forward([chunk]), plain)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.forward_timed([chunk])
    with pytest.raises(EngineError, match="closed"):
        model.operations  # noqa: B018


def test_operations_name_their_work() -> None:
    """Of a product: its weights' bytes and two operations per weight; of attention: the cache and two products."""
    model = load(GOLDENS[0], n_threads=1)
    c = model.config
    work = [op.work for op in model.operations]
    per_layer = (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim * c.n_embd + 3 * c.n_embd * c.n_ff
    assert sum(w.row_ops for w in work) == 2 * (c.n_layers * per_layer + c.n_embd * c.n_vocab)
    assert sum(w.pair_ops for w in work) == 4 * c.n_layers * c.n_heads * c.head_dim
    page = sum(w.kv_bytes for w in work) * model.kv.page_tokens
    assert page == model.kv.page_bytes
    program = Program(current(), 1, 4)
    w = matrix(named("q4_0"), 128, 64)
    program.matmul(w, program.embed(matrix(named("f32"), 50, 64)))
    product = program.operations[-1].work
    assert (product.weights, product.row_ops, product.kind) == (128 * 64 // 32 * 18, 2 * 128 * 64, "int8")
    assert (product.shape, product.row_bytes) == ("128x64", 2 * activations_q8.BYTES + 4 * 128)
    model.close()
