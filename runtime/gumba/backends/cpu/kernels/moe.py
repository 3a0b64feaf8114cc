"""Mixture of experts: which experts a token goes to, tokens grouped by expert, and what comes back (Shazeer et al. 2017).

Every token has ``n_used`` entries, one for each expert that it was sent to. Entries are sorted by expert, then by token; from
there on each expert's entries are rows one after the other, and its matrices meet them in the tiles of ``kernels.matmul``:
weights of experts that no token chose are not read. A row of a product is summed as in any product, and a token's results are
added in the order in which its experts were chosen: the rest of the batch changes nothing.
"""

from __future__ import annotations

import functools

import numpy as np

from gumba.backends.cpu.kernels.matmul import TOKEN_BLOCK, token_groups
from gumba.backends.cpu.kernels.record import Kernel, first_unit, kernel, next_unit, share
from gumba.jit.jit import Inline, inline, record_at
from gumba.quants import BlockFormat
from gumba.simd.isa import Isa
from gumba.simd.maths import exp, sigmoid
from gumba.simd.memory import load_f32, load_i32, load_i64, store_f32, store_i32
from gumba.simd.value import F32, Simd, Value, simd_function

#: How scores become weights: softmax over all experts, softmax over the chosen ones, sigmoid of each.
WEIGHTS = {"softmax": 0, "softmax_chosen": 1, "sigmoid": 2}
_SOFTMAX, _SOFTMAX_CHOSEN, _SIGMOID = WEIGHTS.values()

#: How a layer chooses experts: a record that compiled functions read by its fields.
ROUTING = np.dtype(
    [
        ("n_experts", "<i8"),
        ("n_used", "<i8"),  # experts for each token
        ("n_groups", "<i8"),  # experts stand in groups of one size
        ("groups_used", "<i8"),  # so many of them, the best, take part
        ("mode", "<i8"),  # see WEIGHTS
        ("normalized", "<i8"),  # not 0: weights are divided by their sum
        ("bias", "<i8"),  # 0, or address of float32 [n_experts], added to scores only to choose by
        ("factors", "<i8"),  # 0, or address of float32 [n_experts], factors of each expert's weight
        ("factor", "<f4"),  # of all weights
    ],
    align=True,
)
#: A compiled function: the ROUTING record at an address.
routing_at = record_at(ROUTING)


def routing(
    n_experts: int, n_used: int, *, weights: str, normalized: bool, factor: float, groups: tuple[int, int] = (1, 1),
    bias: int = 0, factors: int = 0,
) -> np.ndarray:  # fmt: skip
    """The ROUTING record of a layer, [1]. ``weights``: a key of WEIGHTS; ``groups``: their number, and how many take part."""
    values = (n_experts, n_used, *groups, WEIGHTS[weights], int(normalized), bias, factors, factor)
    return np.array([values], ROUTING)


def _choose_groups() -> Inline[None]:
    """A compiled function: marks the experts of all groups but the best as taken: the worst group first, of equal ones the last.

    A group is as good as its best expert, for sigmoid as its two best together (DeepSeek-AI 2024).
    """

    @inline
    def choose_groups(keys, marks, route):
        size = route.n_experts // route.n_groups
        for _ in range(route.n_groups - route.groups_used):
            worst, least = -1, np.float32(0)
            for g in range(route.n_groups):
                if load_i32(marks + 4 * g * size) == 0:
                    best, second = -np.float32(np.inf), -np.float32(np.inf)
                    for e in range(g * size, (g + 1) * size):
                        key = load_f32(keys + 4 * e)
                        second = max(second, min(best, key))
                        best = max(best, key)
                    if route.mode == _SIGMOID and size > 1:
                        best += second
                    if worst < 0 or best <= least:
                        worst, least = g, best
            for e in range(worst * size, (worst + 1) * size):
                store_i32(marks + 4 * e, 1)

    return choose_groups


def _choose() -> Inline[None]:
    """A compiled function: the ``n_used`` experts of highest key that are not marked as taken, the first of equal ones first."""

    @inline
    def choose(keys, marks, chosen, route):
        for j in range(route.n_used):
            best = -1
            for e in range(route.n_experts):  # whatever the numbers are, NaN too, some expert is chosen
                if load_i32(marks + 4 * e) == 0 and (best < 0 or load_f32(keys + 4 * e) > load_f32(keys + 4 * best)):
                    best = e
            store_i32(marks + 4 * best, 1)
            store_i32(chosen + 4 * j, best)

    return choose


