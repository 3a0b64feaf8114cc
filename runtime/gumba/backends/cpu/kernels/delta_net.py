"""Operations with a memory: what a layer keeps of all earlier tokens is one state of fixed size for each sequence.

A step's tokens of one sequence are a run: (first token, tokens, position of the first, byte offset of the sequence's slot). A
layer's state lies ``memory`` + offset; at position 0 it is zero, whatever lies there. The tokens of a run are taken one after
the other, so a result depends on the tokens before it and not on how they came in steps. Units of work are columns: each has
its own part of the state, which nobody else touches.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import N_RUNS, N_TOKENS, RUN_WORDS, RUNS, Kernel, kernel, next_unit, share
from gumba.simd.isa import Isa
from gumba.simd.maths import exp, softplus
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, I64, Simd, Value, simd_function

#: Columns that a unit takes, and the bytes of their floats.
COLUMNS = 32
ROW = 4 * COLUMNS
#: Tokens that a convolution sees, at most.
MAX_TAPS = 16
#: Vectors of 16 in a row.
_VECTORS = range(2)


@simd_function("void(i8, i8)")
def _clear(s: Simd, at: Value, n_rows: Value) -> None:
    with s.loop(n_rows) as row:
        for i in _VECTORS:
            s.store(at + row * ROW + 64 * i, s.zero(F32, 16))


@functools.cache
def causal_conv(isa: Isa, n_taps: int, silu: bool) -> Kernel:
    """x[t] = the sum over ``n_taps`` tokens up to t of x times a row of ``weight``; ``silu``: then x sigmoid(x). In place.

    x: float32 [n_tokens, width], rows ``stride`` bytes apart; weight: float32 [n_taps, n_blocks * 32], the oldest token's
    first. The state: the last ``n_taps`` - 1 inputs, float32 [n_blocks, n_taps - 1, 32], the oldest first.
    """

    @simd_function("void(i8, i8, i8, i8, i8, i8)")
    def block(s: Simd, x: Value, stride: Value, n: Value, weight: Value, weight_stride: Value, state: Value) -> None:
        taps = [[s.load(weight + weight_stride * tap + 64 * i, F32, 16) for i in _VECTORS] for tap in range(n_taps)]
        past = [
            [s.variable(s.load(state + (ROW * row + 64 * i), F32, 16)) for i in _VECTORS] for row in range(n_taps - 1)
        ]
        with s.loop(n) as t:
            at = x + t * stride
            for i in _VECTORS:
                seen = [row[i].get() for row in past] + [s.load(at + 64 * i, F32, 16)]
                total = seen[0] * taps[0][i]
                for tap in range(1, n_taps):
                    total = isa.multiply_add(s, seen[tap], taps[tap][i], total)
                if silu:
                    total = total / (exp(s, isa, s.zero(F32, 16) - total) + 1.0)
                s.store(at + 64 * i, total)
                for row, value in zip(past, seen[1:]):
                    row[i].set(value)
        for j, row in enumerate(past):
            for i in _VECTORS:
                s.store(state + (ROW * j + 64 * i), row[i].get())

    @kernel(variant=f"{isa.name},{n_taps}{',silu' if silu else ''}", divisible=True)
    def causal_conv(batch, thread, n_threads, x, stride, n_blocks, weight, weight_stride, memory):
        runs = load_i64(batch + RUNS)
        units = load_i64(batch + N_RUNS) * n_blocks
        for unit in range(share(units, thread, n_threads), share(units, thread + 1, n_threads)):
            run, b = runs + unit // n_blocks * (8 * RUN_WORDS), unit % n_blocks
            state = memory + load_i64(run + 24) + b * ((n_taps - 1) * ROW)
            if load_i64(run + 16) == 0:
                _clear(state, n_taps - 1)
            at = x + load_i64(run) * stride + b * ROW
            block(at, stride, load_i64(run + 8), weight + b * ROW, weight_stride, state)

    return causal_conv


@functools.cache
def decay(isa: Isa) -> Kernel:
    """out = exp(rate * log(1 + exp(x + bias))): how much of a state stays (Gu and Dao 2023).

    x, out: float32 [n, width], rows ``stride`` bytes apart; bias, rate (below 0): float32 [width], padded.
    """

    @simd_function("void(i8, i8, i8, i8)")
    def block(s: Simd, x: Value, bias: Value, rate: Value, out: Value) -> None:
        for i in _VECTORS:
            step = softplus(s, isa, s.load(x + 64 * i, F32, 16) + s.load(bias + 64 * i, F32, 16))
            s.store(out + 64 * i, exp(s, isa, step * s.load(rate + 64 * i, F32, 16)))

    @kernel(variant=isa.name, divisible=True)
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

    def recall(s: Simd, state: Value, k: Value, dim: Value) -> list[Value]:
        """S . k of each column."""
        sums = [s.variable(s.zero(F32, 16)) for _ in _VECTORS]
        with s.loop(dim) as row:
            key = s.splat(s.load(k + row * 4, F32), 16)
            for i, total in enumerate(sums):
                total.set(isa.multiply_add(s, key, s.load(state + row * ROW + 64 * i, F32, 16), total.get()))
        return [total.get() for total in sums]

    def advance(
        s: Simd, state: Value, dim: Value, keys: list[Value], decayed: Value, errors: list[Value]
    ) -> tuple[list[Value], list[Value]]:
        """Take a token in; S . q for it, and S . k for the one after it. keys: addresses of its q and k, and of the next k."""
        read = [s.variable(s.zero(F32, 16)) for _ in _VECTORS]
        recalled = [s.variable(s.zero(F32, 16)) for _ in _VECTORS]
        with s.loop(dim, step=4) as first:
            for row in range(4):
                q, k, following = (s.splat(s.load(at + (first + row) * 4, F32), 16) for at in keys)
                for i in _VECTORS:
                    at = state + (first + row) * ROW + 64 * i
                    new = isa.multiply_add(s, k, errors[i], s.load(at, F32, 16) * decayed)
                    s.store(at, new)
                    read[i].set(isa.multiply_add(s, q, new, read[i].get()))
                    recalled[i].set(isa.multiply_add(s, following, new, recalled[i].get()))
        return [each.get() for each in read], [each.get() for each in recalled]

    @simd_function("void(i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, i8)")
    def block(
        s: Simd, q: Value, k: Value, qk_stride: Value, v: Value, out: Value, stride: Value, decays: Value, betas: Value,
        gate_stride: Value, n: Value, state: Value, dim: Value,
    ) -> None:  # fmt: skip
        recalled = [s.variable(value) for value in recall(s, state, k, dim)]
        with s.loop(n) as t:
            decayed = s.splat(s.load(decays + t * gate_stride, F32), 16)
            beta = s.splat(s.load(betas + t * gate_stride, F32), 16)
            errors = [
                (s.load(v + t * stride + 64 * i, F32, 16) - total.get() * decayed) * beta
                for i, total in enumerate(recalled)
            ]
            key = k + t * qk_stride
            more = (t + 1).compare("<", n)  # of the last token there is none after it: its own again, and not used
            following = key + s.select(more, qk_stride, s.zero(I64))
            read, then = advance(s, state, dim, [q + t * qk_stride, key, following], decayed, errors)
            for i in _VECTORS:
                s.store(out + t * stride + 64 * i, read[i])
                recalled[i].set(then[i])

    @kernel(variant=isa.name, divisible=True)
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
                _clear(state, dim)
            first = load_i64(run)
            q = qk + first * qk_stride + head % n_key_heads * (4 * dim)
            at, gate_at = first * stride + within * ROW, first * gate_stride + 4 * head
            block(
                q, q + n_key_heads * (4 * dim), qk_stride, v + at, out + at, stride, decays + gate_at, betas + gate_at,
                gate_stride, load_i64(run + 8), state, dim,
            )  # fmt: skip

    return delta_rule
