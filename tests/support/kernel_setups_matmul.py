"""Builders for the kernels of products, and of what goes into them: see ``setups``."""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels import activations_q8, embed, matmul
from gumba.backends.cpu.kernels.record import N_TOKENS
from gumba.backends.cpu.packing import aligned_empty
from gumba.quants import BlockFormat, get
from gumba.simd.isa import Isa
from support import kernel_oracles
from support.kernel_harness import EPS32, Batch, Setup, address, packed, random_rows, rng_of, rows

Q4_1 = get("q4_1")


def setup_quantize_q8(isa: Isa, x: np.ndarray | None = None) -> Setup:
    if x is None:
        x = rng_of(1).standard_normal((5, 160)).astype(np.float32) * np.float32(3)
    held = rows(x)
    out = np.zeros((len(x), x.shape[1] // 32, 64), np.uint8)
    arguments = {"count": N_TOKENS, "x": address(held), "x_stride": held.strides[0], "out": address(out),
                 "out_stride": out.strides[0], "n_blocks": x.shape[1] // 32}  # fmt: skip
    ordinary = np.isfinite(x).all() and not np.any((np.abs(x) > 0) & (np.abs(x) < 1e-30))
    expected = kernel_oracles.quantize_q8(x) if ordinary else out.copy()  # else only some properties are promised
    return Setup(activations_q8.quantize_q8, arguments, Batch(len(x)), out, lambda a: a, expected, keep=[held])


def setup_matmul(
    isa: Isa,
    format: BlockFormat = Q4_1,
    n: int = 13,
    n_rows: int = 37,
    columns: int | None = None,
    residual: bool = True,
) -> Setup:
    columns = columns or (2 * format.block_size if format.block_size > 32 else 160)
    rng = rng_of(2)
    raw = random_rows(format, n_rows, columns, rng)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    added = rng.standard_normal((n, n_rows)).astype(np.float32)
    return product_of(isa, format, raw, x, added if residual else None)


def product_of(
    isa: Isa, format: BlockFormat, raw: np.ndarray, x: np.ndarray, residual: np.ndarray | None = None
) -> Setup:
    """Products of ``x``, float32 [n, columns], with the rows of blocks ``raw``, and ``residual`` added, float32 [n, n_rows]."""
    n_rows, (n, columns) = len(raw), x.shape
    w = packed(format, raw, columns, isa)
    dense = np.asarray(format.dequantize(raw), np.float64).reshape(n_rows, columns)
    if format.activation == "q8":
        held = kernel_oracles.quantize_q8(x)
        seen, stride = kernel_oracles.dequantize_q8(held), held.shape[1] * 64
        # Exact within a block, then some roundings for each; a minimum is added apart from the rest.
        size = np.abs(seen).sum(axis=1)[:, None] * np.abs(dense).max(axis=1)[None, :] * 3
        roundings = 6 * columns // 32
    else:
        held = rows(x)
        seen, stride = x.astype(np.float64), held.strides[0]
        size = np.abs(seen) @ np.abs(dense).T
        roundings = 2 * columns
    out = rows(np.full((n, n_rows), np.nan, np.float32))
    added = out if residual is None else rows(residual, padding=0.0)
    arguments = {
        "count": N_TOKENS, "x": address(held), "x_stride": stride, "w": w.address, "group_bytes": w.group_bytes,
        "n_blocks": w.n_blocks, "n_groups": w.n_groups, "out": address(out), "out_stride": out.strides[0],
        "residual": 0 if residual is None else address(added),
    }  # fmt: skip
    expected = kernel_oracles.matmul(seen, dense, residual)
    tolerance = (roundings + 4) * EPS32 * (size + np.abs(expected)) + 1e-30
    return Setup(
        matmul.matmul(format, isa), arguments, Batch(n), out, lambda a: a[:, :n_rows], expected, tolerance,
        keep=[held, added, w],
    )  # fmt: skip


def setup_head_matmul(isa: Isa, format: BlockFormat = Q4_1, n: int = 13, n_heads: int = 3, n_rows: int = 37) -> Setup:
    columns = format.block_size if format.block_size > 32 else 96
    rng = rng_of(27)
    raws = [random_rows(format, n_rows, columns, rng) for _ in range(n_heads)]
    ws = [packed(format, raw, columns, isa) for raw in raws]
    x = rng.standard_normal((n, n_heads * columns)).astype(np.float32)
    if format.activation == "q8":
        held = kernel_oracles.quantize_q8(x)
        seen, stride, head = kernel_oracles.dequantize_q8(held), held.shape[1] * 64, columns // 32 * 64
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


def setup_embed(isa: Isa, format: BlockFormat = Q4_1, n_rows: int = 37, columns: int | None = None) -> Setup:
    columns = columns or (2 * format.block_size if format.block_size > 32 else 160)
    raw = random_rows(format, n_rows, columns, rng_of(7))
    w = packed(format, raw, columns, isa)
    tokens = [n_rows - 1, 0, 5, 5, *range(n_rows), n_rows + 2]
    out = rows(np.zeros((len(tokens), columns), np.float32))
    scratch = aligned_empty(50 * embed.SCRATCH)
    arguments = {"w": w.address, "n_rows": n_rows, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks,
                 "scratch": address(scratch), "out": address(out), "out_stride": out.strides[0]}  # fmt: skip
    dense = np.asarray(format.dequantize(raw)).reshape(n_rows, columns)
    return Setup(embed.embed(format, isa), arguments, Batch(len(tokens), tokens=tokens), out, lambda a: a[:, :columns],
                 kernel_oracles.embed(dense, [token % n_rows for token in tokens]), keep=[w, scratch])  # fmt: skip
