"""The search for scales and minimums of groups of 16 weights whose blocks store them in few bits: Q2_K and Q3_K.

A block of 256 weights stores ``d * s`` as the scale of a group and ``-dmin * m`` as its minimum, s and m small integers, so
that their rounding costs as much as that of the weights. From the best scale and minimum of each group come d and dmin. Then each
group takes the s and m, of the nearest ones and their neighbours, that leave the least error; then d and dmin become what fits
the rounded weights best (weighted least squares), and so on. What left the least error is stored.

Numbers lie transposed: ``across`` [16 weights, GROUPS groups] as in ``_scale_search``, one number per group in rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gumba.jit.jit import inline
from gumba.quants._compiled import f16_to_f32, f32_at, f32_to_f16, inverse_or_zero, scratch
from gumba.quants._scale_search import GROUPS, ROW_BYTES, group_row, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Groups of a block, and blocks worked on at a time.
PER_BLOCK = 16
BLOCKS = GROUPS // PER_BLOCK
#: How often s, m, d and dmin are chosen.
_ROUNDS = 3
#: What the range of a group with a minimum is scaled to: _TRIES values from _FEWER below the highest q on, _SPACING apart.
_TRIES = 10
_FEWER = np.float32(0.6)
_SPACING = np.float32(0.2)

#: The smallest magnitude, as float32's bits, that is too large for any float16 scale; sums of squares could overflow.
TOO_LARGE = np.uint32((127 + 50) << 23)
#: A function ``()`` giving memory for one number for each block.
block_row = scratch(4 * BLOCKS)


@inline
def in_f16(x: float) -> np.float32:
    """x as float16 stores it."""
    return f16_to_f32(np.uint32(f32_to_f16(x)))


@inline
def transpose(x_address: int, n: int, across: int) -> None:
    """n groups of 16 weights -> ``across``."""
    for i in range(16):
        to = f32_at(across + i * ROW_BYTES, GROUPS)
        for g in range(n):
            to[g] = f32_at(x_address + g * 64, 16)[i]


@inline
def weigh(across: int, n: int, share: float, weight: int) -> None:
    """Large weights count more: by their magnitude, plus ``share`` of the mean one of their group."""
    mean = f32_at(group_row(), GROUPS)
    for g in range(n):
        mean[g] = np.float32(0)
    for i in range(16):
        x = f32_at(across + i * ROW_BYTES, GROUPS)
        for g in range(n):
            mean[g] += abs(x[g]) * share * np.float32(1 / 16)
    for i in range(16):
        x, w = f32_at(across + i * ROW_BYTES, GROUPS), f32_at(weight + i * ROW_BYTES, GROUPS)
        for g in range(n):
            w[g] = abs(x[g]) + mean[g]


@inline
def fit_ranges(
    across: int, weight: int, n: int, high: float, scale: NDArray[np.float32], minimum: NDArray[np.float32]
) -> None:
    """scale[g] * q - minimum[g], q from 0 to ``high``, closest to group g, for minimums >= 0 (weights below 0).

    The search begins with one number for the whole group: where its weights hardly differ, all q are 0 at any scale.
    """
    lowest, over_range, best = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    w_sum, x_sum = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    q_sum, qq_sum, xq_sum = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    for g in range(n):
        lowest[g], over_range[g] = np.float32(0), np.float32(-np.inf)
        w_sum[g], x_sum[g] = np.float32(0), np.float32(0)
    for i in range(16):
        x, w = f32_at(across + i * ROW_BYTES, GROUPS), f32_at(weight + i * ROW_BYTES, GROUPS)
        for g in range(n):
            lowest[g] = x[g] if x[g] < lowest[g] else lowest[g]
            over_range[g] = x[g] if x[g] > over_range[g] else over_range[g]
            w_sum[g] += w[g]
            x_sum[g] += w[g] * x[g]
    for g in range(n):
        over_range[g] = inverse_or_zero(over_range[g] - lowest[g])
        b = min(np.float32(0), x_sum[g] * inverse_or_zero(w_sum[g]))
        best[g], scale[g], minimum[g] = b * x_sum[g], np.float32(0), -b
    for t in range(_TRIES):
        steps = high - _FEWER + _SPACING * np.float32(t)
        for g in range(n):
            q_sum[g], qq_sum[g], xq_sum[g] = np.float32(0), np.float32(0), np.float32(0)
        for i in range(16):
            x, w = f32_at(across + i * ROW_BYTES, GROUPS), f32_at(weight + i * ROW_BYTES, GROUPS)
            for g in range(n):
                q = rounded((x[g] - lowest[g]) * over_range[g] * steps, np.float32(0), high)
                q_sum[g] += w[g] * q
                qq_sum[g] += w[g] * q * q
                xq_sum[g] += w[g] * x[g] * q
        for g in range(n):
            apart = w_sum[g] * qq_sum[g] - q_sum[g] * q_sum[g]
            a = (w_sum[g] * xq_sum[g] - x_sum[g] * q_sum[g]) * inverse_or_zero(apart)
            b = (x_sum[g] - a * q_sum[g]) * inverse_or_zero(w_sum[g])
            plain = (apart <= np.float32(0)) | (b > np.float32(0))
            a = xq_sum[g] * inverse_or_zero(qq_sum[g]) if plain else a
            b = np.float32(0) if plain else b
            gain = a * xq_sum[g] + b * x_sum[g]  # how much of the weighted sum of squares it explains
            better = gain > best[g]
            best[g] = gain if better else best[g]
            scale[g] = a if better else scale[g]
            minimum[g] = -b if better else minimum[g]


@inline
def _errors(
    across: int,
    weight: int,
    n: int,
    low: float,
    high: float,
    step: NDArray[np.float32],
    base: NDArray[np.float32],
    error: NDArray[np.float32],
) -> None:
    """error[g] = weighted squared error of group g rounded to ``step * q + base``, q from ``low`` to ``high``."""
    over_step = f32_at(group_row(), GROUPS)
    for g in range(n):
        error[g] = np.float32(0)
        over_step[g] = inverse_or_zero(step[g])
    for i in range(16):
        x, w = f32_at(across + i * ROW_BYTES, GROUPS), f32_at(weight + i * ROW_BYTES, GROUPS)
        for g in range(n):
            q = rounded((x[g] - base[g]) * over_step[g], low, high)
            off = step[g] * q + base[g] - x[g]
            error[g] += w[g] * off * off


@inline
def _beside(t: int) -> np.float32:
    """0, 1, -1 for 0, 1, 2: of equally good numbers the nearest is taken, so that groups of zeros have the scale 0."""
    return np.float32(t - 3 * (t // 2))


@inline
def _choose(
    across: int,
    weight: int,
    n: int,
    limits: tuple[float, float, float, float, float],
    d: NDArray[np.float32],
    dmin: NDArray[np.float32],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32],
    s: NDArray[np.float32],
    m: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    """s and m of each group for its block's ``d`` and ``dmin``, those of least error, ``best``."""
    low, high, s_low, s_high, m_high = limits
    error, step, base = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    s_try, m_try = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    for g in range(n):
        best[g] = np.float32(np.inf)
        s[g] = np.float32(0)
        m[g] = np.float32(0)
    around = 3 if m_high > np.float32(0) else 1
    for t in range(3 * around):
        for g in range(n):
            b = g // PER_BLOCK
            s_near = rounded(scale[g] * inverse_or_zero(d[b]) + _beside(t % 3), s_low, s_high)
            m_near = rounded(minimum[g] * inverse_or_zero(dmin[b]) + _beside(t // 3), np.float32(0), m_high)
            s_try[g] = s_near
            m_try[g] = m_near
            step[g] = d[b] * s_near
            base[g] = -(dmin[b] * m_near)
        _errors(across, weight, n, low, high, step, base, error)
        for g in range(n):
            better = error[g] < best[g]
            best[g] = error[g] if better else best[g]
            s[g] = s_try[g] if better else s[g]
            m[g] = m_try[g] if better else m[g]


@inline
def _fit(
    across: int,
    weight: int,
    n: int,
    limits: tuple[float, float, float, float, float],
    d: NDArray[np.float32],
    dmin: NDArray[np.float32],
    s: NDArray[np.float32],
    m: NDArray[np.float32],
) -> None:
    """``d`` and ``dmin`` of each block that fit best the rounding that they, ``s`` and ``m`` give."""
    low, high = limits[0], limits[1]
    q_sum, qq_sum, xq_sum = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    w_sum, x_sum, over_step = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    base = f32_at(group_row(), GROUPS)
    for g in range(n):
        w_sum[g], x_sum[g] = np.float32(0), np.float32(0)
        q_sum[g], qq_sum[g], xq_sum[g] = np.float32(0), np.float32(0), np.float32(0)
        over_step[g] = inverse_or_zero(d[g // PER_BLOCK] * s[g])
        base[g] = dmin[g // PER_BLOCK] * m[g]
    for i in range(16):
        x, w = f32_at(across + i * ROW_BYTES, GROUPS), f32_at(weight + i * ROW_BYTES, GROUPS)
        for g in range(n):
            q = rounded((x[g] + base[g]) * over_step[g], low, high)
            w_sum[g] += w[g]
            x_sum[g] += w[g] * x[g]
            q_sum[g] += w[g] * q
            qq_sum[g] += w[g] * q * q
            xq_sum[g] += w[g] * x[g] * q
    for b in range(n // PER_BLOCK):
        ss, sm, mm, xs, xm = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for g in range(b * PER_BLOCK, (b + 1) * PER_BLOCK):
            ss += s[g] * s[g] * qq_sum[g]
            sm += s[g] * m[g] * q_sum[g]
            mm += m[g] * m[g] * w_sum[g]
            xs += s[g] * xq_sum[g]
            xm += m[g] * x_sum[g]
        apart = ss * mm - sm * sm
        if apart > np.float32(1e-3) * ss * mm:
            d[b] = (xs * mm - xm * sm) / apart
            dmin[b] = (xs * sm - xm * ss) / apart
        elif ss > np.float32(0):
            d[b] = (xs + dmin[b] * sm) / ss
        d[b] = in_f16(d[b])
        dmin[b] = in_f16(dmin[b])


@inline
def round_groups(
    across: int,
    weight: int,
    n: int,
    limits: tuple[float, float, float, float, float],
    d: NDArray[np.float32],
    dmin: NDArray[np.float32],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32],
    s: NDArray[np.float32],
    m: NDArray[np.float32],
) -> None:
    """The stored numbers for groups whose best scales and minimums are ``scale`` and -``minimum``.

    ``n``: groups, of whole blocks; ``limits``: lowest and highest q, lowest and highest s, highest m. ``d``, ``dmin``: of each
    block, a first choice, exact in float16; replaced by the last, as ``s`` and ``m`` are filled.
    """
    d_try, dmin_try, least = f32_at(block_row(), BLOCKS), f32_at(block_row(), BLOCKS), f32_at(block_row(), BLOCKS)
    s_try, m_try, error = f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS), f32_at(group_row(), GROUPS)
    for b in range(n // PER_BLOCK):
        d_try[b] = d[b]
        dmin_try[b] = dmin[b]
        least[b] = np.float32(np.inf)
    for g in range(n):
        s[g] = np.float32(0)
        m[g] = np.float32(0)
    for _ in range(_ROUNDS):
        _choose(across, weight, n, limits, d_try, dmin_try, scale, minimum, s_try, m_try, error)
        for b in range(n // PER_BLOCK):
            total = np.float32(0)
            for g in range(b * PER_BLOCK, (b + 1) * PER_BLOCK):
                total += error[g]
            if total < least[b]:
                least[b] = total
                d[b] = d_try[b]
                dmin[b] = dmin_try[b]
                for g in range(b * PER_BLOCK, (b + 1) * PER_BLOCK):
                    s[g] = s_try[g]
                    m[g] = m_try[g]
        _fit(across, weight, n, limits, d_try, dmin_try, s_try, m_try)
