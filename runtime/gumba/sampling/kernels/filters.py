"""Filters of candidate tokens, for sampler chains that ``gumba.sampling.kernels.sample`` does not cover.

Candidates are the first ``n`` token ids of ``ids`` (int32, ascending) and their logits ``x`` (float64). A filter moves the
candidates it keeps to the front, in their order, and returns their number. Nothing is sorted: a filter that keeps the nearest
candidates until they hold enough probability puts the distances into 512 buckets and subdivides the bucket in which the
target is reached by the bits of its distances until it is small (``_cut``). At equal distance lower ids come first. All sums
have a fixed order.

``scratch`` (float64 [3 * x.size + SCRATCH_EXTRA]) is working space: distances, weights, and the rest. Each entry is compiled
on first use.
"""

from __future__ import annotations

import math

import numpy as np

from gumba.jit.heap import heapify, sift
from gumba.jit.jit import entry, inline
from gumba.sampling.kernels.candidate_weights import largest_of, mean_distance, measure, two_blocks, weigh
from gumba.sampling.kernels.penalties import BANNED
from gumba.sampling.kernels.sample import BLOCK, INFINITY_BITS, LANES, _scan, _top_k, _unheap, first_above, halved

BUCKETS = 512
#: Scratch beyond the three arrays as long as the candidates: sums and counts by bucket, and two blocks.
SCRATCH_EXTRA = 2 * LANES * BUCKETS + 2 * BLOCK
#: Up to this many candidates are sorted.
SMALL = 64
#: Distances from here on share the last bucket of the first round: exp(-32) = 1e-14.
DEEPEST = 32.0
#: Lower bound of a logit, relative to the largest, after division by the temperature.
LOWEST = -1e300


@entry("i8(f4[::1], i4[::1], f8[::1])")
def gather(row, ids, x):
    """Write all tokens of ``row`` that are not BANNED to ``ids`` and ``x``; returns their number.

    Returns ``-1 - token`` for a logit that is not finite.
    """
    bits = row.view(np.int32)
    size = 0
    for start in range(0, row.size, BLOCK):
        part, patterns = row[start : start + BLOCK], bits[start : start + BLOCK]
        extreme, banned = np.int32(0), np.int32(0)
        for j in range(part.size):
            extreme = max(extreme, np.int32(patterns[j] & np.int32(0x7FFFFFFF)))
            banned |= np.int32(part[j] == BANNED)
        if extreme >= INFINITY_BITS:
            for j in range(part.size):
                if (patterns[j] & 0x7FFFFFFF) >= INFINITY_BITS:
                    return -1 - (start + j)
        if banned == 0:
            part_ids, part_x = ids[size : size + part.size], x[size : size + part.size]
            for j in range(part.size):
                part_ids[j] = np.int32(start + j)
                part_x[j] = np.float64(part[j])
            size += part.size
        else:
            for j in range(part.size):
                ids[np.uint32(size)] = start + j
                x[np.uint32(size)] = np.float64(part[j])
                size += part[j] != BANNED
    return size


@entry("i8(f4[::1], i8, i4[::1], i8[::1], i4[::1], f8[::1])")
def gather_top_k(row, k, blocks, heap, ids, x):
    """Write the ``k`` most likely tokens (1 to row.size) that are not BANNED to ``ids`` and ``x``; returns their number.

    Scratch as in ``sample_top_k``. Returns ``-1 - token`` for a logit that is not finite.
    """
    bits = row.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0:
        return best
    _top_k(bits, blocks, k, heap)
    for i in range(k):
        heap[i] = (heap[i] & 0xFFFFFFFF) - 0xFFFFFFFF  # minus the token
    heapify(heap, k)
    _unheap(heap, k)
    size = 0
    for i in range(k):
        ids[size] = -heap[i]
        x[size] = np.float64(row[-heap[i]])
        size += row[-heap[i]] != BANNED
    return size


@inline
def _parts(scratch, size):
    """The arrays of ``scratch`` that are as long as ``x``: distances, weights, members (int64)."""
    return scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size].view(np.int64)


@inline
def _places(distances, scale, places):
    """For up to 256 distances, ``bucket * LANES + lane`` in ``places`` (int32 [256])."""
    for j in range(distances.size):
        places[j] = np.int32(min(distances[j] * scale, BUCKETS - 1.0)) * np.int32(LANES) + np.int32(j % LANES)


@inline
def _spread(distances, weights, n, scale, masses, numbers, places):
    """Sum and count ``weights`` by bucket, into the first BUCKETS of ``masses`` and ``numbers`` (float64 [LANES * BUCKETS]).

    Neighbours are summed in different lanes, so that no addition waits for the previous one.
    """
    for i in range(LANES * BUCKETS):
        masses[i] = 0.0
        numbers[i] = 0.0
    for start in range(0, n, BLOCK):
        part, own = distances[start : min(start + BLOCK, n)], weights[start : min(start + BLOCK, n)]
        _places(part, scale, places)
        for j in range(part.size):
            place = np.uint32(places[j])
            masses[place] += own[j]
            numbers[place] += 1.0
    for i in range(BUCKETS):
        mass, count = 0.0, 0.0
        for lane in range(LANES):
            mass += masses[i * LANES + lane]
            count += numbers[i * LANES + lane]
        masses[i] = mass
        numbers[i] = count


