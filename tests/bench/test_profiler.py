"""The profile: every operation with its fraction of the time, sums that agree, work as the shapes imply, measured limits."""

from __future__ import annotations

import contextlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from gumba import GGUFFile, RequestError
from gumba.bench import profiler
from gumba.bench.benchmark import Bench, Workload
from gumba.bench.profiler import Limits, Phase, Rates, measure_limits, profile
from gumba.runner.load import Chunk, LoadConfig, load_model

MODEL = Path(__file__).parent.parent / "data" / "model_gqa_tied.gguf"
HYBRID = Path(__file__).parent.parent / "data" / "arch_qwen35.gguf"
RATES = Rates(memory_gb_s=10.0, cache_gb_s=100.0, int8_gop_s=500.0, float32_gflop_s=50.0, bf16_gflop_s=100.0)


@pytest.fixture
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the measurements by fixed ones. Memory: 10, 12, 14, 10, ... GB/s."""
    monkeypatch.setattr(profiler, "measure_limits", lambda n_threads: Limits("none", n_threads, RATES, RATES))
    rates = itertools.cycle((10.0, 12.0, 14.0))
    monkeypatch.setattr(profiler, "_memory_probe", lambda n_threads: contextlib.nullcontext(lambda: next(rates)))


def test_the_memory_probe() -> None:
    with profiler._memory_probe(2) as probe:
        assert math.isfinite(probe()) and probe() > 0


@pytest.mark.serial
def test_limits_are_measured() -> None:
    limits = measure_limits(2, buffer_bytes=1 << 20)
    assert limits.threads == 2 and limits.isa
    for rates in (limits.one, limits.all):
        for rate in (rates.memory_gb_s, rates.cache_gb_s, rates.int8_gop_s, rates.float32_gflop_s, rates.bf16_gflop_s):
            assert math.isfinite(rate) and rate > 0
    alone = measure_limits(1, buffer_bytes=1 << 20)
    assert alone.one == alone.all


@pytest.mark.usefixtures("known_limits")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_operations_sum_to_the_step(n_threads: int) -> None:
    found = profile(MODEL, Workload(prompt=20, gen=3, depth=30, sequences=2, n_threads=n_threads), repeat=2)
    with GGUFFile(MODEL) as file:
        model = load_model(file, LoadConfig(n_threads=n_threads))
    names = {(op.kernel.name, op.work.shape) for op in model.operations}
    assert found.prefill is not None and found.decode is not None and found.phases == [found.prefill, found.decode]
    assert (found.prefill.tokens, found.prefill.steps, found.decode.tokens, found.decode.steps) == (20, 1, 6, 3)
    for phase in found.phases:
        assert {(op.name, op.shape) for op in phase.operations} == names
        assert sum(op.records for op in phase.operations) == len(model.operations)
        assert [op.ms for op in phase.operations] == sorted((op.ms for op in phase.operations), reverse=True)
        assert phase.operations_ms == pytest.approx(sum(op.ms for op in phase.operations))
        assert phase.operations_ms + phase.overhead_ms == pytest.approx(max(phase.step_ms, phase.operations_ms))
        assert sum(op.share for op in phase.operations) == pytest.approx(phase.operations_ms / phase.step_ms)
        assert phase.tokens_per_s == pytest.approx(1e3 * phase.tokens / (phase.steps * phase.step_ms))
        assert phase.operations_ms > 0 and phase.step_ms > 0
    model.close()


@pytest.mark.usefixtures("known_limits")
def test_work_is_as_the_shapes_imply() -> None:
    """Two sequences that decode three tokens each after 30: weights once a step, each cache, pairs with all earlier tokens."""
    decode = profile(MODEL, Workload(prompt=0, gen=3, depth=30, sequences=2, n_threads=1), repeat=1).decode
    assert decode is not None
    with GGUFFile(MODEL) as file:
        model = load_model(file, LoadConfig(n_threads=1))
    work = [op.work for op in model.operations]
    context = 2 * 32  # 31, 32 and 33 tokens: 32 on average
    weights = sum(w.weights for w in work)
    assert decode.memory_bytes == weights + context * model.kv.page_bytes // model.kv.page_tokens
    ops = sum(op.gop_s * op.ms * 1e6 for op in decode.operations if op.gop_s is not None)
    assert ops == pytest.approx(2 * sum(w.row_ops for w in work) + context * sum(w.pair_ops for w in work), rel=1e-6)
    for op in decode.operations:
        assert op.of_limit == (op.limit_ms / op.ms if op.ms else 0)
        assert op.bound in ("int8", "float32", "bf16", "memory", "cache")
    assert decode.memory_gb_s == pytest.approx(decode.memory_bytes / (decode.step_ms * 1e6))
    assert decode.memory_of_limit == pytest.approx(decode.memory_gb_s / 12)
    # A pass with clocks lies between 12 and 14 GB/s.
    product = next(op for op in decode.operations if op.shape == f"{model.config.n_vocab}x{model.config.n_embd}")
    output = next(w for w in work if w.shape == product.shape)
    assert product.bound == "memory" and product.limit_ms == pytest.approx(output.weights / 14e9 * 1e3)
    model.close()


def test_pairs_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token p attends to p + 1 tokens: counted one by one."""
    step = profiler._Step([Chunk([1] * 5, 7, [0], "last"), Chunk([1, 2], 0, [1], "all")], np.zeros(0, np.int64))
    assert (step.tokens, step.outputs) == (7, 3)
    assert step.seen() == (14, sum(p + 1 for p in range(7, 12)) + 1 + 2)
    for window in (1, 2, 3, 9, 10, 11, 12, 13):
        seen = [{k for k in range(p + 1) if p - k < window} for p in range(7, 12)]
        other = [{k for k in range(p + 1) if p - k < window} for p in range(2)]
        context = len(set.union(*seen)) + len(set.union(*other))
        assert step.seen(window) == (context, sum(map(len, seen + other))), window


