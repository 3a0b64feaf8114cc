"""Filters of the candidates for a token, for chains that ``gumba.kernels.sample`` does not cover.

Candidates are token ids ``ids`` (int32, ascending) and their logits ``x`` (float64), of which the first ``n`` count; a filter
moves those it keeps to the front, in their order, and returns how many they are. Nothing is sorted: where a filter keeps the
nearest to something until they hold enough probability, distances are put into 512 buckets, and the bucket in which enough is
reached is looked into again, by the bits of its distances, until it is small (``_cut``). At equal distance lower ids come
first. All sums have a fixed order.

``room`` (float64 [3 * x.size + 4 * BUCKETS]) is scratch: distances, weights, and the rest. Each entry is compiled when it is
first wanted.
"""

from __future__ import annotations

import math

import numpy as np

from gumba.kernels.edit import BANNED
from gumba.kernels.jit import entry, inline
from gumba.kernels.sample import _scan, _sift, _top_k

#: Elements that are worked on at once.
BLOCK = 256
BUCKETS = 512
#: This many candidates are simply put in order.
SMALL = 64
#: Distances from here on are in one bucket of the first round: exp(-32) = 1e-14.
DEEPEST = 32.0


@entry("i8(f4[::1], i4[::1], f8[::1])")
def gather(row, ids, x):
    """Take all tokens of ``row`` that are not BANNED as candidates; how many."""
    size = 0
    for i in range(row.size):
        ids[np.uint32(size)] = i
        x[np.uint32(size)] = np.float64(row[i])
        size += row[i] != BANNED
    return size


