"""Builders for the kernels of operations that go over rows: norms, activations, sums, copies: see ``setups``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels import activations, elementwise, mean_pooling, norms
from gumba.backends.cpu.kernels.record import N_OUTPUTS, N_TOKENS, POSITIONS, TOKENS
from gumba.simd.isa import Isa
from support import kernel_oracles
from support.kernel_harness import EPS32, Batch, Setup, address, n_blocks, rng_of, rows


def setup_rms_norm(isa: Isa, width: int = 100, n: int = 5, eps: float = 1e-5, scale: float = 1.0) -> Setup:
    """Beside the rows lies NaN: nothing there may count."""
    rng = rng_of(3)
    x = (rng.standard_normal((n, width)) * scale).astype(np.float32)
    weight = rng.standard_normal((1, width)).astype(np.float32)
    held, held_weight, out = rows(x), rows(weight), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "weight": address(held_weight), "out": address(out),
                 "stride": out.strides[0], "width": width, "n_blocks": n_blocks(width), "eps": eps}  # fmt: skip
    expected = kernel_oracles.rms_norm(x, weight[0], eps)
    tolerance = 8 * EPS32 * np.abs(expected) + 1e-30
    return Setup(norms.rms_norm, arguments, Batch(n), out, lambda a: a[:, :width], expected, tolerance,
                 keep=[held, held_weight])  # fmt: skip


def setup_layer_norm(isa: Isa, width: int = 100, n: int = 5, eps: float = 1e-5, around: float = 0.0) -> Setup:
    """Beside the rows lies NaN: nothing there may count. ``around``: what the numbers' mean is about."""
    rng = rng_of(11)
    x = (rng.standard_normal((n, width)) + around).astype(np.float32)
    weight, bias = (rng.standard_normal((1, width)).astype(np.float32) for _ in range(2))
    held, held_weight, held_bias, out = rows(x), rows(weight), rows(bias), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "weight": address(held_weight), "bias": address(held_bias),
                 "out": address(out), "stride": out.strides[0], "width": width, "n_blocks": n_blocks(width),
                 "eps": eps}  # fmt: skip
    expected = kernel_oracles.layer_norm(x, weight[0], bias[0], eps)
    tolerance = 8 * EPS32 * (np.abs(expected) + (4 + abs(around)) * np.abs(weight)) + 1e-30
    return Setup(norms.layer_norm, arguments, Batch(n), out, lambda a: a[:, :width], expected, tolerance,
                 keep=[held, held_weight, held_bias])  # fmt: skip


