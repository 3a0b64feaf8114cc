"""Filters of the candidates for a token, for chains that ``gumba.sampling.kernels.sample`` does not cover.

Candidates are token ids ``ids`` (int32, ascending) and their logits ``x`` (float64), of which the first ``n`` count; a filter
moves those it keeps to the front, in their order, and returns how many they are. Nothing is sorted: where a filter keeps the
nearest to something until they hold enough probability, distances are put into 512 buckets, and the bucket in which enough is
reached is looked into again, by the bits of its distances, until it is small (``_cut``). At equal distance lower ids come
first. All sums have a fixed order.

``room`` (float64 [3 * x.size + ROOM]) is scratch: distances, weights, and the rest. Each entry is compiled when it is first
wanted.
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
#: Scratch besides what is as long as the candidates: sums and counts by bucket, two blocks, and a block of places.
ROOM = 2 * LANES * BUCKETS + 2 * BLOCK
#: This many candidates are simply put in order.
SMALL = 64
#: Distances from here on are in one bucket of the first round: exp(-32) = 1e-14.
DEEPEST = 32.0
#: How far below the largest a logit can be once temperature has divided it.
LOWEST = -1e300


@entry("i8(f4[::1], i4[::1], f8[::1])")
def gather(row, ids, x):
    """Take all tokens of ``row`` that are not BANNED as candidates; how many.

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
            own_ids, own_x = ids[size : size + part.size], x[size : size + part.size]
            for j in range(part.size):
                own_ids[j] = np.int32(start + j)
                own_x[j] = np.float64(part[j])
            size += part.size
        else:
            for j in range(part.size):
                ids[np.uint32(size)] = start + j
                x[np.uint32(size)] = np.float64(part[j])
                size += part[j] != BANNED
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
    heapify(heap, k)
    _unheap(heap, k)
    size = 0
    for i in range(k):
        ids[size] = -heap[i]
        x[size] = np.float64(row[-heap[i]])
        size += row[-heap[i]] != BANNED
    return size


@inline
def _parts(room, size):
    """The parts of ``room`` that are as long as ``x``: distances, weights, members (int64)."""
    return room[:size], room[size : 2 * size], room[2 * size : 3 * size].view(np.int64)


@inline
def _places(far, scale, places):
    """Of up to 256 distances, the bucket and a lane: ``bucket * LANES + lane``, in int32 [256]."""
    for j in range(far.size):
        places[j] = np.int32(min(far[j] * scale, BUCKETS - 1.0)) * np.int32(LANES) + np.int32(j % LANES)


