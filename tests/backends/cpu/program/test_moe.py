"""A mixture of experts as a program has it, against NumPy; the same bits for any threads and any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gumba.backends.base import ExpertMatrices
from gumba.backends.cpu.packing import PackedMatrix
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.simd.detect import current
from support import programs
from support.programs import batch, named, walk

WIDTH, INNER, N_EXPERTS = 64, 96, 5


def dense(format: str, n_rows: int, columns: int, seed: int) -> np.ndarray:
    """The numbers of ``programs.matrix``."""
    w = np.random.default_rng(seed).standard_normal((n_rows, columns)) / np.sqrt(columns)
    module = named(format)
    raw = np.asarray(module.quantize(w.astype(np.float32)))
    return np.asarray(module.dequantize(raw), np.float64).reshape(n_rows, columns)


def of_experts(format: str, n_rows: int, columns: int, seed: int) -> list[PackedMatrix]:
    return [programs.matrix(named(format), n_rows, columns, seed + e) for e in range(N_EXPERTS)]


def run(
    tokens: np.ndarray, n_threads: int, order: list[int], format: str = "f32", gated: bool = True, **options: Any
) -> tuple[np.ndarray, ...]:
    """x, the router's scores, and the result of each token."""
    p = Program(current(), n_threads, 80)
    x = p.scale(p.embed(programs.matrix(named("f32"), 50, WIDTH)), 4.0)
    logits = p.matmul(programs.matrix(named("f32"), N_EXPERTS, WIDTH, 7), x)
    gate, up = (of_experts(format, INNER, WIDTH, seed) for seed in (100, 200))
    down = of_experts(format, WIDTH, INNER, 300)
    if options.pop("oai", False):
        options["kind"] = lambda g, u: p.swiglu_oai(g, u, 1.702, 1.5)
    options.setdefault("kind", "silu")
    if options.pop("scaled", False):
        gate, up, down = ([replace(m, scale=s) for m, s in zip(of, SCALES)] for of in (gate, up, down))
    parts = [
        ExpertMatrices(m, options.pop(f"{name}_bias", None)) for name, m in (("gate", gate), ("up", up), ("down", down))
    ]
    out = p.moe(x, logits, parts[0] if gated else None, parts[1], parts[2], 2, **options)
    kept: list[Buffer] = [x, logits, out]
    records = p.finish(kept)
    p._arena[:] = 0xFF
    walk(records, batch(len(tokens), tokens), n_threads, order)
    return tuple(p.rows(b)[: len(tokens), : b.width].copy() for b in kept)


TOKENS = (np.arange(70, dtype=np.int32) * 7) % 50
SCALES = (0.5, 2.0, 1.0, -1.5, 0.75)
BIAS = np.array([0.5, -0.5, 0.25, 0.0, 1.0], np.float32)


def expected(x: np.ndarray, logits: np.ndarray, format: str, gated: bool = True, **options: Any) -> np.ndarray:
    """float64, expert by expert, from the decoded weights."""
    gates, ups = ([dense(format, INNER, WIDTH, seed + e) for e in range(N_EXPERTS)] for seed in (100, 200))
    downs = [dense(format, WIDTH, INNER, 300 + e) for e in range(N_EXPERTS)]
    if options.get("scaled"):
        gates, ups, downs = ([m * s for m, s in zip(of, SCALES)] for of in (gates, ups, downs))
    weights, zeros = options.get("weights", "softmax"), np.zeros(N_EXPERTS)
    out = np.zeros((len(x), WIDTH))
    for t, row in enumerate(x.astype(np.float64)):
        score = logits[t].astype(np.float64)
        made = 1 / (1 + np.exp(-score)) if weights == "sigmoid" else np.exp(score) / np.exp(score).sum()
        chosen = np.argsort(-(made + options.get("bias", 0)), kind="stable")[:2]
        own = made[chosen]
        if options.get("normalized") or weights == "softmax_chosen":
            own = own / own.sum()
        own = own * options.get("factors", np.ones(N_EXPERTS))[chosen]
        for weight, e in zip(own * options.get("scale", 1.0), chosen):
            if options.get("weigh_inputs"):
                row, weight = x[t].astype(np.float64) * weight, 1.0
            u = ups[e] @ row + options.get("up_bias", zeros)[e]
            g = gates[e] @ row + options.get("gate_bias", zeros)[e] if gated else u
            if options.get("oai"):
                g = np.minimum(g, 1.5)
                inner = g / (1 + np.exp(-1.702 * g)) * (np.clip(u, -1.5, 1.5) + 1)
            else:
                inner = g / (1 + np.exp(-g)) * (u if gated else 1)
            out[t] += weight * (downs[e] @ inner + options.get("down_bias", zeros)[e])
    return out


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"normalized": True}, {"weights": "sigmoid", "weigh_inputs": True}, {"weights": "softmax_chosen", "scale": 1.5},
     {"weights": "sigmoid", "bias": BIAS, "normalized": True, "scale": 2.5}, {"normalized": True, "factors": 2 + BIAS}],
)  # fmt: skip
def test_against_numpy(options: dict[str, Any], gated: bool) -> None:
    x, logits, got = run(TOKENS, 1, [0], gated=gated, **options)
    np.testing.assert_allclose(got, expected(x, logits, "f32", gated, **options), rtol=1e-5, atol=1e-5)


