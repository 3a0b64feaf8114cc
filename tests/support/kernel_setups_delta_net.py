"""Builders for the kernels of layers that keep a state: see ``setups``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gumba.backends.cpu.kernels import causal_conv, delta_net
from gumba.backends.cpu.kernels.recurrent_state import COLUMNS
from gumba.backends.cpu.packing import aligned_empty
from gumba.simd.isa import Isa
from support import kernel_oracles
from support.kernel_harness import Batch, Setup, address, rows

#: (tokens before this step, tokens of it) of each sequence. Slots are not in order; what lies in that of a new one is NaN.
RUNS = ((0, 1), (3, 5), (0, 4), (9, 1))


def floats(count: int) -> np.ndarray:
    """NaN at a cache line."""
    made = aligned_empty(4 * count).view(np.float32)
    made[:] = np.nan
    return made


def setup_causal_conv(
    isa: Isa, width: int = 70, n_taps: int = 4, silu: bool = True, sequences: Sequence[tuple[int, int]] = RUNS
) -> Setup:
    """Rows and states lie in one piece of memory. Beside a layer's state in its slot, and beside the columns, lies NaN."""
    rng = np.random.default_rng([7, 40])
    n, kept, n_blocks = sum(new for _, new in sequences), n_taps - 1, -(-width // COLUMNS)
    slot = (n_blocks * kept * COLUMNS + 16) * 4
    stride = 4 * rows(np.zeros((1, width), np.float32)).shape[1]
    memory = floats((n * stride + len(sequences) * slot) // 4)
    x, states = memory[: n * stride // 4].reshape(n, -1), memory[n * stride // 4 :].reshape(len(sequences), -1)
    weight = rng.standard_normal((n_taps, width)).astype(np.float32)
    results, after = np.zeros((n, width)), np.zeros((len(sequences), kept, width))
    runs, first = [], 0
    for i, (past, new) in enumerate(sequences):
        at = (i + 1) % len(sequences)
        runs.append((first, new, past, at * slot))
        before = rng.standard_normal((kept, width)).astype(np.float32) if past else np.zeros((kept, width), np.float32)
        if past:
            blocks = np.zeros((kept, n_blocks * COLUMNS), np.float32)
            blocks[:, :width] = before
            states[at, : blocks.size] = blocks.reshape(kept, n_blocks, COLUMNS).swapaxes(0, 1).ravel()
        x[first : first + new, :width] = rng.standard_normal((new, width))
        seen = np.concatenate([before, x[first : first + new, :width]]).astype(np.float64)
        results[first : first + new] = sum(seen[tap : tap + new] * weight[tap] for tap in range(n_taps))
        after[at] = seen[new:]
        first += new
    if silu:
        results = kernel_oracles.activate("silu", results)
    held = np.zeros((n_taps, n_blocks * COLUMNS), np.float32)
    held[:, :width] = weight
    arguments = {"x": address(x), "stride": stride, "n_blocks": n_blocks, "weight": address(held),
                 "weight_stride": held.strides[0], "memory": address(states)}  # fmt: skip

    def view(memory: np.ndarray) -> np.ndarray:
        found = memory[: x.size].reshape(x.shape)[:, :width]
        kept_rows = memory[x.size :].reshape(states.shape)[:, : n_blocks * kept * COLUMNS]
        allocate_packed = kept_rows.reshape(len(sequences), n_blocks, kept, COLUMNS).swapaxes(1, 2)
        return np.concatenate(
            [found.ravel(), allocate_packed.reshape(len(sequences), kept, n_blocks * COLUMNS)[:, :, :width].ravel()]
        )

    return Setup(causal_conv.causal_conv(isa, n_taps, silu), arguments, Batch(n, runs=runs), memory, view,
                 np.concatenate([results.ravel(), after.ravel()]), 3e-6, keep=[held])  # fmt: skip


def setup_decay(isa: Isa, width: int = 70, n: int = 5, scale: float = 4.0) -> Setup:
    rng = np.random.default_rng([7, 41])
    x = (scale * rng.standard_normal((n, width))).astype(np.float32)
    bias, rate = rng.standard_normal((2, 1, width)).astype(np.float32)
    rate = -np.exp(rate)
    held, held_bias, held_rate = rows(x), rows(bias), rows(rate)
    out = rows(np.zeros((n, width), np.float32))
    arguments = {"x": address(held), "bias": address(held_bias), "rate": address(held_rate), "out": address(out),
                 "stride": out.strides[0], "n_blocks": -(-width // COLUMNS)}  # fmt: skip
    expected = np.exp(rate.astype(np.float64) * np.logaddexp(0, x.astype(np.float64) + bias))
    size = np.abs(np.log(expected)) + 1  # an error of the exponent is a relative one of the result
    return Setup(delta_net.decay(isa), arguments, Batch(n), out, lambda a: a[:, :width], expected,
                 2e-6 * size * expected + 1e-30, keep=[held, held_bias, held_rate])  # fmt: skip


def setup_delta_rule(
    isa: Isa, dim: int = 64, n_key_heads: int = 2, n_heads: int = 4, sequences: Sequence[tuple[int, int]] = RUNS
) -> Setup:
    """Outputs and states lie in one piece of memory."""
    rng = np.random.default_rng([7, 42])
    n, n_blocks = sum(new for _, new in sequences), dim // COLUMNS
    stride, slot = 4 * n_heads * dim, (n_heads * dim * dim + 16) * 4
    memory = floats((n * stride + len(sequences) * slot) // 4)
    out, states = memory[: n * stride // 4].reshape(n, -1), memory[n * stride // 4 :].reshape(len(sequences), -1)
    qk = rng.standard_normal((n, 2, n_key_heads, dim)).astype(np.float32)
    qk /= np.linalg.norm(qk, axis=-1, keepdims=True)
    v = rng.standard_normal((n, n_heads, dim)).astype(np.float32)
    gates = rng.uniform(0.2, 1.0, (2, n, n_heads)).astype(np.float32)
    results, after, runs, first = np.zeros((n, n_heads, dim)), np.zeros((len(sequences), n_heads, dim, dim)), [], 0
    for i, (past, new) in enumerate(sequences):
        at = (i + 1) % len(sequences)
        runs.append((first, new, past, at * slot))
        before = rng.standard_normal((n_heads, dim, dim)).astype(np.float32) * np.float32(past > 0)
        if past:
            packed = before.reshape(n_heads, dim, n_blocks, COLUMNS).swapaxes(1, 2)
            states[at, : before.size] = packed.ravel()
        after[at] = before
        for t in range(first, first + new):
            for h in range(n_heads):
                q, k = qk[t, :, h % n_key_heads].astype(np.float64)
                decayed = after[at, h] * gates[0, t, h]
                error = (v[t, h] - k @ decayed) * gates[1, t, h]
                after[at, h] = decayed + np.outer(k, error)
                results[t, h] = q @ after[at, h]
        first += new
    held = [rows(qk.reshape(n, -1)), rows(v.reshape(n, -1)), rows(gates[0]), rows(gates[1])]
    arguments = {"qk": address(held[0]), "qk_stride": held[0].strides[0],
                 "n_key_heads": n_key_heads, "v": address(held[1]), "decays": address(held[2]), "betas": address(held[3]),
                 "gate_stride": held[2].strides[0], "memory": address(states), "n_heads": n_heads, "n_blocks": n_blocks,
                 "dim": dim, "out": address(out), "stride": stride}  # fmt: skip
    assert held[1].strides[0] == stride

    def view(memory: np.ndarray) -> np.ndarray:
        found = memory[out.size :].reshape(states.shape)[:, : after[0].size]
        allocate_packed = found.reshape(-1, n_heads, n_blocks, dim, COLUMNS).swapaxes(2, 3)
        return np.concatenate([memory[: out.size], allocate_packed.ravel()])

    return Setup(delta_net.delta_rule(isa), arguments, Batch(n, runs=runs), memory, view,
                 np.concatenate([results.ravel(), after.ravel()]), 2e-5, keep=[*held])  # fmt: skip
