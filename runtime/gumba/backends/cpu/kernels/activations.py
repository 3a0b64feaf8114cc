"""Activation functions on rows of float32, and products with them.

Each function is a kernel of its own, compiled when a program uses it. Units of work as in ``kernels.elementwise``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from gumba.backends.cpu.kernels.record import Kernel, f4, first_unit, kernel, next_unit
from gumba.simd.isa import Isa
from gumba.simd.maths import exp, normal_tail, sigmoid, tanh
from gumba.simd.memory import load_i64
from gumba.simd.value import F32, Simd, Value, simd_function


def _silu(s: Simd, isa: Isa, x: Value) -> Value:
    return x / (exp(s, isa, s.zero(F32, x.lanes) - x) + 1.0)


def _gelu(s: Simd, isa: Isa, x: Value) -> Value:
    """x times the normal distribution function at x: from the tail on the side of x, so that no digits are lost."""
    tail = x * normal_tail(s, isa, s.absolute(x))
    return s.select(x.compare(">", 0.0), x - tail, tail)


def _gelu_tanh(s: Simd, isa: Isa, x: Value) -> Value:
    """x / 2 (1 + tanh(y)) = x / (1 + e^-2y), y = sqrt(2 / pi) (x + 0.044715 x^3)."""
    y = x + x * x * x * 0.044715
    return x / (exp(s, isa, y * -1.5957691216057308) + 1.0)


def _gelu_quick(s: Simd, isa: Isa, x: Value) -> Value:
    return x / (exp(s, isa, x * -1.702) + 1.0)


def _relu(s: Simd, isa: Isa, x: Value) -> Value:
    return s.select(x.compare("<", 0.0), s.zero(F32, x.lanes), x)


def _relu2(s: Simd, isa: Isa, x: Value) -> Value:
    positive = _relu(s, isa, x)
    return positive * positive


#: By name: x sigmoid(x) (Elfwing et al. 2017); GELU (Hendrycks and Gimpel 2016) by the error function, by tanh, and as
#: x sigmoid(1.702 x); max(x, 0), and its square (So et al. 2021).
KINDS: dict[str, Callable[[Simd, Isa, Value], Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_quick": _gelu_quick,
    "relu": _relu,
    "relu2": _relu2,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def _function(kind: str) -> Callable[[Simd, Isa, Value], Value]:
    if kind not in KINDS:
        raise ValueError(f"activation {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind]


@functools.cache
def activation(isa: Isa, kind: str) -> Kernel:
    """out = kind(x). x, out: float32 [n, width]."""
    function = _function(kind)

    @simd_function("void(i8, i8)")
    def block(s: Simd, x: Value, out: Value) -> None:
        for i in range(2):
            s.store(out + 64 * i, function(s, isa, s.load(x + 64 * i, F32, 16)))

    @kernel(variant=f"{isa.name},{kind}", stealable=True)
    def activation(batch, thread, n_threads, count, x, out, stride, n_blocks):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(x + at, out + at)
            row, b = next_unit(row, b, n_blocks)

    return activation


@functools.cache
def gated(isa: Isa, kind: str) -> Kernel:
    """out = kind(gate) * up (Shazeer 2020). gate, up, out: float32 [n, width]."""
    function = _function(kind)

    @simd_function("void(i8, i8, i8)")
    def block(s: Simd, gate: Value, up: Value, out: Value) -> None:
        for i in range(2):
            g = function(s, isa, s.load(gate + 64 * i, F32, 16))
            s.store(out + 64 * i, g * s.load(up + 64 * i, F32, 16))

    @kernel(variant=f"{isa.name},{kind}", stealable=True)
    def gated(batch, thread, n_threads, count, gate, up, out, stride, n_blocks):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(gate + at, up + at, out + at)
            row, b = next_unit(row, b, n_blocks)

    return gated


@functools.cache
def swiglu_oai(isa: Isa) -> Kernel:
    """out = g sigmoid(alpha g) (u + 1), g = min(gate, limit), u = up between -limit and limit (gpt-oss, OpenAI 2025)."""

    @simd_function("void(i8, i8, i8, f4, f4)")
    def block(s: Simd, gate: Value, up: Value, out: Value, alpha: Value, limit: Value) -> None:
        top = s.splat(limit, 16)
        bottom = s.zero(F32, 16) - top
        for i in range(2):
            g, u = s.load(gate + 64 * i, F32, 16), s.load(up + 64 * i, F32, 16)
            g = s.select(g.compare(">", top), top, g)  # NaN stays NaN
            u = s.select(u.compare(">", top), top, s.select(u.compare("<", bottom), bottom, u))
            s.store(out + 64 * i, g * sigmoid(s, isa, g * s.splat(alpha, 16)) * (u + 1.0))

    @kernel(variant=isa.name, stealable=True)
    def swiglu_oai(batch, thread, n_threads, count, gate, up, out, stride, n_blocks, alpha: f4, limit: f4):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(gate + at, up + at, out + at, alpha, limit)
            row, b = next_unit(row, b, n_blocks)

    return swiglu_oai


@functools.cache
def softcap(isa: Isa) -> Kernel:
    """out = cap * tanh(x * inverse), ``inverse`` = 1 / cap (Gemma 2, 2024). x, out: float32 [n, width]."""

    @simd_function("void(i8, i8, f4, f4)")
    def block(s: Simd, x: Value, out: Value, cap: Value, inverse: Value) -> None:
        for i in range(2):
            y = tanh(s, isa, s.load(x + 64 * i, F32, 16) * s.splat(inverse, 16))
            s.store(out + 64 * i, y * s.splat(cap, 16))

    @kernel(variant=isa.name, stealable=True)
    def softcap(batch, thread, n_threads, count, x, out, stride, n_blocks, cap: f4, inverse: f4):
        row, b, n_units = first_unit(load_i64(batch + count), n_blocks, thread, n_threads)
        for _ in range(n_units):
            at = row * stride + b * 128
            block(x + at, out + at, cap, inverse)
            row, b = next_unit(row, b, n_blocks)

    return softcap
