"""Softmax weights of candidates in float64: each logit's distance below the largest, and exp of the negated distance.

Values are processed in blocks of 256 with 256 running sums, which are added by pairwise halving at the end: one fixed order.
The last two blocks of ``scratch`` (float64 [512 or more]) are working space.
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
def decay(distances, weights, powers, powers_bits):
    """weights[i] = exp(-distances[i]) for up to 256 distances of 0 or more, in vector code; 0 from 700 on.

    ``powers`` float64 [256] and its int64 view ``powers_bits`` are scratch.
    """
    for j in range(distances.size):
        # exp(t) = 2^whole * exp(rest), |rest| <= ln(2) / 2: ln(2) as a sum of two constants, and
        # eight terms of the series of rest / 4, to the fourth power.
        t = -(distances[j] if distances[j] < 700.0 else 700.0)
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
    for j in range(distances.size):
        weights[j] = weights[j] * powers[j] if distances[j] < 700.0 else 0.0


@inline
def two_blocks(scratch):
    """Two blocks of float64 [256] at the end of ``scratch``, disjoint from its other parts."""
    return scratch[scratch.size - BLOCK :], scratch[scratch.size - 2 * BLOCK : scratch.size - BLOCK]


@inline
def measure(x, n, distances, scratch):
    """distances[i] = max(x) - x[i]."""
    lanes, _ = two_blocks(scratch)
    highest = largest_of(x[:n], lanes)
    for i in range(n):
        distances[i] = highest - x[i] + 0.0  # not -0.0, whose bits differ from those of 0.0


@inline
def weigh(x, n, distances, weights, scratch):
    """distances[i] = max(x) - x[i] and weights[i] = exp(-distances[i]); returns the sum of the weights."""
    lanes, powers = two_blocks(scratch)
    powers_bits = powers.view(np.int64)
    highest = largest_of(x[:n], lanes)
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        part, part_distances, part_weights = x[start:stop], distances[start:stop], weights[start:stop]
        for j in range(part.size):
            part_distances[j] = highest - part[j] + 0.0
        decay(part_distances, part_weights, powers, powers_bits)
        for j in range(part.size):
            lanes[j] += part_weights[j]
    return halved(lanes)


@inline
def mean_distance(n, distances, weights, total, scratch):
    """Mean of ``distances`` under the probabilities ``weights / total``: the entropy minus log(total)."""
    lanes, _ = two_blocks(scratch)
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, n, BLOCK):
        part, part_weights = distances[start : min(start + BLOCK, n)], weights[start : min(start + BLOCK, n)]
        for j in range(part.size):
            lanes[j] += part_weights[j] * part[j]
    return halved(lanes) / total
