"""Causal convolutions along a sequence, one filter for each column: LFM2's short convolutions, and those before a delta rule.

The state (``recurrent_state``) is the last inputs of each column.
"""

from __future__ import annotations

import functools

from gumba.backends.cpu.kernels.record import N_RUNS, RUN_WORDS, RUNS, Kernel, kernel, share
from gumba.backends.cpu.kernels.recurrent_state import ROW, VECTORS, clear_state
from gumba.simd.isa import Isa
from gumba.simd.maths import exp
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, Simd, Value, simd_function

#: Tokens that a convolution sees, at most.
MAX_TAPS = 16


@functools.cache
def causal_conv(isa: Isa, n_taps: int, silu: bool) -> Kernel:
    """x[t] = the sum over ``n_taps`` tokens up to t of x times a row of ``weight``; ``silu``: followed by x sigmoid(x). In place.

    x: float32 [n_tokens, width], rows ``stride`` bytes apart; weight: float32 [n_taps, n_blocks * 32], the oldest token's
    first. The state: the last ``n_taps`` - 1 inputs, float32 [n_blocks, n_taps - 1, 32], the oldest first.
    """

    @simd_function("void(i8, i8, i8, i8, i8, i8)")
    def block(s: Simd, x: Value, stride: Value, n: Value, weight: Value, weight_stride: Value, state: Value) -> None:
        taps = [[s.load(weight + weight_stride * tap + 64 * i, F32, 16) for i in VECTORS] for tap in range(n_taps)]
        past = [
            [s.variable(s.load(state + (ROW * row + 64 * i), F32, 16)) for i in VECTORS] for row in range(n_taps - 1)
        ]
        with s.loop(n) as t:
            at = x + t * stride
            for i in VECTORS:
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
            for i in VECTORS:
                s.store(state + (ROW * j + 64 * i), row[i].get())

    @kernel(variant=f"{isa.name},{n_taps}{',silu' if silu else ''}", stealable=True)
    def causal_conv(batch, thread, n_threads, x, stride, n_blocks, weight, weight_stride, memory):
        runs = load_i64(batch + RUNS)
        units = load_i64(batch + N_RUNS) * n_blocks
        for unit in range(share(units, thread, n_threads), share(units, thread + 1, n_threads)):
            run, b = runs + unit // n_blocks * (8 * RUN_WORDS), unit % n_blocks
            state = memory + load_i64(run + 24) + b * ((n_taps - 1) * ROW)
            if load_i64(run + 16) == 0:
                clear_state(state, n_taps - 1)
            at = x + load_i64(run) * stride + b * ROW
            block(at, stride, load_i64(run + 8), weight + b * ROW, weight_stride, state)

    return causal_conv
