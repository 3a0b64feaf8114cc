"""A builder for every kernel: inputs, and what its oracle makes of them. ``TABLE`` names them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import oracles
from harness import GENERIC, Batch, Setup, packed, random_rows, rows
from setups_recurrent import setup_causal_conv, setup_decay, setup_delta_rule
from setups_streams import setup_add_to_streams, setup_keep_greatest, setup_match_magnitude, setup_mix_streams

from gumba.kernels import activations, conv, elementwise, embed, experts, jit, matmul, norms, q8, rope, text_means
from gumba.kernels import attention_layout as att
from gumba.kernels.attention import attention, store_kv
from gumba.kernels.op import N_OUTPUTS, N_TOKENS, POSITIONS, TOKENS, Kernel
from gumba.kernels.packed import aligned_empty
from gumba.kernels.pages import PART_TOKENS, page_formats
from gumba.quants import FORMATS, q4_1
from gumba.simd.isa import Isa

EPS32 = 2.0**-24


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def n_blocks(width: int) -> int:
    return -(-width // 32)


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng([7, *seed])


def setup_quantize_q8(isa: Isa, x: np.ndarray | None = None) -> Setup:
    if x is None:
        x = rng_of(1).standard_normal((5, 160)).astype(np.float32) * np.float32(3)
    held = rows(x)
    out = np.zeros((len(x), x.shape[1] // 32, 64), np.uint8)
    arguments = {"count": N_TOKENS, "x": address(held), "x_stride": held.strides[0], "out": address(out),
                 "out_stride": out.strides[0], "n_blocks": x.shape[1] // 32}  # fmt: skip
    ordinary = np.isfinite(x).all() and not np.any((np.abs(x) > 0) & (np.abs(x) < 1e-30))
    expected = oracles.quantize_q8(x) if ordinary else out.copy()  # else only some properties are promised
    return Setup(q8.quantize_q8, arguments, Batch(len(x)), out, lambda a: a, expected, keep=[held])


def setup_matmul(
    isa: Isa,
    format: ModuleType = q4_1,
    n: int = 13,
    n_rows: int = 37,
    columns: int | None = None,
    residual: bool = True,
) -> Setup:
    columns = columns or (512 if format.BLOCK_SIZE == 256 else 160)
    rng = rng_of(2)
    raw = random_rows(format, n_rows, columns, rng)
    w = packed(format, raw, columns, isa)
    dense = np.asarray(format.dequantize(raw), np.float64).reshape(n_rows, columns)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    added = rows(rng.standard_normal((n, n_rows)).astype(np.float32), padding=0.0)
    if format.ACTIVATION == "q8":
        held = oracles.quantize_q8(x)
        seen, stride = oracles.dequantize_q8(held), held.shape[1] * 64
        # Exact within a block, then some roundings for each; a minimum is added apart from the rest.
        size = np.abs(seen).sum(axis=1)[:, None] * np.abs(dense).max(axis=1)[None, :] * 3
        roundings = 6 * columns // 32
    else:
        held = rows(x)
        seen, stride = x.astype(np.float64), held.strides[0]
        size = np.abs(seen) @ np.abs(dense).T
        roundings = 2 * columns
    out = rows(np.full((n, n_rows), np.nan, np.float32))
    arguments = {
        "count": N_TOKENS, "x": address(held), "x_stride": stride, "w": w.address, "group_bytes": w.group_bytes,
        "n_blocks": w.n_blocks, "n_groups": w.n_groups, "out": address(out), "out_stride": out.strides[0],
        "residual": address(added) if residual else 0,
    }  # fmt: skip
    expected = oracles.matmul(seen, dense, added[:, :n_rows] if residual else None)
    tolerance = (roundings + 4) * EPS32 * (size + np.abs(expected)) + 1e-30
    return Setup(
        matmul.matmul(format, isa), arguments, Batch(n), out, lambda a: a[:, :n_rows], expected, tolerance,
        keep=[held, added, w],
    )  # fmt: skip


def setup_head_matmul(isa: Isa, format: ModuleType = q4_1, n: int = 13, n_heads: int = 3, n_rows: int = 37) -> Setup:
    columns = 256 if format.BLOCK_SIZE == 256 else 96
    rng = rng_of(27)
    raws = [random_rows(format, n_rows, columns, rng) for _ in range(n_heads)]
    ws = [packed(format, raw, columns, isa) for raw in raws]
    x = rng.standard_normal((n, n_heads * columns)).astype(np.float32)
    if format.ACTIVATION == "q8":
        held = oracles.quantize_q8(x)
        seen, stride, head = oracles.dequantize_q8(held), held.shape[1] * 64, columns // 32 * 64
    else:
        held = rows(x)
        seen, stride, head = x.astype(np.float64), held.strides[0], 4 * columns
    padded = ws[0].n_groups * isa.lanes
    out = rows(np.full((n, n_heads * padded), np.nan, np.float32))
    addresses = np.array([w.address for w in ws], np.int64)
    arguments = {"count": N_TOKENS, "x": address(held), "x_stride": stride, "x_head": head, "weights": address(addresses),
                 "n_heads": n_heads, "group_bytes": ws[0].group_bytes, "n_blocks": ws[0].n_blocks,
                 "n_groups": ws[0].n_groups, "out": address(out), "out_stride": out.strides[0]}  # fmt: skip
    expected, size = np.zeros((n, n_heads, n_rows)), np.zeros((n, n_heads, n_rows))
    for h, raw in enumerate(raws):
        dense = np.asarray(format.dequantize(raw), np.float64).reshape(n_rows, columns)
        own = seen[:, h * columns : (h + 1) * columns]
        expected[:, h] = own @ dense.T
        size[:, h] = np.abs(own).sum(axis=1)[:, None] * np.abs(dense).max(axis=1)[None, :] * 3
    tolerance = (2 * columns + 4) * EPS32 * size + 1e-30
    return Setup(matmul.head_matmul(format, isa), arguments, Batch(n), out,
                 lambda a: a[:, : n_heads * padded].reshape(n, n_heads, padded)[:, :, :n_rows], expected, tolerance,
                 keep=[held, ws, addresses])  # fmt: skip


def setup_rms_norm(isa: Isa, width: int = 100, n: int = 5, eps: float = 1e-5, scale: float = 1.0) -> Setup:
    """Beside the rows lies NaN: nothing there may count."""
    rng = rng_of(3)
    x = (rng.standard_normal((n, width)) * scale).astype(np.float32)
    weight = rng.standard_normal((1, width)).astype(np.float32)
    held, held_weight, out = rows(x), rows(weight), rows(np.zeros((n, width), np.float32))
    arguments = {"count": N_TOKENS, "x": address(held), "weight": address(held_weight), "out": address(out),
                 "stride": out.strides[0], "width": width, "n_blocks": n_blocks(width), "eps": eps}  # fmt: skip
    expected = oracles.rms_norm(x, weight[0], eps)
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
    expected = oracles.layer_norm(x, weight[0], bias[0], eps)
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
    made = oracles.layer_norm(flat, weights, np.zeros(1), 1e-5) if centred else oracles.rms_norm(flat, weights, 1e-5)
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
    expected = oracles.activate(kind, x)
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
    expected = oracles.activate(kind, gate) * up
    tolerance = (2e-7 + activation_error(kind, gate)) * np.abs(expected) + 1e-30
    return Setup(activations.gated(isa, kind), arguments, Batch(len(gate)), out, lambda a: a[:, :width], expected,
                 tolerance, keep=[held, held_up])  # fmt: skip


def setup_swiglu_oai(isa: Isa, alpha: float = 1.702, limit: float = 7.0, n: int = 5) -> Setup:
    rng = rng_of(14)
    gate, up = (rng.standard_normal((n, 100)).astype(np.float32) * 6 for _ in range(2))
    held, held_up, out = rows(gate), rows(up), rows(np.zeros_like(gate))
    arguments = {"count": N_TOKENS, "gate": address(held), "up": address(held_up), "out": address(out),
                 "stride": out.strides[0], "n_blocks": 4, "alpha": alpha, "limit": limit}  # fmt: skip
    expected = oracles.swiglu_oai(gate, up, alpha, limit)
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
                 oracles.combine(kind, x, y), keep=[held, held_y])  # fmt: skip


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
                 oracles.combine("add", x, table[positions]), keep=[held, held_table])  # fmt: skip


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
    return Setup(text_means.text_means, arguments, Batch(len(x), positions=positions), out, lambda a: a[:, :width],
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


def paged(rng: np.random.Generator, width: int) -> tuple[np.ndarray, dict[str, int | float], int]:
    """Memory of 7 pages of rows, all NaN, two pages in an extent with a gap behind; arguments that say so; bytes of a row."""
    row_bytes = -(-width // 32) * 128
    page_bytes = 64 * row_bytes
    memory = aligned_empty(4 * (2 * page_bytes + 192))
    memory[:] = 0xFF
    return memory, {"memory": address(memory), "page_bytes": page_bytes, "extent_pages": 2, "row_bytes": row_bytes,
                    "extent_bytes": 2 * page_bytes + 192, "n_blocks": n_blocks(width)}, row_bytes  # fmt: skip


def row_at(memory: np.ndarray, place: dict[str, int | float], slot: int) -> np.ndarray:
    """float32 view of a token's row in ``paged`` memory."""
    extent, page = divmod(slot // 64, 2)
    start = int(extent * place["extent_bytes"] + page * place["page_bytes"] + slot % 64 * place["row_bytes"])
    return memory[start : start + int(place["row_bytes"])].view(np.float32)


def setup_store_rows(isa: Isa, width: int = 96, near: bool = True) -> Setup:
    """Every byte of the pages is compared. ``near``: the places are those in layers with a window."""
    rng = rng_of(28)
    memory, place, _ = paged(rng, width)
    slots = [0, 63, 64 * 6 + 5, 130, 131]
    x = rng.standard_normal((len(slots), width)).astype(np.float32)
    held, before = rows(x), memory.copy()
    for slot, row in zip(slots, x):
        row_at(memory, place, slot)[:width] = row
    expected = memory.copy()
    memory[:] = before
    places = {"near_slots" if near else "slots": slots}
    arguments = place | {"x": address(held), "stride": held.strides[0], "slots_at": att.pages_at(near)[0]}
    return Setup(conv.store_rows, arguments, Batch(len(slots), **places), memory, lambda a: a, expected, keep=[held])  # fmt: skip


def setup_short_conv(
    isa: Isa,
    width: int = 70,
    n_taps: int = 3,
    sequences: Sequence[tuple[int, int]] = ((0, 1), (0, 5), (62, 4), (1, 2)),
    near: bool = True,
) -> Setup:
    """``sequences``: (tokens before this step, tokens of it) of each. What lies before a sequence's first token is NaN."""
    rng = rng_of(29)
    memory, place, _ = paged(rng, width)
    weight = rng.standard_normal((n_taps, width)).astype(np.float32)
    pages = list(rng.permutation(7))
    tiles: list[tuple[int, ...]] = []
    tables, expected, start = [], [], 0
    for past, new in sequences:
        tables.append(np.array([pages.pop() for _ in range(-(-(past + new) // 64))], np.int32))
        x = rng.standard_normal((past + new, width)).astype(np.float32)
        for position, row in enumerate(x):
            row_at(memory, place, int(tables[-1][position // 64]) * 64 + position % 64)[:width] = row
        before = np.concatenate([np.zeros((n_taps - 1, width)), x])
        expected.append(
            sum(before[tap : tap + len(x)] * weight[tap].astype(np.float64) for tap in range(n_taps))[past:]
        )
        for at in range(0, new, 3):
            table = address(tables[-1])
            both = (0, table) if near else (table, 0)
            tiles.append((start + at, min(3, new - at), past + at, both[0], past + new, 0, both[1]))
        start += new
    held, out = rows(weight, padding=0.0), rows(np.full((start, width), np.nan, np.float32))
    arguments = place | {"weight": address(held), "weight_stride": held.strides[0], "n_taps": n_taps, "out": address(out),
                         "stride": out.strides[0], "table_at": att.pages_at(near)[1]}  # fmt: skip
    return Setup(conv.short_conv, arguments, Batch(start, tiles=tiles), out, lambda a: a[:, :width], np.concatenate(expected),
                 2e-6, keep=[memory, held, tables])  # fmt: skip


def setup_select_rows(isa: Isa, chosen: Sequence[int] = (8, 0, 3, 3), width: int = 100, n: int = 9) -> Setup:
    x = rng_of(6).standard_normal((n, width)).astype(np.float32)
    held, out = rows(x), rows(np.zeros((len(chosen), width), np.float32))
    arguments = {"count": N_OUTPUTS, "x": address(held), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    batch = Batch(n, output_rows=chosen)
    return Setup(elementwise.select_rows, arguments, batch, out, lambda a: a[:, :width],
                 oracles.select_rows(x, list(chosen)), keep=[held])  # fmt: skip


def setup_embed(isa: Isa, format: ModuleType = q4_1, n_rows: int = 37, columns: int | None = None) -> Setup:
    columns = columns or (512 if format.BLOCK_SIZE == 256 else 160)
    raw = random_rows(format, n_rows, columns, rng_of(7))
    w = packed(format, raw, columns, isa)
    tokens = [n_rows - 1, 0, 5, 5, *range(n_rows), n_rows + 2]
    out = rows(np.zeros((len(tokens), columns), np.float32))
    scratch = aligned_empty(50 * embed.SCRATCH)
    arguments = {"w": w.address, "n_rows": n_rows, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks,
                 "scratch": address(scratch), "out": address(out), "out_stride": out.strides[0]}  # fmt: skip
    dense = np.asarray(format.dequantize(raw)).reshape(n_rows, columns)
    return Setup(embed.embed(format, isa), arguments, Batch(len(tokens), tokens=tokens), out, lambda a: a[:, :columns],
                 oracles.embed(dense, [token % n_rows for token in tokens]), keep=[w, scratch])  # fmt: skip


def setup_rope(
    isa: Isa, rope_dim: int = 20, head_dim: int = 24, n_heads: int = 3, neox: bool = False, n: int = 6
) -> Setup:
    rng = rng_of(8)
    x = rng.standard_normal((n, n_heads * head_dim)).astype(np.float32)
    positions = [0, 1, 500, 7, 63, 64][:n]
    frequencies = 10000.0 ** -(np.arange(rope_dim // 2) * 2.0 / rope_dim)
    table = np.ascontiguousarray(rope.rope_table(frequencies, 501, 1.0, neox))
    out = rows(x)
    arguments = {"x": address(out), "stride": out.strides[0], "n_heads": n_heads, "head_dim": head_dim,
                 "rope_dim": rope_dim, "table": address(table), "neox": int(neox)}  # fmt: skip
    expected = oracles.rope(x.reshape(n, n_heads, head_dim), positions, frequencies, neox).reshape(n, -1)
    return Setup(rope.rope, arguments, Batch(n, positions=positions), out, lambda a: a[:, : x.shape[1]], expected, 2e-6,
                 keep=[table])  # fmt: skip


class Cache:
    """Pages of one layer, full of NaN until they are written; each sequence has a shuffled block table."""

    def __init__(
        self,
        isa: Isa,
        heads: int,
        head_dim: int,
        v_dim: int,
        kv_type: str,
        contexts: Sequence[int],
        rng: np.random.Generator,
    ) -> None:
        self.isa, self.heads, self.head_dim, self.v_dim, self.kv_type = isa, heads, head_dim, v_dim, kv_type
        self.pages = page_formats()[kv_type]
        self.dtype = np.dtype({"f16": np.float16}.get(kv_type, np.float32))
        # What a head's keys and values take of a page, by the formats' descriptions.
        self.v_row = -(-v_dim // (32 if kv_type == "q8_0" else 16)) * (32 if kv_type == "q8_0" else 16)
        size = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 0}[kv_type]
        k_bytes = (
            -(-head_dim // 32) * 34 if kv_type == "q8_0" else (head_dim + (kv_type == "bf16") * head_dim % 2) * size
        )
        v_bytes = -(-v_dim // 32) * 34 if kv_type == "q8_0" else self.v_row * size
        self.k_bytes, self.v_bytes = k_bytes, v_bytes
        self.v_offset = -(-heads * k_bytes * 64 // 64) * 64
        self.page_bytes = self.v_offset + heads * 64 * v_bytes + 128  # and 128 that belong to nobody
        counts = [-(-context // 64) for context in contexts]
        ids = rng.permutation(sum(counts) + 2)
        self.tables = [ids[sum(counts[:i]) : sum(counts[: i + 1])].astype(np.int32) for i in range(len(counts))]
        self.extent_bytes = 2 * self.page_bytes + 192  # two pages, and a gap
        self.memory = aligned_empty(-(-len(ids) // 2) * self.extent_bytes)
        self.memory[:] = 0xFF  # NaN as float16 and float32

    def write(self, sequence: int, position: int, k: np.ndarray, v: np.ndarray) -> None:
        extent, place = divmod(int(self.tables[sequence][position // 64]), 2)
        page = self.memory[extent * self.extent_bytes + place * self.page_bytes :][: self.page_bytes]
        if self.kv_type == "q8_0":
            oracles.store_kv_q8_0(page, position % 64, k, v, self.v_offset, self.isa)
        elif self.kv_type == "bf16":
            oracles.store_kv_bf16(page, position % 64, k, v, self.v_offset, self.v_row)
        else:
            oracles.store_kv(page, position % 64, k, v, self.v_offset, self.v_row, self.dtype)

    def arguments(self, group: int, threads: int = 50, **options: int) -> dict[str, int | float]:
        """What both kernels take. ``self.scratch`` is for that many threads; ``options``: more of the geometry."""
        page = {"k_page": self.page_bytes, "v_page": self.page_bytes, "v_offset": self.v_offset}
        page |= {"extent_pages": 2, "extent_bytes": self.extent_bytes}
        self.geometry = att.geometry(
            self.pages, self.heads, group, self.head_dim, self.v_dim, **page, k_head=self.k_bytes * 64,
            v_head=self.v_bytes * 64, **options,
        )  # fmt: skip
        size = att.scratch_bytes(self.pages, group, self.head_dim, self.v_dim)
        self.scratch = aligned_empty(threads * size)
        return {"memory": address(self.memory), "geo": address(self.geometry), "scratch": address(self.scratch),
                "scratch_bytes": size}  # fmt: skip


def setup_store_kv(
    isa: Isa, kv_type: str = "f16", head_dim: int = 24, heads: int = 2, v_dim: int | None = None
) -> Setup:
    """Every byte of the pages is compared: nothing beside the tokens' places may change."""
    rng = rng_of(9)
    v_dim = v_dim or head_dim
    cache = Cache(isa, heads, head_dim, v_dim, kv_type, [200], rng)
    positions = [0, 1, 63, 64, 130, 199]
    k, v = (rng.standard_normal((len(positions), heads * n)).astype(np.float32) for n in (head_dim, v_dim))
    k[0, :4] = (7e4, -7e4, 1e-6, 65519.9)  # too large for float16, subnormal in it, just small enough
    table = cache.tables[0]
    before = cache.memory.copy()
    with np.errstate(over="ignore"):
        for t, position in enumerate(positions):
            cache.write(0, position, k[t].reshape(heads, -1), v[t].reshape(heads, -1))
    expected = cache.memory.copy()
    cache.memory[:] = before
    held_k, held_v = rows(k), rows(v)
    arguments = cache.arguments(1) | {"k": address(held_k), "v": address(held_v), "k_stride": held_k.strides[0],
                                      "v_stride": held_v.strides[0]}  # fmt: skip
    slots = [int(table[p // 64]) * 64 + p % 64 for p in positions]
    return Setup(store_kv(isa, cache.pages), arguments, Batch(len(slots), slots=slots), cache.memory, lambda a: a, expected,
                 keep=[held_k, held_v, cache])  # fmt: skip


#: (tokens already in the cache, tokens of this step) of each sequence of a batch.
SEQUENCES = ((0, 1), (0, 70), (63, 1), (64, 1), (60, 9), (127, 2))


def setup_attention(
    isa: Isa,
    kv_type: str = "f16",
    group: int = 3,
    head_dim: int = 24,
    sequences: Sequence[tuple[int, int]] = SEQUENCES,
    tile: int | None = None,
    sharpness: float = 1.0,
    kv_heads: int = 2,
    split: bool = False,
    v_dim: int | None = None,
    window: int = 0,
    cap: float = 0.0,
    sinks: bool = False,
    slopes: bool = False,
    causal: bool = True,
    unread: bool = True,
    chunk: int = 0,
    answer: bool = False,
    cross: bool = False,
    reach: int = 0,
) -> Setup:
    """``split``: threads share the parts of a context; there must be fewer units than ``att.split_units(1)`` then.

    ``unread``: pages that no token sees hold NaN, and the block table says -1 for them; ``answer``, ``cross``: two thirds of
    what is in the cache already is the source; ``reach``: scores have biases, up to this distance.
    """
    rng = rng_of(10, group, head_dim)
    v_dim = v_dim or head_dim
    cache = Cache(isa, kv_heads, head_dim, v_dim, kv_type, [past + new for past, new in sequences], rng)
    scale = 1 / math.sqrt(head_dim)
    unit = 1 / cap if cap else att.LOG2_E
    heads = kv_heads * group
    of_heads: dict[str, np.ndarray] = {}
    if sinks:
        of_heads["sinks"] = np.linspace(-3, 9, heads).astype(np.float32)
    if slopes:
        of_heads["slopes"] = np.asarray(0.3 ** np.arange(heads), np.float32)
    if reach:
        of_heads["bias"] = rng_of(11).standard_normal((heads, 2 * reach + 1)).astype(np.float32) * np.float32(2)
    tile = tile or att.tile_tokens(group)
    tiles: list[tuple[int, ...]] = []
    queries, expected = [], []
    start = 0
    for i, (past, new) in enumerate(sequences):
        q = rng.standard_normal((new, heads, head_dim)).astype(np.float32) * np.float32(sharpness)
        k, v = (rng.standard_normal((past + new, kv_heads, n)).astype(cache.dtype) for n in (head_dim, v_dim))
        source = max(past * 2 // 3, int(cross))
        limits = {"answer": source if answer else None, "cross": source if cross else None, "chunk": chunk}
        first = past - window + 1 if window else past // chunk * chunk if chunk else source if answer else 0
        last = source if cross else past + new
        for position in range(past + new):
            if unread and not first // 64 <= position // 64 <= (last - 1) // 64:
                cache.tables[i][position // 64] = -1
            else:
                cache.write(i, position, k[position], v[position])
        for at in range(0, new, tile):
            tiles.append((start + at, min(tile, new - at), past + at, address(cache.tables[i]), past + new, source, 0))
        queries.append(q.reshape(new, -1))
        if kv_type == "q8_0":
            k, v = oracles.through_q8(k, half=True), oracles.through_q8(v, half=True)
            q = oracles.through_q8(q * np.float32(scale * unit), half=False) / (scale * unit)
        if kv_type == "bf16":
            k, v = oracles.through_bf16(k), oracles.through_bf16(v)
            q = oracles.through_bf16(q * np.float32(scale * unit)).astype(np.float64) / (scale * unit)
        made = oracles.attention(q, k, v, past, scale, window=window, cap=cap, causal=causal, **of_heads, **limits)
        expected.append(made.reshape(new, -1))
        start += new
    width = heads * v_dim
    held, out = rows(np.concatenate(queries)), rows(np.zeros((start, width), np.float32))
    longest = max(past + new for past, new in sequences)
    partials = aligned_empty(att.partials_bytes(group, cache.v_row, 50, longest) if split else 0)
    partials[:] = 0xFF  # NaN, but for the counters
    partials[: 64 * att.split_units(50)] = 0
    scaled = {name: np.asarray(values * np.float32(att.LOG2_E)) for name, values in of_heads.items()}
    options = {"sinks": address(scaled["sinks"])} if sinks else {}
    if slopes:
        options |= {"of_distance": address(scaled["slopes"]), "of_distance_row": 4}
    if reach:
        scaled["bias"] = att.bias_table(scaled["bias"])
        options |= {
            "of_distance": address(scaled["bias"]),
            "of_distance_row": scaled["bias"].strides[0],
            "reach": reach,
        }
    arguments = cache.arguments(group, window=window or chunk, **options) | {
        "q": address(held), "out": address(out), "stride": held.strides[0], "out_stride": out.strides[0],
        "partials": address(partials) if split else 0, "scale": scale * unit, "cap": cap * att.LOG2_E,
    }  # fmt: skip
    variant = att.Variant(not causal, window > 0, chunk > 0, answer, cross, cap > 0, slopes, reach > 0, sinks)
    batch = Batch(start, tiles=tiles, split=-(-longest // PART_TOKENS) if split else 0)
    return Setup(
        attention(isa, cache.pages, variant), arguments, batch, out, lambda a: a[:, :width], np.concatenate(expected),
        (6e-3 if kv_type == "bf16" else 1e-5) * max(1.0, sharpness), keep=[held, cache, partials, scaled],
    )  # fmt: skip


def choice_rows(n: int, n_experts: int, n_used: int) -> np.ndarray:
    """Zeros, of the form that ``choose_experts`` fills: int32 [n, more than 2 n_used]."""
    return np.zeros((n, -(-2 * (n_used + n_experts) // 16) * 16), np.int32)


def setup_choose_experts(
    isa: Isa,
    weights: str = "softmax",
    normalized: bool = False,
    biased: bool = False,
    n_experts: int = 13,
    n_used: int = 4,
    n: int = 7,
    groups: tuple[int, int] = (1, 1),
    scaled: bool = False,
) -> Setup:
    rng = rng_of(20)
    logits = rng.standard_normal((n, n_experts)).astype(np.float32) * 2
    bias = rng.standard_normal(n_experts).astype(np.float32)
    factors = rng.uniform(0.5, 2, n_experts).astype(np.float32)
    held, out = rows(logits), choice_rows(n, n_experts, n_used)
    arguments = {"count": N_TOKENS, "logits": address(held), "stride": held.strides[0], "choice": address(out),
                 "choice_stride": out.strides[0], "n_experts": n_experts, "n_used": n_used,
                 "n_groups": groups[0], "groups_used": groups[1], "bias": address(bias) if biased else 0,
                 "mode": experts.WEIGHTS[weights], "normalized": int(normalized),
                 "factor": 2.5, "factors": address(factors) if scaled else 0}  # fmt: skip
    chosen, made = oracles.choose_experts(logits, n_used, weights, normalized, bias if biased else None, 2.5, groups)
    made = made * factors[chosen] if scaled else made
    return Setup(
        experts.choose_experts(isa), arguments, Batch(n), out,
        lambda a: np.concatenate([a[:, :n_used], a[:, n_used : 2 * n_used].view(np.float32)], axis=1),
        np.concatenate([chosen, made], axis=1), np.concatenate([0 * chosen, 2e-6 * made], axis=1), keep=[held, bias, factors],
    )  # fmt: skip


def sent(n: int, n_experts: int, n_used: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Experts of each token [n, n_used], chosen at random; starts, places and tokens as ``sort_entries`` finds them."""
    rng = rng_of(21)
    chosen = np.array([rng.permutation(n_experts)[:n_used] for _ in range(n)]).reshape(n, n_used)
    order = np.argsort(chosen.ravel(), kind="stable")
    places = np.empty(n * n_used, np.int32)
    places[order] = np.arange(n * n_used)
    starts = np.searchsorted(np.sort(chosen.ravel()), np.arange(n_experts + 1)).astype(np.int32)
    return chosen, starts, places, (order // n_used).astype(np.int32)


def setup_sort_entries(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3) -> Setup:
    chosen, expected_starts, places, tokens = sent(n, n_experts, n_used)
    choice = choice_rows(n, n_experts, n_used)
    choice[:, :n_used] = chosen
    out, starts = np.full(2 * n * n_used + 1, -7, np.int32), np.full(n_experts + 2, -7, np.int32)
    arguments = {"count": N_TOKENS, "choice": address(choice), "choice_stride": choice.strides[0], "n_experts": n_experts,
                 "n_used": n_used, "starts": address(starts), "entries": address(out)}  # fmt: skip
    return Setup(
        experts.sort_entries, arguments, Batch(n), out, lambda a: np.concatenate([a, starts]),
        np.concatenate([places, tokens, [-7], expected_starts, [-7]]), keep=[choice, starts],
    )  # fmt: skip


def setup_gather_rows(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3) -> Setup:
    _, _, places, tokens = sent(n, n_experts, n_used)
    x = rng_of(22).standard_normal((n, 48)).astype(np.float32)
    entries, out = np.concatenate([places, tokens]), np.zeros((n * n_used, 48), np.float32)
    arguments = {"count": N_TOKENS, "x": address(x), "row_bytes": x.strides[0], "entries": address(entries),
                 "n_used": n_used, "out": address(out)}  # fmt: skip
    return Setup(experts.gather_rows, arguments, Batch(n), out, lambda a: a, x[tokens], keep=[x, entries])


def setup_expert_matmul(isa: Isa, format: ModuleType = q4_1, n: int = 30, n_experts: int = 5, n_used: int = 2) -> Setup:
    """Experts of some, of many and of no tokens."""
    _, starts, _, _ = sent(n, n_experts, n_used)
    columns, n_rows = 512 if format.BLOCK_SIZE == 256 else 160, 37
    starts = np.concatenate([starts, [starts[-1]]]).astype(np.int32)  # and one of none
    rng = rng_of(23)
    raws = [random_rows(format, n_rows, columns, rng) for _ in range(n_experts + 1)]
    ws = [packed(format, raw, columns, isa) for raw in raws]
    x = rng.standard_normal((n * n_used, columns)).astype(np.float32)
    if format.ACTIVATION == "q8":
        held = oracles.quantize_q8(x)
        seen, stride = oracles.dequantize_q8(held), held.shape[1] * 64
    else:
        held = rows(x)
        seen, stride = x.astype(np.float64), held.strides[0]
    out = rows(np.full((len(x), n_rows), np.nan, np.float32))
    addresses = np.array([w.address for w in ws], np.int64)
    arguments = {
        "count": N_TOKENS, "n_used": n_used, "x": address(held), "x_stride": stride, "weights": address(addresses),
        "starts": address(starts), "n_experts": n_experts + 1, "group_bytes": ws[0].group_bytes, "n_blocks": ws[0].n_blocks,
        "n_groups": ws[0].n_groups, "out": address(out), "out_stride": out.strides[0],
    }  # fmt: skip
    expected, size = np.zeros((len(x), n_rows)), np.zeros((len(x), n_rows))
    for e, raw in enumerate(raws):
        dense = np.asarray(format.dequantize(raw), np.float64).reshape(n_rows, columns)
        own = slice(starts[e], starts[e + 1])
        expected[own] = seen[own] @ dense.T
        size[own] = np.abs(seen[own]).sum(axis=1)[:, None] * np.abs(dense).max(axis=1)[None, :] * 3
    tolerance = (2 * columns + 4) * EPS32 * size + 1e-30
    return Setup(experts.expert_matmul(format, isa), arguments, Batch(n), out, lambda a: a[:, :n_rows], expected, tolerance,
                 keep=[held, ws, addresses, starts])  # fmt: skip


def setup_add_expert_rows(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100) -> Setup:
    chosen, starts, _, _ = sent(n, n_experts, n_used)
    rng = rng_of(25)
    x, table = (rng.standard_normal((k, width)).astype(np.float32) for k in (n * n_used, n_experts))
    out, held = rows(x), rows(table)
    arguments = {"count": N_TOKENS, "n_used": n_used, "x": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width), "table": address(held), "table_stride": held.strides[0],
                 "starts": address(starts), "n_experts": n_experts}  # fmt: skip
    return Setup(experts.add_expert_rows, arguments, Batch(n), out, lambda a: a[:, :width],
                 x + table[np.sort(chosen.ravel())], keep=[held, starts])  # fmt: skip


def setup_merge_experts(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100) -> Setup:
    chosen, _, places, tokens = sent(n, n_experts, n_used)
    rng = rng_of(24)
    choice, weights = choice_rows(n, n_experts, n_used), rng.standard_normal((n, n_used)).astype(np.float32)
    choice[:, :n_used], choice[:, n_used : 2 * n_used] = chosen, weights.view(np.int32)
    x = rng.standard_normal((n * n_used, width)).astype(np.float32)
    held, out, entries = rows(x), rows(np.zeros((n, width), np.float32)), np.concatenate([places, tokens])
    arguments = {"count": N_TOKENS, "x": address(held), "x_stride": held.strides[0], "choice": address(choice),
                 "choice_stride": choice.strides[0], "entries": address(entries), "n_used": n_used, "out": address(out),
                 "stride": out.strides[0], "n_blocks": n_blocks(width)}  # fmt: skip
    expected = (weights[:, :, None].astype(np.float64) * x[places.reshape(n, n_used)]).sum(axis=1)
    return Setup(experts.merge_experts, arguments, Batch(n), out, lambda a: a[:, :width], expected, 2e-6,
                 keep=[held, choice, entries])  # fmt: skip


#: Every kernel of ``gumba.kernels``, by module and name: how its inputs and its oracle's answer are made.
TABLE: dict[str, Callable[[Isa], Setup]] = {
    "attention.attention": setup_attention,
    "attention.store_kv": setup_store_kv,
    "activations.activation": setup_activation,
    "activations.gated": setup_gated,
    "activations.softcap": setup_softcap,
    "activations.swiglu_oai": setup_swiglu_oai,
    "conv.short_conv": setup_short_conv,
    "conv.store_rows": setup_store_rows,
    "elementwise.add_table": setup_add_table,
    "elementwise.combine": setup_combine,
    "elementwise.copy_heads": setup_copy_heads,
    "elementwise.copy_columns": setup_copy_columns,
    "elementwise.scale": setup_scale,
    "elementwise.scale_rows": setup_scale_rows,
    "elementwise.select_rows": setup_select_rows,
    "embed.embed": setup_embed,
    "experts.add_expert_rows": setup_add_expert_rows,
    "experts.choose_experts": setup_choose_experts,
    "experts.expert_matmul": setup_expert_matmul,
    "experts.gather_rows": setup_gather_rows,
    "experts.merge_experts": setup_merge_experts,
    "experts.sort_entries": setup_sort_entries,
    "matmul.head_matmul": setup_head_matmul,
    "matmul.matmul": setup_matmul,
    "norms.head_norm": setup_head_norm,
    "norms.layer_norm": setup_layer_norm,
    "norms.rms_norm": setup_rms_norm,
    "q8.quantize_q8": setup_quantize_q8,
    "recurrent.causal_conv": setup_causal_conv,
    "recurrent.decay": setup_decay,
    "recurrent.delta_rule": setup_delta_rule,
    "rope.rope": setup_rope,
    "streams.add_to_streams": setup_add_to_streams,
    "streams.keep_greatest": setup_keep_greatest,
    "streams.match_magnitude": setup_match_magnitude,
    "streams.mix_streams": setup_mix_streams,
    "text_means.text_means": setup_text_means,
}

ALL_FORMATS = list(FORMATS.values())


def counts() -> tuple[int, int]:
    """(compiled, loaded) when a kernel that is new to this process, scale, was run and found right."""
    setup = setup_scale(GENERIC)
    setup.kernel = Kernel(setup.kernel.function, "")
    compiled, loaded = jit.stats.compiled, jit.stats.loaded
    np.testing.assert_array_equal(setup.run(), setup.expected)
    return jit.stats.compiled - compiled, jit.stats.loaded - loaded