@entry("i8(f4[::1], i8, i4[::1], i8[::1], i4[::1], f8[::1])")
def gather_top_k(row, k, blocks, heap, ids, x):
    """Take the ``k`` likeliest tokens (1 to row.size) that are not BANNED as candidates; how many.

    Scratch as in ``sample_top_k``. Returns ``-1 - token`` for a logit that is not finite.
    """
    bits = row.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0:
        return best
    _top_k(bits, blocks, k, heap)
    for i in range(k):
        heap[i] = (heap[i] & 0xFFFFFFFF) - 0xFFFFFFFF  # minus the token
    for i in range(k // 2 - 1, -1, -1):
        _sift(heap, i, k)
    for size in range(k - 1, 0, -1):
        smallest = heap[0]
        heap[0] = heap[size]
        heap[size] = smallest
        _sift(heap, 0, size)
    size = 0
    for i in range(k):
        ids[size] = -heap[i]
        x[size] = np.float64(row[-heap[i]])
        size += row[-heap[i]] != BANNED
    return size


@inline
def _total(values, lanes):
    """Sum of ``values`` (float64 [any]): 256 running sums, then halved again and again; ``lanes`` float64 [256] is scratch."""
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        for j in range(part.size):
            lanes[j] += part[j]
    half = BLOCK // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]


@inline
def _largest(values, lanes):
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
def _decay(far, weights, powers, powers_bits):
    """weights[i] = exp(-far[i]) for distances of 0 or more, in vector code; 0 from 700 on.

    ``powers`` float64 [256] and its int64 view ``powers_bits`` are scratch.
    """
    for start in range(0, far.size, BLOCK):
        part, out = far[start : start + BLOCK], weights[start : start + BLOCK]
        for j in range(part.size):
            # exp(t) = 2^whole * exp(rest), |rest| <= ln(2) / 2: ln(2) in two parts, and
            # eight terms of the series of rest / 4, to the fourth power.
            t = -(part[j] if part[j] < 700.0 else 700.0)
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
            out[j] = series * series
            powers_bits[j] = (np.int64(whole) + 1023) << 52
        for j in range(part.size):
            out[j] = out[j] * powers[j] if part[j] < 700.0 else 0.0


@inline
def _parts(room, size):
    """The parts of ``room`` that are as long as ``x``: distances, weights, members (int64)."""
    return room[:size], room[size : 2 * size], room[2 * size : 3 * size].view(np.int64)


@inline
def _weigh(x, n, far, weights, room):
    """far[i]: how far x[i] lies below the largest; weights[i] = exp(-far[i]). Returns the sum of the weights."""
    lanes = room[room.size - BLOCK :]
    powers = room[room.size - 2 * BLOCK : room.size - BLOCK]
    powers_bits = powers.view(np.int64)
    highest = _largest(x[:n], lanes)
    for i in range(n):
        far[i] = highest - x[i] + 0.0  # not -0.0, whose bits are far from those of 0.0
    _decay(far[:n], weights[:n], powers, powers_bits)
    return _total(weights[:n], lanes)


@inline
def _mean_distance(n, far, weights, total, members, room):
    """Mean of ``far`` under the probabilities ``weights / total``: the entropy less log(total). ``members`` is scratch."""
    products = members.view(np.float64)
    for i in range(n):
        products[i] = weights[i] * far[i]
    return _total(products[:n], room[room.size - BLOCK :]) / total


@inline
def _crossing(masses, numbers, held, count, wanted, least):
    """The first bucket by which ``wanted`` mass and ``least`` candidates are reached, else the last filled.

    ``held`` and ``count`` were reached before the buckets; those reached before the bucket are returned with it.
    """
    bucket, held_before, count_before = 0, held, count
    for i in range(BUCKETS):
        if numbers[i] > 0.0:
            bucket, held_before, count_before = i, held, count
            held += masses[i]
            count += numbers[i]
            if held >= wanted and count >= least:
                break
    return bucket, held_before, count_before


@inline
def _sort_by_distance(far, members, size):
    """Put ``members`` in the order of their distances; equal ones stay in their order."""
    for i in range(1, size):
        moving, j = members[i], i
        while j > 0 and far[members[j - 1]] > far[moving]:
            members[j] = members[j - 1]
            j -= 1
        members[j] = moving


@inline
def _cut(far, weights, n, wanted, least, members, room):
    """Where the nearest candidates have ``wanted`` mass and are ``least`` many: a distance, and how many at it to keep."""
    masses = room[room.size - 4 * BUCKETS : room.size - 3 * BUCKETS]
    numbers = room[room.size - 3 * BUCKETS : room.size - 2 * BUCKETS]
    bits = far.view(np.int64)
    held, count, size = 0.0, 0.0, n
    for i in range(min(n, SMALL + 1)):
        members[i] = i
    if n > SMALL:
        deepest = 0.0
        for i in range(n):
            deepest = far[i] if far[i] > deepest else deepest
        scale = BUCKETS / min(max(deepest, 1e-300), DEEPEST)
        masses[:] = 0.0
        numbers[:] = 0.0
        for i in range(n):
            place = np.uint32(min(far[i] * scale, BUCKETS - 1.0))
            masses[place] += weights[i]
            numbers[place] += 1.0
        bucket, held, count = _crossing(masses, numbers, held, count, wanted, least)
        size = 0
        for i in range(n):
            members[np.uint32(size)] = i
            size += np.int64(min(far[i] * scale, BUCKETS - 1.0)) == bucket
    low, high = np.int64(0), np.int64(1)
    while size > SMALL:
        low, high = bits[members[0]], bits[members[0]]
        for i in range(size):
            low, high = min(low, bits[members[i]]), max(high, bits[members[i]])
        if low == high:
            break
        shift = np.int64(0)
        while (high - low) >> shift >= BUCKETS:
            shift += 1
        masses[:] = 0.0
        numbers[:] = 0.0
        for i in range(size):
            place = (bits[members[i]] - low) >> shift
            masses[place] += weights[members[i]]
            numbers[place] += 1.0
        bucket, held, count = _crossing(masses, numbers, held, count, wanted, least)
        kept = 0
        for i in range(size):
            if (bits[members[i]] - low) >> shift == bucket:
                members[kept] = members[i]
                kept += 1
        size = kept
    if size <= SMALL:
        _sort_by_distance(far, members, size)
    distance, ties = 0.0, 0
    for i in range(size):
        member = members[i]
        ties = ties + 1 if i > 0 and far[member] == distance else 1
        distance = far[member]
        held += weights[member]
        count += 1.0
        if held >= wanted and count >= least:
            break
    return distance, ties


@inline
def _keep_nearest(ids, x, n, far, distance, ties):
    """Keep candidates nearer than ``distance`` and the first ``ties`` at it."""
    kept = 0
    for i in range(n):
        at = far[i] == distance
        if far[i] < distance or (at and ties > 0):
            ties -= at
            ids[kept] = ids[i]
            x[kept] = x[i]
            kept += 1
    return kept


@entry("i8(i4[::1], f8[::1], i8, i8, f8[::1])")
def top_k(ids, x, n, k, room):
    """Keep the ``k`` likeliest, 1 or more."""
    far, weights, members = _parts(room, x.size)
    highest = _largest(x[:n], room[room.size - BLOCK :])
    for i in range(n):
        far[i] = highest - x[i] + 0.0  # not -0.0, whose bits are far from those of 0.0
        weights[i] = 0.0
    distance, ties = _cut(far, weights, n, 0.0, k, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def top_p(ids, x, n, p, min_keep, room):
    """Keep the likeliest until they hold the probability ``p``, and at least ``min_keep`` (1 or more)."""
    far, weights, members = _parts(room, x.size)
    total = _weigh(x, n, far, weights, room)
    distance, ties = _cut(far, weights, n, p * total, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def typical(ids, x, n, p, min_keep, room):
    """As ``top_p``, but the nearest are those whose surprise is nearest the entropy."""
    far, weights, members = _parts(room, x.size)
    total = _weigh(x, n, far, weights, room)
    mean = _mean_distance(n, far, weights, total, members, room)
    for i in range(n):
        far[i] = abs(far[i] - mean)
    distance, ties = _cut(far, weights, n, p * total, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def within(ids, x, n, distance, min_keep, room):
    """Keep those whose logit is at most ``distance`` below the largest, and at least ``min_keep`` (1 or more)."""
    far, weights, members = _parts(room, x.size)
    highest = _largest(x[:n], room[room.size - BLOCK :])
    near = 0
    for i in range(n):
        far[i] = highest - x[i] + 0.0  # not -0.0, whose bits are far from those of 0.0
        near += far[i] <= distance
    ties = n
    if near < min_keep:
        for i in range(n):
            weights[i] = 0.0
        distance, ties = _cut(far, weights, n, 0.0, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("f8(f8[::1], i8)")
def deviation(x, n):
    """Standard deviation of the candidates' logits."""
    mean = 0.0
    for i in range(n):
        mean += x[i]
    mean /= n
    squares = 0.0
    for i in range(n):
        squares += (x[i] - mean) * (x[i] - mean)
    return math.sqrt(squares / n)


@entry("f8(f8[::1], i8, f8[::1], f8[::1])")
def log_total(x, n, entropy, room):
    """log(sum(exp(x - max(x)))) of the candidates; ``entropy`` float64 [1] gets that of their probabilities, in nats."""
    far, weights, members = _parts(room, x.size)
    total = _weigh(x, n, far, weights, room)
    entropy[0] = math.log(total) + _mean_distance(n, far, weights, total, members, room)
    return math.log(total)


@entry("i8(i4[::1], f8[::1], i8, f8, i8)")
def exclude_top(ids, x, n, floor, min_keep):
    """Of the candidates with a logit of ``floor`` or more keep only the last: the lowest, of equal ones the highest id.

    All stay where fewer than ``min_keep`` would be left.
    """
    above, last = 0, -1
    for i in range(n):
        if x[i] >= floor:
            above += 1
            if last < 0 or x[i] <= x[last]:
                last = i
    if above < 2 or n - above + 1 < min_keep:
        return n
    kept = 0
    for i in range(n):
        if x[i] < floor or i == last:
            ids[kept] = ids[i]
            x[kept] = x[i]
            kept += 1
    return kept


@entry("i8(f8[::1], i8, f8, f8[::1], f8[::1])")
def draw(x, n, uniform, surprise, room):
    """Draw a candidate by its probability, from ``uniform`` in [0, 1); its place.

    Inverse of the cumulative distribution, over ascending ids. ``surprise`` float64 [1] gets -log2 of its probability.
    """
    far, weights = room[: x.size], room[x.size : 2 * x.size]
    _weigh(x, n, far, weights, room)
    total = 0.0
    for i in range(n):
        far[i] = weights[i]
        total += weights[i]
        weights[i] = total
    target = uniform * total
    low, high = 0, n - 1
    while low < high:
        middle = (low + high) // 2
        if weights[middle] > target:
            high = middle
        else:
            low = middle + 1
    # Rounding can reach past the last candidate that has any probability.
    while far[low] == 0.0 and low > 0:
        low -= 1
    surprise[0] = -math.log2(far[low] / total)
    return low
