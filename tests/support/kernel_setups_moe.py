"""Builders for the kernels of mixtures of experts: see ``setups``."""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels import moe
from gumba.backends.cpu.kernels.record import N_TOKENS
from gumba.quants import BlockFormat, get
from gumba.simd.isa import Isa
from support import kernel_oracles
from support.kernel_harness import EPS32, Batch, Setup, address, n_blocks, packed, random_rows, rng_of, rows

Q4_1 = get("q4_1")


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
    route = moe.routing(
        n_experts, n_used, weights=weights, normalized=normalized, factor=2.5, groups=groups,
        bias=address(bias) if biased else 0, factors=address(factors) if scaled else 0,
    )  # fmt: skip
    arguments = {"count": N_TOKENS, "logits": address(held), "stride": held.strides[0], "choice": address(out),
                 "choice_stride": out.strides[0], "route": address(route)}  # fmt: skip
    chosen, made = kernel_oracles.choose_experts(
        logits, n_used, weights, normalized, bias if biased else None, 2.5, groups
    )
    made = made * factors[chosen] if scaled else made
    return Setup(
        moe.choose_experts(isa), arguments, Batch(n), out,
        lambda a: np.concatenate([a[:, :n_used], a[:, n_used : 2 * n_used].view(np.float32)], axis=1),
        np.concatenate([chosen, made], axis=1), np.concatenate([0 * chosen, 2e-6 * made], axis=1),
        keep=[held, bias, factors, route],
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
        moe.sort_entries, arguments, Batch(n), out, lambda a: np.concatenate([a, starts]),
        np.concatenate([places, tokens, [-7], expected_starts, [-7]]), keep=[choice, starts],
    )  # fmt: skip


def setup_gather_rows(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3) -> Setup:
    _, _, places, tokens = sent(n, n_experts, n_used)
    x = rng_of(22).standard_normal((n, 48)).astype(np.float32)
    entries, out = np.concatenate([places, tokens]), np.zeros((n * n_used, 48), np.float32)
    arguments = {"count": N_TOKENS, "x": address(x), "row_bytes": x.strides[0], "entries": address(entries),
                 "n_used": n_used, "out": address(out)}  # fmt: skip
    return Setup(moe.gather_rows, arguments, Batch(n), out, lambda a: a, x[tokens], keep=[x, entries])


def setup_expert_matmul(
    isa: Isa, format: BlockFormat = Q4_1, n: int = 30, n_experts: int = 5, n_used: int = 2
) -> Setup:
    """Experts of some, of many and of no tokens."""
    _, starts, _, _ = sent(n, n_experts, n_used)
    columns, n_rows = 2 * format.block_size if format.block_size > 32 else 160, 37
    starts = np.concatenate([starts, [starts[-1]]]).astype(np.int32)  # and one of none
    rng = rng_of(23)
    raws = [random_rows(format, n_rows, columns, rng) for _ in range(n_experts + 1)]
    ws = [packed(format, raw, columns, isa) for raw in raws]
    x = rng.standard_normal((n * n_used, columns)).astype(np.float32)
    if format.activation == "q8":
        held = kernel_oracles.quantize_q8(x)
        seen, stride = kernel_oracles.dequantize_q8(held), held.shape[1] * 64
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
    return Setup(moe.expert_matmul(format, isa), arguments, Batch(n), out, lambda a: a[:, :n_rows], expected, tolerance,
                 keep=[held, ws, addresses, starts])  # fmt: skip


def setup_add_expert_rows(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100) -> Setup:
    chosen, starts, _, _ = sent(n, n_experts, n_used)
    rng = rng_of(25)
    x, table = (rng.standard_normal((k, width)).astype(np.float32) for k in (n * n_used, n_experts))
    out, held = rows(x), rows(table)
    arguments = {"count": N_TOKENS, "n_used": n_used, "x": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width), "table": address(held), "table_stride": held.strides[0],
                 "starts": address(starts), "n_experts": n_experts}  # fmt: skip
    return Setup(moe.add_expert_rows, arguments, Batch(n), out, lambda a: a[:, :width],
                 x + table[np.sort(chosen.ravel())], keep=[held, starts])  # fmt: skip


def setup_scale_expert_rows(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100) -> Setup:
    chosen, starts, _, _ = sent(n, n_experts, n_used)
    rng = rng_of(27)
    x, scales = (rng.standard_normal(shape).astype(np.float32) for shape in ((n * n_used, width), n_experts))
    out = rows(x)
    arguments = {"count": N_TOKENS, "n_used": n_used, "x": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width), "scales": address(scales), "starts": address(starts),
                 "n_experts": n_experts}  # fmt: skip
    return Setup(moe.scale_expert_rows, arguments, Batch(n), out, lambda a: a[:, :width],
                 x * scales[np.sort(chosen.ravel()), None], keep=[scales, starts])  # fmt: skip


def setup_weigh_entries(isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100) -> Setup:
    chosen, _, places, tokens = sent(n, n_experts, n_used)
    rng = rng_of(26)
    choice, weights = choice_rows(n, n_experts, n_used), rng.standard_normal((n, n_used)).astype(np.float32)
    choice[:, :n_used], choice[:, n_used : 2 * n_used] = chosen, weights.view(np.int32)
    x = rng.standard_normal((n * n_used, width)).astype(np.float32)
    out, entries, expected = rows(x), np.concatenate([places, tokens]), x.copy()
    expected[places] *= weights.reshape(-1, 1)
    arguments = {"count": N_TOKENS, "x": address(out), "stride": out.strides[0], "choice": address(choice),
                 "choice_stride": choice.strides[0], "entries": address(entries), "n_used": n_used,
                 "n_blocks": n_blocks(width)}  # fmt: skip
    return Setup(moe.weigh_entries, arguments, Batch(n), out, lambda a: a[:, :width], expected, keep=[choice, entries])


def setup_merge_experts(
    isa: Isa, n: int = 9, n_experts: int = 7, n_used: int = 3, width: int = 100, weighted: bool = True
) -> Setup:
    chosen, _, places, tokens = sent(n, n_experts, n_used)
    rng = rng_of(24)
    choice, weights = choice_rows(n, n_experts, n_used), rng.standard_normal((n, n_used)).astype(np.float32)
    choice[:, :n_used], choice[:, n_used : 2 * n_used] = chosen, weights.view(np.int32)
    x = rng.standard_normal((n * n_used, width)).astype(np.float32)
    held, out, entries = rows(x), rows(np.zeros((n, width), np.float32)), np.concatenate([places, tokens])
    arguments = {"count": N_TOKENS, "x": address(held), "x_stride": held.strides[0], "choice": address(choice),
                 "choice_stride": choice.strides[0], "entries": address(entries), "n_used": n_used,
                 "weighted": int(weighted), "out": address(out), "stride": out.strides[0],
                 "n_blocks": n_blocks(width)}  # fmt: skip
    factors = weights[:, :, None].astype(np.float64) if weighted else 1.0
    expected = (factors * x[places.reshape(n, n_used)].astype(np.float64)).sum(axis=1)
    return Setup(moe.merge_experts, arguments, Batch(n), out, lambda a: a[:, :width], expected, 2e-6,
                 keep=[held, choice, entries])  # fmt: skip