def _weigh(isa: Isa) -> Inline[None]:
    """A compiled function: the weights of the chosen experts."""

    @simd_function("f4(f4)")
    def exp_one(s: Simd, x: Value) -> Value:
        return exp(s, isa, x)

    @simd_function("f4(f4)")
    def sigmoid_one(s: Simd, x: Value) -> Value:
        return sigmoid(s, isa, x)

    @simd_function("f4(f4, f4)")
    def divide(s: Simd, x: Value, y: Value) -> Value:
        return x / y

    @inline
    def weigh(logits, chosen, weights, route):
        top = load_f32(logits + 4 * load_i32(chosen))
        total = np.float32(0)
        if route.mode == _SOFTMAX:
            for e in range(route.n_experts):
                top = max(top, load_f32(logits + 4 * e))
            for e in range(route.n_experts):
                total += exp_one(load_f32(logits + 4 * e) - top)
        elif route.mode == _SOFTMAX_CHOSEN:
            for j in range(route.n_used):
                top = max(top, load_f32(logits + 4 * load_i32(chosen + 4 * j)))
            for j in range(route.n_used):
                total += exp_one(load_f32(logits + 4 * load_i32(chosen + 4 * j)) - top)
        own = np.float32(0)
        for j in range(route.n_used):
            logit = load_f32(logits + 4 * load_i32(chosen + 4 * j))
            weight = sigmoid_one(logit) if route.mode == _SIGMOID else divide(exp_one(logit - top), total)
            store_f32(weights + 4 * j, weight)
            own += weight
        for j in range(route.n_used):
            weight = load_f32(weights + 4 * j)
            if route.normalized != 0:
                weight = divide(weight, max(own, np.float32(1e-20)))
            if route.factors != 0:
                weight *= load_f32(route.factors + 4 * load_i32(chosen + 4 * j))
            store_f32(weights + 4 * j, weight * route.factor)

    return weigh


@functools.cache
def choose_experts(isa: Isa) -> Kernel:
    """Top-k routing: each token's ``n_used`` best experts (ties: lowest index) and their weights.

    ``logits``: float32 [n, n_experts]; ``choice``: rows of ``n_used`` int32 experts, then as many float32 weights, then of each
    expert (work memory) a float32 and an int32; ``route``: address of the ROUTING record.
    """
    choose_groups, choose, weigh = _choose_groups(), _choose(), _weigh(isa)

    @simd_function("f4(f4)")
    def sigmoid_one(s: Simd, x: Value) -> Value:
        return sigmoid(s, isa, x)

    @kernel(variant=isa.name, stealable=True)
    def choose_experts(batch, thread, n_threads, count, logits, stride, choice, choice_stride, route):
        routing = routing_at(route)
        n = load_i64(batch + count)
        for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
            row, chosen = logits + t * stride, choice + t * choice_stride
            keys = chosen + 8 * routing.n_used
            marks = keys + 4 * routing.n_experts
            for e in range(routing.n_experts):
                key = load_f32(row + 4 * e)
                if routing.mode == _SIGMOID:
                    key = sigmoid_one(key)
                if routing.bias != 0:
                    key += load_f32(routing.bias + 4 * e)
                store_f32(keys + 4 * e, key)
                store_i32(marks + 4 * e, 0)
            choose_groups(keys, marks, routing)
            choose(keys, marks, chosen, routing)
            weigh(row, chosen, chosen + 4 * routing.n_used, routing)

    return choose_experts


@kernel
def sort_entries(batch, thread, n_threads, count, choice, choice_stride, n_experts, n_used, starts, entries):
    """Entries by expert, then by token: a counting sort, by one thread.

    ``starts``: int32 [n_experts + 1], where each expert's entries begin; ``entries``: for each token ``n_used`` int32, where its
    entries lie, then for each entry its token: int32 [2, n * n_used] in all.
    """
    if thread == 0:
        n = load_i64(batch + count)
        tokens = entries + 4 * n * n_used
        for e in range(n_experts + 1):
            store_i32(starts + 4 * e, 0)
        for t in range(n):
            for j in range(n_used):
                at = starts + 4 * (load_i32(choice + t * choice_stride + 4 * j) + 1)
                store_i32(at, load_i32(at) + 1)
        for e in range(n_experts):
            store_i32(starts + 4 * (e + 1), load_i32(starts + 4 * (e + 1)) + load_i32(starts + 4 * e))
        # Each start moves on as its entries are placed, to where the next expert's begin; then all move back by one.
        for t in range(n):
            for j in range(n_used):
                at = starts + 4 * load_i32(choice + t * choice_stride + 4 * j)
                place = load_i32(at)
                store_i32(at, place + 1)
                store_i32(entries + 4 * (t * n_used + j), place)
                store_i32(tokens + 4 * place, t)
        for e in range(n_experts, 0, -1):
            store_i32(starts + 4 * e, load_i32(starts + 4 * (e - 1)))
        store_i32(starts, 0)


@simd_function("void(i8, i8, i8)")
def _copy_lines(s: Simd, x: Value, out: Value, n: Value) -> None:
    with s.loop(n) as i:
        s.store(out + i * 64, s.load(x + i * 64, F32, 16))


