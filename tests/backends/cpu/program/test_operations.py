"""What each operation of a program computes, run as a program is: shared memory, barriers, threads far ahead of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.packing import PackedMatrix
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.simd.detect import current
from support import programs
from support.programs import batch, named, walk

TOKENS = np.array([3, 40, 0, 7, 7, 22, 49], np.int32)
POSITIONS = np.array([5, 0, 1, 2, 30, 31, 6], np.int32)
OUTPUTS = np.array([6, 0, 4], np.int32)
WIDTH = 72


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def normal(x: np.ndarray, eps: float = 0.01) -> np.ndarray:
    """Layer norm over the last axis."""
    off = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(off / np.sqrt((off * off).mean(axis=-1, keepdims=True) + eps))


def rms(x: np.ndarray, eps: float = 0.01) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps))


_rng = np.random.default_rng(3)
ROW, ROW_2 = (_rng.standard_normal(WIDTH).astype(np.float32) for _ in range(2))
HEAD = _rng.standard_normal(24).astype(np.float32)
TABLE = _rng.standard_normal((40, WIDTH)).astype(np.float32)


def weights(n_rows: int, columns: int, seed: int) -> np.ndarray:
    """The numbers of ``programs.matrix`` in f32."""
    w = np.random.default_rng(seed).standard_normal((n_rows, columns)) / np.sqrt(columns)
    return w.astype(np.float32).astype(np.float64)


def scaled(n_rows: int, columns: int, seed: int, scale: float) -> PackedMatrix:
    return replace(programs.matrix(named("f32"), n_rows, columns, seed), scale=scale)


MATRICES = [np.random.default_rng(seed).standard_normal((5, 24)) / np.sqrt(24) for seed in range(3)]

#: Operations of two buffers x and y, and the same in NumPy, float64 [n, WIDTH].
CASES: dict[str, tuple[Callable[[Program, Buffer, Buffer], Buffer], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "rms_norm": (lambda p, x, y: p.rms_norm(x, ROW, 0.01), lambda x, y: rms(x) * ROW),
    "rms_norm without weight": (lambda p, x, y: p.rms_norm(x, None, 0.01), lambda x, y: rms(x)),
    "layer_norm": (lambda p, x, y: p.layer_norm(x, ROW, ROW_2, 0.01), lambda x, y: normal(x) * ROW + ROW_2),
    "layer_norm without bias": (lambda p, x, y: p.layer_norm(x, ROW, None, 0.01), lambda x, y: normal(x) * ROW),
    "layer_norm without weight": (lambda p, x, y: p.layer_norm(x, None, None, 0.01), lambda x, y: normal(x)),
    "head_norm": (
        lambda p, x, y: p.head_norm(x, HEAD, 0.01, 3, 24),
        lambda x, y: (rms(x.reshape(-1, 3, 24)) * HEAD).reshape(-1, WIDTH),
    ),
    "head_norm without weight": (
        lambda p, x, y: p.head_norm(x, None, 0.01, 3, 24),
        lambda x, y: rms(x.reshape(-1, 3, 24)).reshape(-1, WIDTH),
    ),
    "head_norm, weights of each head": (
        lambda p, x, y: p.head_norm(x, ROW, 0.01, 3, 24, centred=True),
        lambda x, y: (normal(x.reshape(-1, 3, 24)) * ROW.reshape(3, 24)).reshape(-1, WIDTH),
    ),
    "add": (lambda p, x, y: p.add(x, y), lambda x, y: x + y),
    "multiply": (lambda p, x, y: p.multiply(x, y), lambda x, y: x * y),
    "add_row": (lambda p, x, y: p.add_row(x, ROW), lambda x, y: x + ROW),
    "multiply_row": (lambda p, x, y: p.multiply_row(x, ROW), lambda x, y: x * ROW),
    "scale": (lambda p, x, y: p.scale(x, 1.5), lambda x, y: x * 1.5),
    "scale_rows": (lambda p, x, y: p.scale_rows(x, p.slice(y, 5, 1)), lambda x, y: x * y[:, 5:6]),
    "softcap": (lambda p, x, y: p.softcap(x, 2.0), lambda x, y: 2 * np.tanh(x / 2)),
    "add_positions": (lambda p, x, y: p.add_positions(x, TABLE), lambda x, y: x + TABLE[POSITIONS]),
    "add_types": (lambda p, x, y: p.add_types(x, TABLE, 9), lambda x, y: x + TABLE[TOKENS // 9]),
    "slice": (lambda p, x, y: p.slice(p.scale(x, 3.0), 7, 65), lambda x, y: 3 * x[:, 7:]),
    "join_heads": (
        lambda p, x, y: p.join_heads(3, [(x, 4, 7, 20), (p.scale(y, 2.0), 50, 15, 0), (x, 0, 2, 35)]),
        lambda x, y: np.concatenate(
            [np.hstack([x[:, 4 + 20 * h :][:, :7], 2 * y[:, 50:65], x[:, 35 * h :][:, :2]]) for h in range(3)], axis=1
        ),
    ),
    "head_matmul": (
        lambda p, x, y: p.head_matmul([programs.matrix(named("f32"), 5, 24, seed) for seed in range(3)], p.scale(x, 2.0)),
        lambda x, y: np.hstack([2 * x[:, 24 * h :][:, :24] @ MATRICES[h].T for h in range(3)]),
    ),
    "scaled matrices": (
        lambda p, x, y: p.matmul(scaled(WIDTH, WIDTH, 4, 3.0), x, residual=y, bias=ROW),
        lambda x, y: 3 * x @ weights(WIDTH, WIDTH, 4).T + y + ROW,
    ),
    "scaled matrices of heads": (
        lambda p, x, y: p.head_matmul([scaled(5, 24, h, h + 0.5) for h in range(3)], x),
        lambda x, y: np.hstack([(h + 0.5) * x[:, 24 * h :][:, :24] @ MATRICES[h].T for h in range(3)]),
    ),
    "scaled rows": (
        lambda p, x, y: p.add(p.scale(p.embed(scaled(50, WIDTH, 1, 3.0)), 2.0), x),
        lambda x, y: 6 * weights(50, WIDTH, 1)[TOKENS] + x,
    ),
    "slices": (lambda p, x, y: p.add(p.slice(x, 5, 40), p.slice(y, 32, 40)), lambda x, y: x[:, 5:45] + y[:, 32:]),
    "activation": (lambda p, x, y: p.activation(x, "gelu_tanh"),
                   lambda x, y: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "gated": (lambda p, x, y: p.gated(x, y, "relu2"), lambda x, y: np.maximum(x, 0) ** 2 * y),
    "swiglu": (lambda p, x, y: p.swiglu(x, y), lambda x, y: x * sigmoid(x) * y),
    "swiglu_oai": (lambda p, x, y: p.swiglu_oai(x, y, 1.7, 0.5),
                   lambda x, y: np.minimum(x, 0.5) * sigmoid(1.7 * np.minimum(x, 0.5)) * (np.clip(y, -0.5, 0.5) + 1)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name, selected",
    [
        (name, selected)
        for name in CASES
        for selected in (False, True)
        if name not in ("add_positions", "add_types", "scaled rows") or not selected
    ],
)
def test_operation(name: str, selected: bool) -> None:
    """Of all tokens' rows, or of those whose logits are wanted."""
    write, oracle = CASES[name]
    results = []
    for n_threads, order in ((1, [0]), (3, [0, 1, 2]), (3, [2, 1, 0]), (5, [3, 0, 4, 1, 2])):
        p = Program(current(), n_threads, 8, 40)
        x, y = (p.embed(programs.matrix(named("f32"), 50, WIDTH, seed)) for seed in (1, 2))
        inputs = [p.scale(p.select_outputs(b) if selected else b, 6.0) for b in (x, y)]
        made = write(p, *inputs)
        p.scale(inputs[0], 1.0), p.scale(inputs[1], 1.0)  # what was read is not overwritten
        records = p.finish([made, *inputs])
        p._arena[:] = 0xFF  # NaN
        words = batch(len(TOKENS), TOKENS, OUTPUTS)
        words[record.POSITIONS // 8] = POSITIONS.ctypes.data
        walk(records, words, n_threads, order)
        n = len(OUTPUTS) if selected else len(TOKENS)
        given, got = [p.rows(b)[:n, :WIDTH].astype(np.float64) for b in inputs], p.rows(made)[:n, : made.width].copy()
        np.testing.assert_allclose(got, oracle(*given), rtol=2e-6, atol=2e-6)
        results.append(got.tobytes())
    assert len(set(results)) == 1, "the same bits"


def test_operations_check_what_they_are_given() -> None:
    p = Program(current(), 1, 8, 41)
    x = p.embed(programs.matrix(named("f32"), 50, WIDTH))
    y = p.slice(x, 0, 40)
    wrong: list[Callable[[], object]] = [
        lambda: p.add(x, y),
        lambda: p.multiply(x, p.select_outputs(x)),
        lambda: p.gated(x, y, "silu"),
        lambda: p.swiglu_oai(x, y, 1.0, 1.0),
        lambda: p.slice(x, 40, 33),
        lambda: p.slice(x, -1, 5),
        lambda: p.slice(x, 3, 0),
        lambda: p.rms_norm(x, HEAD, 0.1),
        lambda: p.layer_norm(x, ROW, HEAD, 0.1),
        lambda: p.add_row(y, ROW),
        lambda: p.head_norm(x, HEAD, 0.1, 4, 24),
        lambda: p.head_norm(x, TABLE[0, :25], 0.1, 3, 24),
        lambda: p.add_positions(x, TABLE),  # 40 positions, 41 tokens of context
        lambda: p.add_positions(y, np.zeros((41, WIDTH))),
        lambda: p.add_types(y, TABLE, 9),
        lambda: p.add_types(x, TABLE, 0),
        lambda: p.activation(x, "swish"),
        lambda: p.scale_rows(x, y),
        lambda: p.join_heads(3, [(x, 0, 24, 24), (x, 1, 24, 24)]),
        lambda: p.join_heads(3, [(x, 0, 24, 24), (p.operations[0].writes[0], -1, 1, 0)]),
        lambda: p.head_matmul([programs.matrix(named("f32"), 5, 24)] * 2, x),
        lambda: p.head_matmul([programs.matrix(named("f32"), 5, 36), programs.matrix(named("f32"), 6, 36)], x),
    ]
    before = len(p.operations)
    for call in wrong:
        with pytest.raises(ValueError):
            call()
    assert len(p.operations) == before + 1  # select_outputs
