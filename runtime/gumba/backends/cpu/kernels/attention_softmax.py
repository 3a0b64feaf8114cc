"""A row of attention scores: adjusting them, softmax, and merging the results of parts."""

from __future__ import annotations

import numpy as np

from gumba.backends.cpu.kernels.attention_layout import Variant
from gumba.jit.jit import Inline, Intrinsic, inline
from gumba.simd.isa import Isa
from gumba.simd.maths import exp2, tanh
from gumba.simd.value import F32, I32, I64, Simd, Value, simd_function


def _softmax(isa: Isa):
    """Softmax of the first ``n`` scores of a part: scores to weights in place; their sum (+0) and maximum (+4).

    Scores after these, up to a whole vector, become 0.
    """

    @simd_function("void(i8, i8, i8)")
    def softmax(s: Simd, scores: Value, n: Value, out: Value) -> None:
        full = n >> 4
        rest = (n & 15).to(I32)
        tail = scores + (n & -16) * 4
        below = s.constant(float("-inf"), F32, 16)
        place = s.constant(list(range(16)), I32, 16)
        valid = place.compare("<", s.splat(rest, 16))
        top = s.variable(below)
        with s.loop(full) as i:
            top.set(s.maximum(top.get(), s.load(scores + i * 64, F32, 16)))
        with s.when(rest.compare(">", 0)):
            top.set(s.maximum(top.get(), s.select(valid, s.load(tail, F32, 16), below)))
        now = s.reduce(top.get(), s.maximum)
        s.store(out + 4, now)
        shift = s.splat(now, 16)
        sums = s.variable(s.zero(F32, 16))
        with s.loop(full) as i:
            weights = exp2(s, isa, s.load(scores + i * 64, F32, 16) - shift)
            s.store(scores + i * 64, weights)
            sums.set(sums.get() + weights)
        with s.when(rest.compare(">", 0)):
            weights = exp2(s, isa, s.load(tail, F32, 16) - shift)
            weights = s.select(valid, weights, s.zero(F32, 16))
            s.store(tail, weights)
            sums.set(sums.get() + weights)
        s.store(out, s.reduce(sums.get(), lambda a, b: a + b))

    return softmax


def row_merge(isa: Isa):
    """Add a part's row to that of the parts before it, both outputs of ``v_row`` elements with sum and maximum after them."""

    @simd_function("void(i8, i8, i8)")
    def merge(s: Simd, part: Value, whole: Value, v_row: Value) -> None:
        total, to_total = part + v_row * 4, whole + v_row * 4
        ours, theirs = s.load(to_total + 4, F32), s.load(total + 4, F32)
        now = s.maximum(ours, theirs)
        s.store(to_total + 4, now)
        factors = exp2(s, isa, s.concatenate(s.splat(ours - now, 4), s.splat(theirs - now, 4)))
        keep, add = s.lane(factors, 0), s.lane(factors, 4)
        s.store(to_total, s.load(to_total, F32) * keep + s.load(total, F32) * add)
        keep, add = s.splat(keep, 16), s.splat(add, 16)
        with s.loop(v_row >> 4) as i:
            at = i * 64
            s.store(whole + at, s.load(whole + at, F32, 16) * keep + s.load(part + at, F32, 16) * add)

    return merge


@simd_function("void(i8, i8, i8)")
def copy(s: Simd, x: Value, out: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(out + i * 64, s.load(x + i * 64, F32, 16))


@simd_function("f4(f4)")
def inverse(s: Simd, x: Value) -> Value:
    return s.constant(1.0, F32) / x


@simd_function("void(i8, i8)")
def clear(s: Simd, x: Value, n_vectors: Value) -> None:
    with s.loop(n_vectors) as i:
        s.store(x + i * 64, s.zero(F32, 16))


@simd_function("void(i8, i8, f4)")
def _overwrite(s: Simd, x: Value, n: Value, number: Value) -> None:
    """The first ``n`` of a vector's 16 numbers."""
    chosen = s.constant(list(range(16)), I32, 16).compare("<", s.splat(n.to(I32), 16))
    s.store(x, s.select(chosen, s.splat(number, 16), s.load(x, F32, 16)))


def _adjust(isa: Isa, variant: Variant) -> Intrinsic[None]:
    """A compiled function: soft cap and what depends on distance, for ``n_vectors`` of a row's scores.

    The scores begin ``distance`` keys before the row's own; ``of_head``: address of the head's slope, or of its biases up to a
    distance of ``reach``.
    """

    @simd_function("void(i8, i8, f4, i8, i8, i8)")
    def adjust(
        s: Simd, scores: Value, n_vectors: Value, cap: Value, of_head: Value, distance: Value, reach: Value
    ) -> None:
        lanes = s.constant([float(i) for i in range(16)], F32, 16)
        slope = s.load(of_head, F32) if variant.slopes else None
        with s.loop(n_vectors) as i:
            score = s.load(scores + i * 64, F32, 16)
            if variant.softcap:
                score = tanh(s, isa, score) * s.splat(cap, 16)
            before = distance - i * 16
            if slope is not None:
                away = s.absolute(s.splat(before.to(F32), 16) - lanes)
                score = score - away * s.splat(slope, 16)
            if variant.bias:
                # Past the reach on either side, all 16 keys have the outermost bias.
                first = s.maximum(s.minimum(reach - before, reach * 2), s.constant(-16, I64))
                score = score + s.load(of_head + (first + 16) * 4, F32, 16)
            s.store(scores + i * 64, score)

    return adjust


def row_sink(isa: Isa) -> Intrinsic[float]:
    """A compiled function: the factor of a row's output, when a sink takes part in the sum at ``totals``."""

    @simd_function("f4(i8, f4)")
    def factor(s: Simd, totals: Value, sink: Value) -> Value:
        total, top = s.load(totals, F32), s.load(totals + 4, F32)
        now = s.maximum(top, sink)
        powers = exp2(s, isa, s.concatenate(s.splat(top - now, 4), s.splat(sink - now, 4)))
        ours = s.lane(powers, 0)
        return ours / (total * ours + s.lane(powers, 4))

    return factor


def row_weights(isa: Isa, variant: Variant) -> Inline[None]:
    """A compiled function: turns one row's scores with a part's keys ``first`` up to ``last`` into weights, see ``_softmax``.

    Scores are read, and weights written, in whole vectors; weights of keys that the row does not attend to become 0.
    """
    softmax, adjust = _softmax(isa), _adjust(isa, variant)
    adjusts, bounded = variant.softcap or variant.slopes or variant.bias, variant.bounded
    minus_infinity, zero = np.float32(-np.inf), np.float32(0)

    @inline
    def weigh(scores, first, last, out, cap, of_head, distance, reach):
        begin = first // 16 * 16 if bounded else 0
        if adjusts:
            adjust(scores + 4 * begin, (last - begin + 15) // 16, cap, of_head, distance - begin, reach)
        if bounded and begin < first:
            _overwrite(scores + 4 * begin, first - begin, minus_infinity)
        softmax(scores + 4 * begin, last - begin, out)
        if bounded and begin < first:
            _overwrite(scores + 4 * begin, first - begin, zero)

    return weigh