def test_layers_that_share_keys_work_for_the_last_token_of_a_prompt() -> None:
    """Of their attention, only pairs and contexts of the tokens whose logits are needed count."""
    step = profiler._Step(
        [Chunk([1] * 5, 7, [0], "last"), Chunk([1, 2], 0, [1], "all"), Chunk([1], 3, [2], "none")],
        np.zeros(0, np.int64),
    )
    assert step.seen(of_outputs=True) == (12 + 2, 12 + 1 + 2)
    assert step.seen(4, of_outputs=True) == (4 + 2, 4 + 1 + 2)
    with GGUFFile(Path(__file__).parent.parent / "data" / "arch_gemma4.gguf") as file:
        model = load_model(file, LoadConfig(n_threads=1))
    attention = [op for op in model.operations if op.kernel.name.startswith("attention")]
    assert [step.of_outputs(op) for op in attention] == [False, False, True, True]
    assert [step.rows(op) for op in attention] == [8, 8, 3, 3]
    model.close()


@pytest.mark.usefixtures("known_limits")
def test_states_are_read_and_written_for_each_sequence() -> None:
    """Two layers with 4 heads of 32 times 32 float32, whatever the number of steps."""
    for sequences in (1, 3):
        decode = profile(HYBRID, Workload(prompt=0, gen=4, sequences=sequences, n_threads=1), repeat=1).decode
        assert decode is not None
        rule = next(each for each in decode.operations if each.name.startswith("delta_rule"))
        state = 2 * 2 * 4 * 32 * 32 * 4 * sequences
        # Beside it, of each sequence's token: queries, keys, values, result, padded gates.
        rows = 2 * 4 * (2 * 2 * 32 + 2 * 4 * 32 + 2 * 64) * sequences
        assert rule.gb_s == pytest.approx((state + rows) / (rule.ms * 1e6))


@pytest.mark.usefixtures("known_limits")
def test_a_phase_that_is_not_measured_is_none() -> None:
    assert profile(MODEL, Workload(prompt=4, gen=0, n_threads=1), repeat=1).decode is None
    with pytest.raises(RequestError, match="context"):
        profile(MODEL, Workload(prompt=1 << 20, gen=0, n_threads=1))


@pytest.mark.usefixtures("known_limits")
def test_a_slow_step_is_overhead_and_not_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between the steps, seen by the passes without clocks only, belongs to none of the operations."""
    plain = Bench.decode
    monkeypatch.setattr(
        Bench, "decode", lambda self, n, sequences, step=None: plain(self, n, sequences, step) + (step is None)
    )
    decode = profile(MODEL, Workload(prompt=0, gen=1, n_threads=1), repeat=1).decode
    assert isinstance(decode, Phase) and decode.overhead_ms > 900 > decode.operations_ms
