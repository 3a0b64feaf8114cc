"""The gated delta rule, a linear attention whose memory is a matrix for each head (``recurrent_state``)."""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import N_RUNS, N_TOKENS, RUN_WORDS, RUNS, Kernel, kernel, next_unit, share
from gumba.backends.cpu.kernels.recurrent_state import ROW, VECTORS, clear_state
from gumba.simd.isa import Isa
from gumba.simd.maths import exp, softplus
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, I64, Simd, Value, simd_function


@functools.cache
def decay(isa: Isa) -> Kernel:
    """out = exp(rate * log(1 + exp(x + bias))): how much of a state stays (Gu and Dao 2023).

    x, out: float32 [n, width], rows ``stride`` bytes apart; bias, rate (below 0): float32 [width], padded.
    """

    @simd_function("void(i8, i8, i8, i8)")
    def block(s: Simd, x: Value, bias: Value, rate: Value, out: Value) -> None:
        for i in VECTORS:
            step = softplus(s, isa, s.load(x + 64 * i, F32, 16) + s.load(bias + 64 * i, F32, 16))
            s.store(out + 64 * i, exp(s, isa, step * s.load(rate + 64 * i, F32, 16)))

    @kernel(variant=isa.name, stealable=True)
    def decay(batch, thread, n_threads, x, bias, rate, out, stride, n_blocks):
        n = load_i64(batch + N_TOKENS) * n_blocks
        first = share(n, thread, n_threads)
        row = first // n_blocks
        b = first - row * n_blocks
        for _ in range(first, share(n, thread + 1, n_threads)):
            at = row * stride + b * ROW
            block(x + at, bias + b * ROW, rate + b * ROW, out + at)
            row, b = next_unit(row, b, n_blocks)

    return decay


def _recall(s: Simd, isa: Isa, state: Value, k: Value, dim: Value) -> list[Value]:
    """S . k of each column."""
    sums = [s.variable(s.zero(F32, 16)) for _ in VECTORS]
    with s.loop(dim) as row:
        key = s.splat(s.load(k + row * 4, F32), 16)
        for i, total in enumerate(sums):
            total.set(isa.multiply_add(s, key, s.load(state + row * ROW + 64 * i, F32, 16), total.get()))
    return [total.get() for total in sums]


def _advance(
    s: Simd, isa: Isa, state: Value, dim: Value, keys: list[Value], decayed: Value, errors: list[Value]
) -> tuple[list[Value], list[Value]]:
    """Take a token in; S . q for it, and S . k for the one after it. keys: addresses of its q and k, and of the next k."""
    read = [s.variable(s.zero(F32, 16)) for _ in VECTORS]
    recalled = [s.variable(s.zero(F32, 16)) for _ in VECTORS]
    with s.loop(dim, step=4) as first:
        for row in range(4):
            q, k, following = (s.splat(s.load(at + (first + row) * 4, F32), 16) for at in keys)
            for i in VECTORS:
                at = state + (first + row) * ROW + 64 * i
                new = isa.multiply_add(s, k, errors[i], s.load(at, F32, 16) * decayed)
                s.store(at, new)
                read[i].set(isa.multiply_add(s, q, new, read[i].get()))
                recalled[i].set(isa.multiply_add(s, following, new, recalled[i].get()))
    return [total.get() for total in read], [total.get() for total in recalled]


@functools.cache
def delta_rule(isa: Isa) -> Kernel:
    """The gated delta rule (Yang et al. 2024, "Gated Delta Networks"), for each head and column j of its values:

        e = (v[j] - (decay * S[:, j]) . k) * beta;  S[:, j] = decay * S[:, j] + k * e;  out[j] = S[:, j] . q

    qk: float32 [n_tokens, 2, n_key_heads, dim], q and k, rows ``qk_stride`` bytes apart (a head h of values has key head
    h % n_key_heads); v, out: float32 [n_tokens, n_heads, n_blocks * 32], rows ``stride`` bytes apart; decays, betas: float32
    [n_tokens, n_heads], rows ``gate_stride`` bytes apart. The state S: float32 [n_heads, n_blocks, dim, 32]; a unit's part,
    16 KB of a usual head, stays in the first-level cache for all tokens of the run. ``dim``: a multiple of 4.

    S . k of a token is summed while S is written for the one before it: in the order of a sum by itself, so it does not matter
    in which step a token comes.
    """

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, i8)")
    def block(
        s: Simd, q: Value, k: Value, qk_stride: Value, v: Value, out: Value, stride: Value, decays: Value, betas: Value,
        gate_stride: Value, n: Value, state: Value, dim: Value,
    ) -> None:  # fmt: skip
        recalled = [s.variable(value) for value in _recall(s, isa, state, k, dim)]
        with s.loop(n) as t:
            decayed = s.splat(s.load(decays + t * gate_stride, F32), 16)
            beta = s.splat(s.load(betas + t * gate_stride, F32), 16)
            errors = [
                (s.load(v + t * stride + 64 * i, F32, 16) - total.get() * decayed) * beta
                for i, total in enumerate(recalled)
            ]
            key = k + t * qk_stride
            more = (t + 1).compare("<", n)  # after the last token: its own key once more, and not used
            following = key + s.select(more, qk_stride, s.zero(I64))
            read, then = _advance(s, isa, state, dim, [q + t * qk_stride, key, following], decayed, errors)
            for i in VECTORS:
                s.store(out + t * stride + 64 * i, read[i])
                recalled[i].set(then[i])

    @kernel(variant=isa.name, stealable=True)
    def delta_rule(
        batch, thread, n_threads, qk, qk_stride, n_key_heads, v, decays, betas, gate_stride, memory, n_heads, n_blocks, dim,
        out, stride,
    ):  # fmt: skip
        runs = load_i64(batch + RUNS)
        of_run = n_heads * n_blocks
        units = load_i64(batch + N_RUNS) * of_run
        for unit in range(share(units, thread, n_threads), share(units, thread + 1, n_threads)):
            run, within = runs + unit // of_run * (8 * RUN_WORDS), unit % of_run
            head = within // n_blocks
            state = memory + load_i64(run + 24) + within * (dim * ROW)
            if load_i64(run + 16) == 0:
                clear_state(state, dim)
            first = load_i64(run)
            q = qk + first * qk_stride + head % n_key_heads * (4 * dim)
            at, gate_at = first * stride + within * ROW, first * gate_stride + 4 * head
            block(
                q, q + n_key_heads * (4 * dim), qk_stride, v + at, out + at, stride, decays + gate_at, betas + gate_at,
                gate_stride, load_i64(run + 8), state, dim,
            )  # fmt: skip

    return delta_rule