@inline
def _spread(far, weights, n, scale, masses, numbers, places):
    """Sum and count ``weights`` by bucket, into the first BUCKETS of ``masses`` and ``numbers`` (float64 [LANES * BUCKETS]).

    Neighbours are summed in different lanes, so that no addition waits for the one before it.
    """
    for i in range(LANES * BUCKETS):
        masses[i] = 0.0
        numbers[i] = 0.0
    for start in range(0, n, BLOCK):
        part, own = far[start : min(start + BLOCK, n)], weights[start : min(start + BLOCK, n)]
        _places(part, scale, places)
        for j in range(part.size):
            place = np.uint32(places[j])
            masses[place] += own[j]
            numbers[place] += 1.0
    for i in range(BUCKETS):
        held, count = 0.0, 0.0
        for lane in range(LANES):
            held += masses[i * LANES + lane]
            count += numbers[i * LANES + lane]
        masses[i] = held
        numbers[i] = count


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
    tail = room[room.size - ROOM :]
    masses, numbers = tail[: LANES * BUCKETS], tail[LANES * BUCKETS : 2 * LANES * BUCKETS]
    lanes, spare = two_blocks(room)
    bits = far.view(np.int64)
    held, count, size = 0.0, 0.0, n
    for i in range(min(n, SMALL + 1)):
        members[i] = i
    if n > SMALL:
        scale = BUCKETS / min(max(largest_of(far[:n], lanes), 1e-300), DEEPEST)
        places = spare.view(np.int32)
        _spread(far, weights, n, scale, masses, numbers, places)
        bucket, held, count = _crossing(masses, numbers, held, count, wanted, least)
        size = 0
        for start in range(0, n, BLOCK):
            part = far[start : min(start + BLOCK, n)]
            _places(part, scale, places)
            found = np.int32(0)
            for j in range(part.size):
                found += np.int32(places[j] // LANES == bucket)
            if found > 0:
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
    for start in range(0, n, BLOCK):
        part = far[start : min(start + BLOCK, n)]
        near, at = np.int64(0), np.int64(0)
        for j in range(part.size):
            near += part[j] < distance
            at += part[j] == distance
        if near + at == 0:
            continue
        # Written in any case, and without a branch, which nobody could predict.
        own_ids, own_x = ids[start : start + part.size], x[start : start + part.size]
        if at == 0:
            for j in range(part.size):
                ids[np.uint32(kept)] = own_ids[j]
                x[np.uint32(kept)] = own_x[j]
                kept += part[j] < distance
        else:
            for j in range(part.size):
                ids[np.uint32(kept)] = own_ids[j]
                x[np.uint32(kept)] = own_x[j]
                kept += (part[j] < distance) | ((part[j] == distance) & (ties > 0))
                ties -= part[j] == distance
    return kept


@entry("i8(i4[::1], f8[::1], i8, i8, f8[::1])")
def top_k(ids, x, n, k, room):
    """Keep the ``k`` likeliest, 1 or more."""
    far, weights, members = _parts(room, x.size)
    measure(x, n, far, room)
    for i in range(n):
        weights[i] = 0.0
    distance, ties = _cut(far, weights, n, 0.0, k, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def top_p(ids, x, n, p, min_keep, room):
    """Keep the likeliest until they hold the probability ``p``, and at least ``min_keep`` (1 or more)."""
    far, weights, members = _parts(room, x.size)
    total = weigh(x, n, far, weights, room)
    distance, ties = _cut(far, weights, n, p * total, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def typical(ids, x, n, p, min_keep, room):
    """As ``top_p``, but the nearest are those whose surprise is nearest the entropy."""
    far, weights, members = _parts(room, x.size)
    total = weigh(x, n, far, weights, room)
    mean = mean_distance(n, far, weights, total, room)
    for i in range(n):
        far[i] = abs(far[i] - mean)
    distance, ties = _cut(far, weights, n, p * total, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("i8(i4[::1], f8[::1], i8, f8, i8, f8[::1])")
def within(ids, x, n, distance, min_keep, room):
    """Keep those whose logit is at most ``distance`` below the largest, and at least ``min_keep`` (1 or more)."""
    far, weights, members = _parts(room, x.size)
    measure(x, n, far, room)
    near = 0
    for i in range(n):
        near += far[i] <= distance
    if near == n:
        return n
    ties = n
    if near < min_keep:
        for i in range(n):
            weights[i] = 0.0
        distance, ties = _cut(far, weights, n, 0.0, min_keep, members, room)
    return _keep_nearest(ids, x, n, far, distance, ties)


@entry("void(f8[::1], i8, f8, f8[::1])")
def divide(x, n, temperature, room):
    """Logits below the largest, divided by ``temperature`` (0 or more); one of 0 leaves the largest alone."""
    lanes, _ = two_blocks(room)
    highest = largest_of(x[:n], lanes)
    for i in range(n):
        below = x[i] - highest
        cooled = below / temperature
        cooled = cooled if cooled > LOWEST else LOWEST
        x[i] = cooled if below < 0.0 else 0.0  # 0 / 0 is not a number


@entry("f8(f8[::1], i8, f8[::1])")
def deviation(x, n, room):
    """Standard deviation of the candidates' logits."""
    lanes, _ = two_blocks(room)
    mean, result = 0.0, 0.0
    for turn in range(2):  # the mean, then the mean square of what is left without it
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
    """``out`` (float64 [1 to n]) gets the largest logits of the candidates, descending."""
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
def log_total(x, n, entropy, room):
    """log(sum(exp(x - max(x)))) of the candidates; ``entropy`` float64 [1] gets that of their probabilities, in nats."""
    far, weights, _ = _parts(room, x.size)
    total = weigh(x, n, far, weights, room)
    entropy[0] = math.log(total) + mean_distance(n, far, weights, total, room)
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
    far, weights, _ = _parts(room, x.size)
    weigh(x, n, far, weights, room)
    lanes, _ = two_blocks(room)
    sums, n_blocks, total = far, 0, 0.0  # up to and with each block; distances are not needed any more
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
    # The block's own sum, in another order, may not reach the target: then its last candidate with any probability.
    held = sums[block - 1] if block > 0 else 0.0
    place = block * BLOCK
    for i in range(block * BLOCK, min((block + 1) * BLOCK, n)):
        if weights[i] > 0.0:
            place = i
            held += weights[i]
            if held > target:
                break
    surprise[0] = -math.log2(weights[place] / total)
    return place