@kernel(stealable=True)
def gather_rows(batch, thread, n_threads, count, x, row_bytes, entries, n_used, out):
    """out, entry by entry: the row of x (``row_bytes``, whole cache lines) of the entry's token."""
    n = load_i64(batch + count) * n_used
    tokens = entries + 4 * n
    for i in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        _copy_lines(x + load_i32(tokens + 4 * i) * row_bytes, out + i * row_bytes, row_bytes // 64)


@functools.cache
def expert_matmul(format: BlockFormat, isa: Isa) -> Kernel:
    """Each expert's product with its entries: ``x``, ``out``: rows in the order of entries.

    ``weights``: int64 [n_experts], addresses of matrices of one shape; the rest is as of ``kernels.matmul``.
    """
    group = token_groups(format, isa)
    group_floats = 4 * isa.lanes

    @kernel(variant=f"{format.name},{isa.name}", stealable=True)
    def expert_matmul(
        batch, thread, n_threads, count, n_used, x, x_stride, weights, starts, n_experts, group_bytes, n_blocks, n_groups, out,
        out_stride,
    ):  # fmt: skip
        n = load_i64(batch + count) * n_used
        first = share(n_groups, thread, n_threads)
        last = share(n_groups, thread + 1, n_threads)
        for e in range(n_experts):
            begin, stop = load_i32(starts + 4 * e), min(n, load_i32(starts + 4 * e + 4))
            w = load_i64(weights + 8 * e)
            for block in range(begin, stop, TOKEN_BLOCK):
                end = min(block + TOKEN_BLOCK, stop)
                for g in range(first, last):
                    group(w + g * group_bytes, x, x_stride, out + g * group_floats, out_stride, 0, n_blocks, block, end)

    return expert_matmul


@simd_function("void(i8, i8)")
def _add_to(s: Simd, x: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(out + 64 * i, F32, 16) + s.load(x + 64 * i, F32, 16))


@kernel(stealable=True)
def add_expert_rows(
    batch, thread, n_threads, count, n_used, x, stride, n_blocks, table, table_stride, starts, n_experts
):
    """x += the row of each entry's expert, in place. x: rows in the order of entries; table: float32 [n_experts, width]."""
    n = load_i64(batch + count) * n_used
    first, last = share(n, thread, n_threads), share(n, thread + 1, n_threads)
    for e in range(n_experts):
        begin, stop = max(first, load_i32(starts + 4 * e)), min(last, load_i32(starts + 4 * e + 4))
        for i in range(begin, stop):
            for block in range(n_blocks):
                _add_to(table + e * table_stride + block * 128, x + i * stride + block * 128)


@simd_function("void(i8, f4, i8)")
def _scale_block(s: Simd, x: Value, weight: Value, out: Value) -> None:
    for i in range(2):
        s.store(out + 64 * i, s.load(x + 64 * i, F32, 16) * s.splat(weight, 16))


@simd_function("void(i8, f4, i8)")
def _add_block(s: Simd, x: Value, weight: Value, out: Value) -> None:
    for i in range(2):
        scaled = s.load(x + 64 * i, F32, 16) * s.splat(weight, 16)
        s.store(out + 64 * i, s.load(out + 64 * i, F32, 16) + scaled)


@kernel(stealable=True)
def scale_expert_rows(batch, thread, n_threads, count, n_used, x, stride, n_blocks, scales, starts, n_experts):
    """x *= the scale of each entry's expert, in place. x: rows in the order of entries; scales: float32 [n_experts]."""
    n = load_i64(batch + count) * n_used
    first, last = share(n, thread, n_threads), share(n, thread + 1, n_threads)
    for e in range(n_experts):
        begin, stop = max(first, load_i32(starts + 4 * e)), min(last, load_i32(starts + 4 * e + 4))
        scale = load_f32(scales + 4 * e)
        for i in range(begin, stop):
            for block in range(n_blocks):
                row = x + i * stride + block * 128
                _scale_block(row, scale, row)


@kernel(stealable=True)
def weigh_entries(batch, thread, n_threads, count, x, stride, choice, choice_stride, entries, n_used, n_blocks):
    """x[entry] *= the entry's weight, in place."""
    n = load_i64(batch + count)
    for t in range(share(n, thread, n_threads), share(n, thread + 1, n_threads)):
        for j in range(n_used):
            weight = load_f32(choice + t * choice_stride + 4 * (n_used + j))
            row = x + load_i32(entries + 4 * (t * n_used + j)) * stride
            for block in range(n_blocks):
                _scale_block(row + block * 128, weight, row + block * 128)


@kernel(stealable=True)
def merge_experts(
    batch,
    thread,
    n_threads,
    count,
    x,
    x_stride,
    choice,
    choice_stride,
    entries,
    n_used,
    weighted,
    out,
    stride,
    n_blocks,
):
    """out[t] = the sum over t's entries of weight * x[entry], in the order in which its experts were chosen.

    ``weighted``: 0 where the entries are weighed already.
    """
    t, block, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
    for _ in range(n_units):
        target = out + t * stride + block * 128
        weights = choice + t * choice_stride + 4 * n_used
        for j in range(n_used):
            source = x + load_i32(entries + 4 * (t * n_used + j)) * x_stride + block * 128
            weight = load_f32(weights + 4 * j) if weighted != 0 else np.float32(1)
            if j == 0:
                _scale_block(source, weight, target)
            else:
                _add_block(source, weight, target)
        t, block = next_unit(t, block, n_blocks)