@inline
def _crossing(masses, numbers, mass, count, wanted, min_count):
    """The first bucket where the running sums reach ``wanted`` mass and ``min_count`` candidates, else the last non-empty one.

    ``mass`` and ``count`` are the sums before the first bucket; returns the bucket and the sums before it.
    """
    bucket, mass_before, count_before = 0, mass, count
    for i in range(BUCKETS):
        if numbers[i] > 0.0:
            bucket, mass_before, count_before = i, mass, count
            mass += masses[i]
            count += numbers[i]
            if mass >= wanted and count >= min_count:
                break
    return bucket, mass_before, count_before


@inline
def _sort_by_distance(distances, members, size):
    """Sort ``members`` by distance; a stable insertion sort."""
    for i in range(1, size):
        moving, j = members[i], i
        while j > 0 and distances[members[j - 1]] > distances[moving]:
            members[j] = members[j - 1]
            j -= 1
        members[j] = moving


@inline
def _cut(distances, weights, n, wanted, min_count, members, scratch):
    """The distance at which the nearest candidates reach ``wanted`` mass and ``min_count``, and how many to keep at it."""
    tail = scratch[scratch.size - SCRATCH_EXTRA :]
    masses, numbers = tail[: LANES * BUCKETS], tail[LANES * BUCKETS : 2 * LANES * BUCKETS]
    lanes, spare = two_blocks(scratch)
    bits = distances.view(np.int64)
    mass, count, size = 0.0, 0.0, n
    for i in range(min(n, SMALL + 1)):
        members[i] = i
    if n > SMALL:
        scale = BUCKETS / min(max(largest_of(distances[:n], lanes), 1e-300), DEEPEST)
        places = spare.view(np.int32)
        _spread(distances, weights, n, scale, masses, numbers, places)
        bucket, mass, count = _crossing(masses, numbers, mass, count, wanted, min_count)
        size = 0
        for start in range(0, n, BLOCK):
            part = distances[start : min(start + BLOCK, n)]
            _places(part, scale, places)
            n_members = np.int32(0)
            for j in range(part.size):
                n_members += np.int32(places[j] // LANES == bucket)
            if n_members > 0:
                for j in range(part.size):
                    members[np.uint32(size)] = start + j
                    size += places[j] // LANES == bucket
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
        masses[:BUCKETS] = 0.0
        numbers[:BUCKETS] = 0.0
        for i in range(size):
            place = (bits[members[i]] - low) >> shift
            masses[place] += weights[members[i]]
            numbers[place] += 1.0
        bucket, mass, count = _crossing(masses, numbers, mass, count, wanted, min_count)
        kept = 0
        for i in range(size):
            if (bits[members[i]] - low) >> shift == bucket:
                members[kept] = members[i]
                kept += 1
        size = kept
    if size <= SMALL:
        _sort_by_distance(distances, members, size)
    distance, ties = 0.0, 0
    for i in range(size):
        member = members[i]
        ties = ties + 1 if i > 0 and distances[member] == distance else 1
        distance = distances[member]
        mass += weights[member]
        count += 1.0
        if mass >= wanted and count >= min_count:
            break
    return distance, ties


@inline
def _keep_nearest(ids, x, n, distances, distance, ties):
    """Keep candidates nearer than ``distance``, and the first ``ties`` at exactly this distance."""
    kept = 0
    for start in range(0, n, BLOCK):
        part = distances[start : min(start + BLOCK, n)]
        n_nearer, n_equal = np.int64(0), np.int64(0)
        for j in range(part.size):
            n_nearer += part[j] < distance
            n_equal += part[j] == distance
        if n_nearer + n_equal == 0:
            continue
        # The store is unconditional: a branch here would be unpredictable.
        part_ids, part_x = ids[start : start + part.size], x[start : start + part.size]
        if n_equal == 0:
            for j in range(part.size):
                ids[np.uint32(kept)] = part_ids[j]
                x[np.uint32(kept)] = part_x[j]
                kept += part[j] < distance
        else:
            for j in range(part.size):
                ids[np.uint32(kept)] = part_ids[j]
                x[np.uint32(kept)] = part_x[j]
                kept += (part[j] < distance) | ((part[j] == distance) & (ties > 0))
                ties -= part[j] == distance
    return kept


@entry("i8(i4[::1], f8[::1], i8, i8, f8[::1])")
def top_k(ids, x, n, k, scratch):
    """Keep the ``k`` most likely candidates (1 or more)."""
    distances, weights, members = _parts(scratch, x.size)
    measure(x, n, distances, scratch)
    for i in range(n):
        weights[i] = 0.0
    distance, ties = _cut(distances, weights, n, 0.0, k, members, scratch)
    return _keep_nearest(ids, x, n, distances, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def top_p(ids, x, n, p, min_keep, scratch):
    """Keep the most likely candidates until they hold the probability ``p``, and at least ``min_keep`` (1 or more)."""
    distances, weights, members = _parts(scratch, x.size)
    total = weigh(x, n, distances, weights, scratch)
    distance, ties = _cut(distances, weights, n, p * total, min_keep, members, scratch)
    return _keep_nearest(ids, x, n, distances, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def typical(ids, x, n, p, min_keep, scratch):
    """Keep the candidates whose surprise is nearest the entropy until they hold the probability ``p``, at least ``min_keep``."""
    distances, weights, members = _parts(scratch, x.size)
    total = weigh(x, n, distances, weights, scratch)
    mean = mean_distance(n, distances, weights, total, scratch)
    for i in range(n):
        distances[i] = abs(distances[i] - mean)
    distance, ties = _cut(distances, weights, n, p * total, min_keep, members, scratch)
    return _keep_nearest(ids, x, n, distances, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def within(ids, x, n, distance, min_keep, scratch):
    """Keep candidates whose logit is at most ``distance`` below the largest, and at least ``min_keep`` (1 or more)."""
    distances, weights, members = _parts(scratch, x.size)
    measure(x, n, distances, scratch)
    n_within = 0
    for i in range(n):
        n_within += distances[i] <= distance
    if n_within == n:
        return n
    ties = n
    if n_within < min_keep:
        for i in range(n):
            weights[i] = 0.0
        distance, ties = _cut(distances, weights, n, 0.0, min_keep, members, scratch)
    return _keep_nearest(ids, x, n, distances, distance, ties)


@entry("void(f8[::1], i8, f8, f8[::1])")
def divide(x, n, temperature, scratch):
    """Divide the logits, relative to the largest, by ``temperature`` (0 or more); 0 keeps only the largest at 0."""
    lanes, _ = two_blocks(scratch)
    highest = largest_of(x[:n], lanes)
    for i in range(n):
        below = x[i] - highest
        cooled = below / temperature
        cooled = cooled if cooled > LOWEST else LOWEST
        x[i] = cooled if below < 0.0 else 0.0  # 0 / 0 is NaN


@entry("f8(f8[::1], i8, f8[::1])")
def deviation(x, n, scratch):
    """Standard deviation of the candidates' logits."""
    lanes, _ = two_blocks(scratch)
    mean, result = 0.0, 0.0
    for turn in range(2):  # the mean, then the mean squared deviation
        for j in range(BLOCK):
            lanes[j] = 0.0
        for start in range(0, n, BLOCK):
            part = x[start : min(start + BLOCK, n)]
            for j in range(part.size):
                lanes[j] += part[j] if turn == 0 else (part[j] - mean) * (part[j] - mean)
        result = halved(lanes) / n
        if turn == 0:
            mean = result
    return math.sqrt(result)


@entry("void(f8[::1], i8, f8[::1])")
def largest(x, n, out):
    """Write the largest logits of the candidates to ``out`` (float64 [1 to n]), descending."""
    size = out.size
    for i in range(size):
        out[i] = x[i]
    heapify(out, size)
    for i in range(size, n):
        if x[i] > out[0]:
            out[0] = x[i]
            sift(out, 0, size)
    _unheap(out, size)


@entry("f8(f8[::1], i8, f8[::1], f8[::1])")
def log_total(x, n, entropy, scratch):
    """log(sum(exp(x - max(x)))) of the candidates; writes their entropy in nats to ``entropy`` (float64 [1])."""
    distances, weights, _ = _parts(scratch, x.size)
    total = weigh(x, n, distances, weights, scratch)
    entropy[0] = math.log(total) + mean_distance(n, distances, weights, total, scratch)
    return math.log(total)


@entry("i8(i4[::1], f8[::1], i8, f8, i8)")
def exclude_top(ids, x, n, floor, min_keep):
    """XTC: of the candidates with a logit of ``floor`` or more, keep only the least likely (ties: the highest id).

    Keeps all if fewer than ``min_keep`` would be left.
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
def draw(x, n, uniform, surprise, scratch):
    """Draw a candidate by its probability, from ``uniform`` in [0, 1); returns its index.

    Inverse transform sampling over ascending ids. Writes the candidate's surprise, -log2 of its probability, to ``surprise``
    (float64 [1]).
    """
    distances, weights, _ = _parts(scratch, x.size)
    weigh(x, n, distances, weights, scratch)
    lanes, _ = two_blocks(scratch)
    sums, n_blocks, total = distances, 0, 0.0  # cumulative, by block; the distances are no longer needed
    for start in range(0, n, BLOCK):
        part = weights[start : min(start + BLOCK, n)]
        for j in range(BLOCK):
            lanes[j] = 0.0
        for j in range(part.size):
            lanes[j] = part[j]
        total += halved(lanes)
        sums[n_blocks] = total
        n_blocks += 1
    target = uniform * total
    block = first_above(sums, n_blocks, target)
    # The block's sum in this order may fall short of the target: then take its last candidate with any probability.
    mass = sums[block - 1] if block > 0 else 0.0
    place = block * BLOCK
    for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
        if weights[i] > 0.0:
            place = i
            mass += weights[i]
            if mass > target:
                break
    surprise[0] = -math.log2(weights[place] / total)
    return place