def setup_head_norm(
    isa: Isa, head_dim: int = 20, n_heads: int = 3, centred: bool = False, of_each: bool = False, n: int = 5
) -> Setup:
    """``of_each``: every head has weights of its own."""
    rng = rng_of(12)
    x = rng.standard_normal((n, n_heads, head_dim)).astype(np.float32)
    weight = rng.standard_normal((n_heads if of_each else 1, head_dim)).astype(np.float32)
    held, out = rows(x.reshape(n, -1)), rows(np.full((n, n_heads * head_dim), np.nan, np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "weight": address(weight), "out": address(out),
                 "weight_step": 4 * head_dim if of_each else 0, "stride": out.strides[0], "n_heads": n_heads,
                 "head_dim": head_dim, "centred": int(centred), "eps": 1e-5}  # fmt: skip
    weights = np.broadcast_to(weight, (n, n_heads, head_dim)).reshape(-1, head_dim)
    flat = x.reshape(-1, head_dim)
    made = (
        kernel_oracles.layer_norm(flat, weights, np.zeros(1), 1e-5)
        if centred
        else kernel_oracles.rms_norm(flat, weights, 1e-5)
    )
    tolerance = 8 * EPS32 * (np.abs(made) + 4 * np.abs(weights) * centred).reshape(n, -1) + 1e-30
    return Setup(norms.head_norm, arguments, Batch(n), out, lambda a: a[:, : n_heads * head_dim], made.reshape(n, -1),
                 tolerance, keep=[held, weight])  # fmt: skip


#: Largest relative error of each function. For some, rounding the exponent adds to it; that is found below.
ACTIVATION_ERROR = {"silu": 4e-7, "gelu": 8e-7, "gelu_tanh": 4e-7, "gelu_quick": 4e-7, "relu": 0.0, "relu2": 1e-7,
                    "sigmoid": 3e-7, "tanh": 4e-7}  # fmt: skip


def activation_error(kind: str, x: np.ndarray) -> np.ndarray:
    """Relative error allowed for each number."""
    x = np.abs(x.astype(np.float64))
    exponent = {"gelu": x * x / 2, "gelu_tanh": 1.6 * (x + 0.045 * x**3), "gelu_quick": 1.702 * x}.get(kind, 0 * x)
    return np.asarray(ACTIVATION_ERROR[kind] + 2e-7 * exponent)


def setup_activation(isa: Isa, kind: str = "gelu", x: np.ndarray | None = None) -> Setup:
    if x is None:
        x = (rng_of(13).standard_normal((5, 100)) * 3).astype(np.float32)
    held, out, width = rows(x), rows(np.zeros_like(x)), x.shape[1]
    arguments = {"count": N_TOKENS, "x": address(held), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    expected = kernel_oracles.activate(kind, x)
    tolerance = activation_error(kind, x) * np.abs(expected)
    return Setup(activations.activation(isa, kind), arguments, Batch(len(x)), out, lambda a: a[:, :width], expected,
                 tolerance + 1e-37, keep=[held])  # fmt: skip


def setup_gated(isa: Isa, kind: str = "silu", gate: np.ndarray | None = None) -> Setup:
    rng = rng_of(4)
    if gate is None:
        gate = (rng.standard_normal((5, 100)) * (8 if kind == "silu" else 3)).astype(np.float32)
    up = rng.standard_normal(gate.shape).astype(np.float32)
    held, held_up, out = rows(gate), rows(up), rows(np.zeros_like(gate))
    width = gate.shape[1]
    arguments = {"count": N_TOKENS, "gate": address(held), "up": address(held_up), "out": address(out),
                 "stride": out.strides[0], "n_blocks": n_blocks(width)}  # fmt: skip
    expected = kernel_oracles.activate(kind, gate) * up
    tolerance = (2e-7 + activation_error(kind, gate)) * np.abs(expected) + 1e-30
    return Setup(activations.gated(isa, kind), arguments, Batch(len(gate)), out, lambda a: a[:, :width], expected,
                 tolerance, keep=[held, held_up])  # fmt: skip


def setup_swiglu_oai(isa: Isa, alpha: float = 1.702, limit: float = 7.0, n: int = 5) -> Setup:
    rng = rng_of(14)
    gate, up = (rng.standard_normal((n, 100)).astype(np.float32) * 6 for _ in range(2))
    held, held_up, out = rows(gate), rows(up), rows(np.zeros_like(gate))
    arguments = {"count": N_TOKENS, "gate": address(held), "up": address(held_up), "out": address(out),
                 "stride": out.strides[0], "n_blocks": 4, "alpha": alpha, "limit": limit}  # fmt: skip
    expected = kernel_oracles.swiglu_oai(gate, up, alpha, limit)
    tolerance = 5e-6 * (np.abs(expected) + np.abs(np.minimum(gate, limit)) * EPS32)
    return Setup(activations.swiglu_oai(isa), arguments, Batch(n), out, lambda a: a[:, :100], expected, tolerance,
                 keep=[held, held_up])  # fmt: skip


def setup_softcap(isa: Isa, cap: float = 30.0, spread: float = 30.0) -> Setup:
    x = (rng_of(15).standard_normal((5, 100)) * spread).astype(np.float32)
    held, out = rows(x), rows(np.zeros_like(x))
    arguments = {"count": N_TOKENS, "x": address(held), "out": address(out), "stride": out.strides[0], "n_blocks": 4,
                 "cap": cap, "inverse": 1 / cap}  # fmt: skip
    expected = cap * np.tanh(x.astype(np.float64) / cap)
    return Setup(activations.softcap(isa), arguments, Batch(5), out, lambda a: a[:, :100], expected,
                 6e-7 * np.abs(expected), keep=[held])  # fmt: skip


def setup_combine(isa: Isa, kind: str = "add", width: int = 100, n: int = 5, row: bool = True) -> Setup:
    """``row``: the same row with all of x."""
    rng = rng_of(5)
    x, y = (rng.standard_normal((count, width)).astype(np.float32) for count in (n, 1 if row else n))
    held, held_y, out = rows(x), rows(y), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "y": address(held_y), "y_stride": 0 if row else held_y.strides[0],
                 "out": address(out), "stride": out.strides[0], "n_blocks": n_blocks(width)}  # fmt: skip
    return Setup(elementwise.combine(kind), arguments, Batch(n), out, lambda a: a[:, :width],
                 kernel_oracles.combine(kind, x, y), keep=[held, held_y])  # fmt: skip


def setup_scale(isa: Isa, width: int = 100, n: int = 5, factor: float = 0.3) -> Setup:
    x = rng_of(16).standard_normal((n, width)).astype(np.float32)
    held, out = rows(x), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width), "factor": factor}  # fmt: skip
    return Setup(elementwise.scale, arguments, Batch(n), out, lambda a: a[:, :width], x * np.float32(factor),
                 keep=[held])  # fmt: skip


