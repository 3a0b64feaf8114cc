"""Logits of candidates as weights: how far each lies below the largest, and exp of that, in float64.

In blocks of 256, whose elements are summed side by side, in 256 running sums that are halved again and again: one fixed order.
The end of ``room`` (float64 [512 or more]) is scratch: two blocks.
"""

from __future__ import annotations

import numpy as np

from gumba.jit.jit import inline
from gumba.sampling.kernels.sample import BLOCK, halved


@inline
def largest_of(values, lanes):
    """Largest of ``values`` (float64 [1 or more]); ``lanes`` float64 [256] is scratch."""
    for j in range(BLOCK):
        lanes[j] = values[0]
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        for j in range(part.size):
            lanes[j] = part[j] if part[j] > lanes[j] else lanes[j]
    for j in range(1, BLOCK):
        lanes[0] = lanes[j] if lanes[j] > lanes[0] else lanes[0]
    return lanes[0]


@inline
def decay(far, weights, powers, powers_bits):
    """weights[i] = exp(-far[i]) for up to 256 distances of 0 or more, in vector code; 0 from 700 on.

    ``powers`` float64 [256] and its int64 view ``powers_bits`` are scratch.
    """
    for j in range(far.size):
        # exp(t) = 2^whole * exp(rest), |rest| <= ln(2) / 2: ln(2) in two parts, and
        # eight terms of the series of rest / 4, to the fourth power.
        t = -(far[j] if far[j] < 700.0 else 700.0)
        whole = np.int32(t * 1.4426950408889634 - 0.5)
        rest = t - np.float64(whole) * 0.6931471803691238
        rest = rest - np.float64(whole) * 1.9082149292705877e-10
        quarter = rest * 0.25
        series = (1 / 40320) * quarter + (1 / 5040)
        series = series * quarter + (1 / 720)
        series = series * quarter + (1 / 120)
        series = series * quarter + (1 / 24)
        series = series * quarter + (1 / 6)
        series = series * quarter + 0.5
        series = series * quarter + 1.0
        series = series * quarter + 1.0
        series = series * series
        weights[j] = series * series
        powers_bits[j] = (np.int64(whole) + 1023) << 52
    for j in range(far.size):
        weights[j] = weights[j] * powers[j] if far[j] < 700.0 else 0.0


@inline
def two_blocks(room):
    """Two blocks of float64 [256] in ``room``, apart from its other parts."""
    return room[room.size - BLOCK :], room[room.size - 2 * BLOCK : room.size - BLOCK]


@inline
def measure(x, n, far, room):
    """far[i]: how far x[i] lies below the largest."""
    lanes, _ = two_blocks(room)
    highest = largest_of(x[:n], lanes)
    for i in range(n):
        far[i] = highest - x[i] + 0.0  # not -0.0, whose bits are far from those of 0.0


@inline
def weigh(x, n, far, weights, room):
    """As ``measure``; weights[i] = exp(-far[i]). Returns their sum: 256 running sums, halved again and again."""
    lanes, powers = two_blocks(room)
    powers_bits = powers.view(np.int64)
    highest = largest_of(x[:n], lanes)
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        part, own_far, own = x[start:stop], far[start:stop], weights[start:stop]
        for j in range(part.size):
            own_far[j] = highest - part[j] + 0.0
        decay(own_far, own, powers, powers_bits)
        for j in range(part.size):
            lanes[j] += own[j]
    return halved(lanes)


@inline
def mean_distance(n, far, weights, total, room):
    """Mean of ``far`` under the probabilities ``weights / total``: the entropy less log(total)."""
    lanes, _ = two_blocks(room)
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, n, BLOCK):
        part, own = far[start : min(start + BLOCK, n)], weights[start : min(start + BLOCK, n)]
        for j in range(part.size):
            lanes[j] += own[j] * part[j]
    return halved(lanes) / total