BIASES = {
    f"{name}_bias": np.random.default_rng(9).standard_normal((N_EXPERTS, n_rows)).astype(np.float32)
    for name, n_rows in (("gate", INNER), ("up", INNER), ("down", WIDTH))
}


@pytest.mark.parametrize("n_threads", [1, 3])
def test_biases_and_an_activation_of_two(n_threads: int) -> None:
    """As gpt-oss has it."""
    options = {"weights": "softmax_chosen", **BIASES, "oai": True}
    x, logits, got = run(TOKENS, n_threads, list(range(n_threads))[::-1], **options)
    np.testing.assert_allclose(got, expected(x, logits, "f32", **options), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_scales_of_experts(n_threads: int) -> None:
    options = {"weights": "softmax_chosen", **BIASES, "scaled": True}
    x, logits, got = run(TOKENS, n_threads, list(range(n_threads))[::-1], **options)
    np.testing.assert_allclose(got, expected(x, logits, "f32", **options), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("format", ["f32", "q4_0", "q8_0"])
def test_any_timing_and_company_gives_the_same_bits(format: str) -> None:
    for options in ({"weigh_inputs": True}, {}):
        whole = run(TOKENS, 1, [0], format, **options)[2]
        for n_threads, order in ((3, [0, 1, 2]), (3, [2, 1, 0]), (4, [1, 3, 0, 2])):
            np.testing.assert_array_equal(run(TOKENS, n_threads, order, format, **options)[2], whole)
    for first, last in ((0, 1), (13, 14), (13, 20), (69, 70)):
        np.testing.assert_array_equal(run(TOKENS[first:last].copy(), 2, [1, 0], format)[2], whole[first:last])


@pytest.mark.parametrize("format", ["q4_0", "q8_0", "f16"])
def test_experts_of_other_formats(format: str) -> None:
    """Activations of int8 leave about a hundredth."""
    x, logits, got = run(TOKENS, 1, [0], format)
    wanted = expected(x, logits, format)
    assert np.abs(got - wanted).mean() < (1e-5 if format == "f16" else 0.02) * np.abs(wanted).mean()


def test_what_does_not_fit() -> None:
    p = Program(current(), 1, 8)
    x = p.embed(programs.matrix(named("f32"), 50, WIDTH))
    logits = p.matmul(programs.matrix(named("f32"), N_EXPERTS, WIDTH, 7), x)
    up, down = ExpertMatrices(of_experts("f32", INNER, WIDTH, 1)), ExpertMatrices(of_experts("f32", WIDTH, INNER, 2))
    short, mixed = (
        ExpertMatrices(up.matrices[:4]),
        ExpertMatrices([*up.matrices[:4], of_experts("q8_0", INNER, WIDTH, 1)[4]]),
    )
    none, biased = ExpertMatrices([]), ExpertMatrices(up.matrices, np.zeros((N_EXPERTS, WIDTH), np.float32))
    shifted = ExpertMatrices(up.matrices, np.zeros((N_EXPERTS, INNER), np.float32))
    wrong: list[Callable[[], object]] = [
        lambda: p.moe(x, logits, up, up, down, 0, "silu"),
        lambda: p.moe(x, logits, up, up, down, 6, "silu"),
        lambda: p.moe(x, logits, up, shifted, down, 2, "silu", weigh_inputs=True),
        lambda: p.moe(x, x, up, up, down, 2, "silu"),
        lambda: p.moe(x, p.select_outputs(logits), up, up, down, 2, "silu"),
        lambda: p.moe(x, logits, short, up, down, 2, "silu"),
        lambda: p.moe(x, logits, up, up, ExpertMatrices(down.matrices[:4]), 2, "silu"),
        lambda: p.moe(x, logits, up, up, none, 2, "silu"),
        lambda: p.moe(x, logits, up, up, up, 2, "silu"),
        lambda: p.moe(x, logits, down, up, down, 2, "silu"),
        lambda: p.moe(x, logits, up, mixed, down, 2, "silu"),
        lambda: p.moe(x, logits, up, biased, down, 2, "silu"),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", weights="softmin"),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", bias=BIAS[:4]),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", factors=BIAS[:4]),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", groups=(2, 1)),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", groups=(5, 1)),
        lambda: p.moe(x, logits, up, up, down, 2, "silu", groups=(5, 6)),
        lambda: p.moe(x, logits, none, none, none, 1, "silu"),
        lambda: p.moe(x, logits, None, up, down, 2, lambda g, u: g),
    ]
    for call in wrong:
        before = len(p.operations)
        with pytest.raises(ValueError):
            call()
        assert len(p.operations) - before <= 1  # select_outputs