def setup_scale_rows(isa: Isa, width: int = 100, n: int = 5) -> Setup:
    rng = rng_of(19)
    x, factors = (rng.standard_normal((n, k)).astype(np.float32) for k in (width, 1))
    held, held_factors, out = rows(x), rows(factors), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "factors": address(held_factors),
                 "factors_stride": held_factors.strides[0], "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    return Setup(elementwise.scale_rows, arguments, Batch(n), out, lambda a: a[:, :width], x * factors,
                 keep=[held, held_factors])  # fmt: skip


def setup_add_table(isa: Isa, width: int = 100, of_types: bool = False) -> Setup:
    rng = rng_of(17)
    positions = [5, 0, 8, 8, 1]
    x, table = rng.standard_normal((5, width)).astype(np.float32), rng.standard_normal((9, width)).astype(np.float32)
    held, held_table, out = rows(x), rows(table), rows(np.zeros((5, width), np.float32))
    arguments = {"count": N_TOKENS, "index": TOKENS if of_types else POSITIONS, "divisor": 50 if of_types else 1,
                 "x": address(held), "table": address(held_table), "table_stride": held_table.strides[0],
                 "out": address(out), "stride": out.strides[0], "n_blocks": n_blocks(width)}  # fmt: skip
    tokens = [50 * position + 7 * i for i, position in enumerate(positions)] if of_types else []
    return Setup(elementwise.add_table, arguments, Batch(5, tokens=tokens, positions=positions), out, lambda a: a[:, :width],
                 kernel_oracles.combine("add", x, table[positions]), keep=[held, held_table])  # fmt: skip


def setup_text_means(isa: Isa, width: int = 100, lengths: Sequence[int] = (3, 1, 5)) -> Setup:
    """``lengths``: of the texts. All rows but their first stay as they are."""
    x = rng_of(31).standard_normal((sum(lengths), width)).astype(np.float32)
    held, out, expected, start = rows(x), rows(np.zeros_like(x)), x.astype(np.float64), 0
    for length in lengths:
        expected[start] = expected[start : start + length].mean(axis=0)
        start += length
    arguments = {"count": N_TOKENS, "x": address(held), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    positions = [position for length in lengths for position in range(length)]
    return Setup(mean_pooling.text_means, arguments, Batch(len(x), positions=positions), out, lambda a: a[:, :width],
                 expected, 1e-6, keep=[held])  # fmt: skip


def setup_copy_columns(isa: Isa, first: int = 37, width: int = 91, n: int = 5) -> Setup:
    """The last column of x is the last one wanted, and the last row ends with the memory."""
    x = rng_of(18).standard_normal((n, first + width)).astype(np.float32)
    out = rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(x), "x_stride": x.strides[0], "first": first, "out": address(out),
                 "stride": out.strides[0], "width": width, "n_blocks": n_blocks(width)}  # fmt: skip
    return Setup(elementwise.copy_columns, arguments, Batch(n), out, lambda a: a[:, :width], x[:, first:], keep=[x])


def setup_copy_heads(isa: Isa, n_heads: int = 3, width: int = 37, step: int = 41, first: int = 5, at: int = 3) -> Setup:
    """Into rows of numbers that stay where no head's part is; x ends with the last column wanted."""
    n, out_step = 5, width + 7
    rng = rng_of(26)
    x = rng.standard_normal((n, first + (n_heads - 1) * step + width)).astype(np.float32)
    out = rng.standard_normal((n, n_heads * out_step + at)).astype(np.float32)
    expected = out.copy()
    for h in range(n_heads):
        expected[:, at + h * out_step :][:, :width] = x[:, first + h * step :][:, :width]
    arguments = {"count": N_TOKENS, "x": address(x), "x_first": 4 * first, "x_stride": x.strides[0], "x_head": 4 * step,
                 "out": address(out), "out_first": 4 * at, "stride": out.strides[0], "out_head": 4 * out_step,
                 "n_heads": n_heads, "width": width}  # fmt: skip
    return Setup(elementwise.copy_heads, arguments, Batch(n), out, lambda a: a, expected, keep=[x])


def setup_select_rows(isa: Isa, chosen: Sequence[int] = (8, 0, 3, 3), width: int = 100, n: int = 9) -> Setup:
    x = rng_of(6).standard_normal((n, width)).astype(np.float32)
    held, out = rows(x), rows(np.zeros((len(chosen), width), np.float32))
    arguments = {"count": N_OUTPUTS, "x": address(held), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    batch = Batch(n, output_rows=chosen)
    return Setup(elementwise.select_rows, arguments, batch, out, lambda a: a[:, :width],
                 kernel_oracles.select_rows(x, list(chosen)), keep=[held])  # fmt: skip
