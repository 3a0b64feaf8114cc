"""Sample a token from one row of logits: top-k, top-p, min-p, temperature and the draw, in one compiled call.

Every filter keeps a *prefix* of the vocabulary in the order (logit descending, id ascending), so the row is never sorted
as a whole. A token's position in that order is one int64, its rank: the logit's bits as a sortable integer in the high
word, the inverted id in the low word. ``_scan`` finds the best token and the largest logit of every block of 256; the
filters then compute the rank of the last token to keep; ``_draw`` visits the kept tokens by ascending id. Blocks whose
largest logit is below the cut are skipped, so a draw costs little more than reading the row once.

Probabilities are float64, except where the softmax covers the whole vocabulary (top-p without top-k, or no filter at
all): a float64 ``exp`` of 150,000 logits would cost more than everything else together, so a block of 256 is float32
there. All sums have a fixed order: the same logits and the same uniform number give the same token, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gumba.jit.heap import heapify, sift
from gumba.jit.jit import entry, inline

#: Tokens per block of the scan.
BLOCK = 256
#: Below this difference from the largest logit (divided by the temperature) a weight is 0: exp(-60) = 9e-27.
LOWEST = -60.0
#: Top-p without top-k sums probabilities in this many buckets of the distance from the largest logit; the last bucket
#: holds everything from DEEPEST on.
BUCKETS = 512
LANES = 4
DEEPEST = 32.0
#: Up to this many tokens are ordered with a heap.
SMALL = 64
#: float32 numbers at and above these bits are infinities and NaNs.
INFINITY_BITS = 0x7F800000


@inline
def _rank(bits, token):
    """Rank of ``token`` in the order (logit descending, id ascending) as an int64; larger is better.

    ``bits`` is the logit's float32 pattern as int32: sign and magnitude become two's complement, so that -0.0 equals
    0.0.
    """
    magnitude = np.int64(bits) & 0x7FFFFFFF
    return ((magnitude if bits >= 0 else -magnitude) << 32) | (0xFFFFFFFF - token)


@inline
def _token(rank):
    return 0xFFFFFFFF - (rank & 0xFFFFFFFF)


@inline
def _scan(bits, blocks):
    """Fill ``blocks`` (int32 [ceil(n / 256)]) with the largest key of each block; return the best token.

    ``bits`` (int32 [n]) are the logits' patterns. Returns ``-1 - token`` for the first token that is not finite.
    """
    best_block = 0
    for block in range(blocks.size):
        # A slice: its indices are known to be in range, so the loop needs no wrap-around and is vectorised.
        part = bits[block * BLOCK : (block + 1) * BLOCK]
        largest = np.int32(-0x7FFFFFFF)
        extreme = np.int32(0)
        for j in range(part.size):
            magnitude = np.int32(part[j] & np.int32(0x7FFFFFFF))
            largest = max(largest, magnitude if part[j] >= 0 else np.int32(-magnitude))
            extreme = max(extreme, magnitude)
        if extreme >= INFINITY_BITS:
            for j in range(part.size):
                if (part[j] & 0x7FFFFFFF) >= INFINITY_BITS:
                    return -1 - (block * BLOCK + j)
        blocks[block] = largest
        if largest > blocks[best_block]:
            best_block = block
    token = best_block * BLOCK
    while (_rank(bits[token], token) >> 32) != blocks[best_block]:
        token += 1
    return token


@inline
def _unheap(heap, size):
    """Sort the heap ``heap[:size]`` in descending order."""
    for last in range(size - 1, 0, -1):
        smallest = heap[0]
        heap[0] = heap[last]
        heap[last] = smallest
        sift(heap, 0, last)


@inline
def halved(lanes):
    """Sum of ``lanes`` (BLOCK numbers) by pairwise halving; overwrites them."""
    half = BLOCK // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]


@inline
def first_above(sums, size, target):
    """Index of the first of ``size`` ascending ``sums`` above ``target``; the last index if none is."""
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if sums[middle] > target:
            high = middle
        else:
            low = middle + 1
    return low


@inline
def _top_k(bits, blocks, k, heap):
    """Write the ranks of the ``k`` best tokens to ``heap[:k]``, best first."""
    for i in range(k):
        heap[i] = _rank(bits[i], i)
    heapify(heap, k)
    for block in range(k // BLOCK, blocks.size):
        if (np.int64(blocks[block]) << 32) + 0xFFFFFFFF < heap[0]:
            continue
        for i in range(max(block * BLOCK, k), min((block + 1) * BLOCK, bits.size)):
            rank = _rank(bits[i], i)
            if rank > heap[0]:
                heap[0] = rank
                sift(heap, 0, k)
    _unheap(heap, k)


@inline
def _weigh(logits, best, scale, terms, powers_bits, powers):
    """terms[j] = exp((logits[j] - best) * scale) for up to 256 logits, in float32 vector code; 0 past the end.

    ``terms`` float32 [256]; ``powers`` float32 [256] and its int32 view ``powers_bits`` are scratch.
    """
    for j in range(logits.size):
        # exp(x) = 2^whole * exp(rest), |rest| <= ln(2) / 2: ln(2) as a sum of two constants, and six terms of the series.
        x = max((logits[j] - best) * scale, np.float32(-80.0))
        whole = np.int32(x * np.float32(1.44269504) - np.float32(0.5))
        rest = x - np.float32(whole) * np.float32(0.693145751953125)
        rest = rest - np.float32(whole) * np.float32(1.42860677e-6)
        series = np.float32(1 / 720) * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(0.5)
        series = series * rest + np.float32(1.0)
        terms[j] = series * rest + np.float32(1.0)
        powers_bits[j] = (whole + np.int32(127)) << np.int32(23)
    for j in range(logits.size):
        terms[j] *= powers[j]
    for j in range(logits.size, BLOCK):
        terms[j] = np.float32(0.0)


@inline
def _mask(bits, first, last, terms):
    """Set the terms of a block's tokens (from id ``first``) that rank below ``last`` to 0."""
    cut = np.int32(last >> 32)
    # Among tokens whose logit equals the cut's, lower ids rank higher.
    ties = np.int32(min(_token(last) - first, np.int64(BLOCK)))
    for j in range(bits.size):
        magnitude = np.int32(bits[j] & np.int32(0x7FFFFFFF))
        key = magnitude if bits[j] >= 0 else np.int32(-magnitude)
        kept = key > cut or (key == cut and np.int32(j) <= ties)
        terms[j] = terms[j] if kept else np.float32(0.0)


@inline
def _mass(logits, bits, blocks, best, scale, last, masses, terms, powers_bits, powers):
    """Sum of exp((logit - best) * scale) over the tokens that rank at least ``last``.

    ``masses`` [blocks] receives the sum up to and including each block: float32 by pairwise halving within a block, float64
    across blocks.
    """
    total = 0.0
    for block in range(blocks.size):
        if blocks[block] >= (last >> 32):
            start = block * BLOCK
            _weigh(logits[start : start + BLOCK], best, scale, terms, powers_bits, powers)
            _mask(bits[start : start + BLOCK], start, last, terms)
            total += np.float64(halved(terms))
        masses[block] = total
    return total


@inline
def _draw_all(logits, bits, blocks, best, last, temperature, uniform, masses, terms, powers_bits, powers):
    """Draw from all tokens that rank at least ``last``: first the block, then the token inside it."""
    scale = np.float32(min(1.0 / temperature, 1e30))
    target = uniform * _mass(logits, bits, blocks, logits[best], scale, last, masses, terms, powers_bits, powers)
    block = 0
    while block + 1 < blocks.size and masses[block] <= target:
        block += 1
    before = masses[block - 1] if block > 0 else 0.0
    start = block * BLOCK
    part = logits[start : start + BLOCK]
    _weigh(part, logits[best], scale, terms, powers_bits, powers)
    _mask(bits[start : start + BLOCK], start, last, terms)
    mass = 0.0
    for j in range(part.size):
        mass += np.float64(terms[j])
    # The block's mass was summed in another order, so it differs slightly from the sequential sum of its terms.
    target = (target - before) / (masses[block] - before) * mass
    token, cumulative = 0, 0.0
    for j in range(part.size):
        if terms[j] > np.float32(0.0):
            token = j
            cumulative += np.float64(terms[j])
            if cumulative > target:
                break
    return start + token


@inline
def _key(bits):
    """The float32 pattern ``bits`` as a sortable int32; -0.0 equals 0.0."""
    return bits if bits >= 0 else np.int32(-(bits & np.int32(0x7FFFFFFF)))


@inline
def _crossed(buckets, mass, wanted):
    """The first bucket where the running sum, starting at ``mass``, reaches ``wanted`` (else the last non-empty one), and the
    sum before it."""
    crossed, before = 0, mass
    for bucket in range(BUCKETS):
        if buckets[bucket] > 0.0:
            crossed, before = bucket, mass
            mass += buckets[bucket]
            if mass >= wanted:
                break
    return crossed, before


@inline
def _histogram(logits, highest, buckets, terms, powers_bits, powers):
    """Sum weights (1 for the best token) by distance from the largest logit into ``buckets`` (float64 [LANES * BUCKETS]);
    return the total.

    Neighbouring tokens are summed in different lanes, so that no addition waits for the previous one.
    """
    places = powers_bits  # free once the terms are computed
    for i in range(LANES * BUCKETS):
        buckets[i] = 0.0
    for start in range(0, logits.size, BLOCK):
        part = logits[start : start + BLOCK]
        _weigh(part, highest, np.float32(1.0), terms, powers_bits, powers)
        for j in range(part.size):
            places[j] = np.int32(min((highest - part[j]) * np.float32(BUCKETS / DEEPEST), np.float32(BUCKETS - 1)))
        for j in range(part.size, BLOCK):
            places[j] = 0
        for j in range(0, BLOCK, LANES):
            for lane in range(LANES):
                buckets[np.uint32(places[j + lane] * LANES + lane)] += np.float64(terms[j + lane])
    total = 0.0
    for i in range(BUCKETS):
        mass = 0.0
        for lane in range(LANES):
            mass += buckets[i * LANES + lane]
        buckets[i] = mass
        total += mass
    return total


@inline
def _cut_top_p(logits, bits, blocks, best, top_p, heap, buckets, terms, powers_bits, powers):
    """Rank of the last token that top-p keeps of the whole vocabulary.

    No sort: probabilities are summed in buckets by their logit's distance from the largest, and the bucket in which the sum
    is reached is subdivided by the bits of its logits until it is small enough to be ordered.
    """
    highest = logits[best]
    wanted = top_p * _histogram(logits, highest, buckets, terms, powers_bits, powers)
    bucket, mass = _crossed(buckets, 0.0, wanted)
    # Keys of the bucket's tokens range from low to high. Distances are rounded as in the histogram.
    low, high, size = np.int64(0x7FFFFFFF), np.int64(-0x7FFFFFFF), 0
    for block in range(blocks.size):
        nearest = highest - np.float32(_key_value(blocks[block], powers_bits, powers))
        if np.int32(min(nearest * np.float32(BUCKETS / DEEPEST), np.float32(BUCKETS - 1))) > bucket:
            continue
        start = block * BLOCK
        part = logits[start : start + BLOCK]
        for j in range(part.size):
            place: Any = np.int32(min((highest - part[j]) * np.float32(BUCKETS / DEEPEST), np.float32(BUCKETS - 1)))
            powers_bits[j] = np.int32(place == bucket)
        for j in range(part.size):
            heap[np.uint32(size)] = start + j
            size += powers_bits[j]
    for i in range(size):
        key = np.int64(_key(bits[heap[i]]))
        low, high = min(low, key), max(high, key)
    while size > SMALL and low < high:
        width = (high - low) // BUCKETS + 1
        for place in range(BUCKETS):
            buckets[place] = 0.0
        for i in range(size):
            place = (high - np.int64(_key(bits[heap[i]]))) // width
            buckets[place] += math.exp(np.float64(logits[heap[i]]) - np.float64(highest))
        bucket, mass = _crossed(buckets, mass, wanted)
        top, kept = high, 0
        low, high = np.int64(0x7FFFFFFF), np.int64(-0x7FFFFFFF)
        for i in range(size):
            key = np.int64(_key(bits[heap[i]]))
            if (top - key) // width == bucket:
                low, high = min(low, key), max(high, key)
                heap[kept] = heap[i]
                kept += 1
        size = kept
    if size > SMALL:  # all have the same value: keep them by ascending id
        weight = math.exp(np.float64(logits[heap[0]]) - np.float64(highest))
        index = 0
        while index + 1 < size and mass + weight < wanted:
            mass += weight
            index += 1
        return _rank(bits[heap[index]], heap[index])
    for i in range(size):
        heap[i] = -_rank(bits[heap[i]], heap[i])
    heapify(heap, size)
    last = -heap[0]
    while size > 0:
        last = -heap[0]
        mass += math.exp(np.float64(logits[_token(last)]) - np.float64(highest))
        if mass >= wanted:
            break
        size -= 1
        heap[0] = heap[size]
        sift(heap, 0, size)
    return last


@inline
def _cut_min_p(highest, min_p, powers_bits, powers):
    """Rank of the last token that min-p keeps."""
    floor = math.log(min_p)
    powers[0] = np.float32(np.float64(highest) + floor)
    key = np.int64(_key(powers_bits[0]))
    # The smallest float32 that is close enough to the largest logit.
    while _key_value(key, powers_bits, powers) - np.float64(highest) >= floor:
        key -= 1
    while _key_value(key, powers_bits, powers) - np.float64(highest) < floor:
        key += 1
    return key << 32


@inline
def _key_value(key, powers_bits, powers):
    """The float32 logit that has this sortable key, as float64."""
    magnitude = key if key >= 0 else -key
    powers_bits[0] = np.int32(magnitude)
    return np.float64(powers[0]) if key >= 0 else -np.float64(powers[0])


@inline
def _draw(logits, bits, blocks, best, last, floor, temperature, uniform, heap, weights):
    """Draw from the tokens that rank at least ``last`` and lie at most ``-floor`` below the largest logit.

    Inverse transform sampling: the cumulative distribution over ascending ids, evaluated at ``uniform``.
    """
    highest = np.float64(logits[best])
    scale = 1.0 / temperature
    size = 0
    total = 0.0
    for block in range(blocks.size):
        if blocks[block] < (last >> 32):
            continue
        for i in range(block * BLOCK, min((block + 1) * BLOCK, bits.size)):
            difference = np.float64(logits[i]) - highest
            # Not difference * scale: a temperature near 0 has an infinite scale, and 0 * infinity is NaN.
            exponent = difference * scale if difference < 0.0 else 0.0
            if difference >= floor and exponent > LOWEST and _rank(bits[i], i) >= last:
                total += math.exp(exponent)
                weights[size] = total
                heap[size] = i
                size += 1
    return heap[first_above(weights, size, uniform * total)]


@inline
def _min_p_floor(min_p):
    return math.log(min_p) if min_p > 0.0 else -np.inf


@entry("i8(f4[::1], i8, f8, f8, f8, f8, i4[::1], i8[::1], f8[::1])")
def sample_top_k(logits, top_k, top_p, min_p, temperature, uniform, blocks, heap, weights):
    """Sample a token: top-k, top-p, min-p, temperature, draw, in this order; ``top_k`` 1 is greedy (ties: lowest id).

    ``logits`` float32 [n]; ``top_k`` 1 to n, ``top_p`` above 0 (1 keeps all), ``min_p`` (0 keeps all), ``temperature``
    above 0; ``uniform`` in [0, 1) determines the draw. Scratch: ``blocks`` int32 [ceil(n / 256)], ``heap`` int64 [n],
    ``weights`` float64 [n]. Returns the token, or ``-1 - token`` for a logit that is NaN or infinite.
    """
    bits = logits.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0 or top_k == 1:
        return best
    _top_k(bits, blocks, top_k, heap)
    kept = top_k
    if top_p < 1.0:
        wanted = 0.0
        for i in range(top_k):
            weights[i] = math.exp(np.float64(logits[_token(heap[i])]) - np.float64(logits[best]))
            wanted += weights[i]
        wanted *= top_p
        cumulative = weights[0]
        kept = 1
        while cumulative < wanted and kept < top_k:
            cumulative += weights[kept]
            kept += 1
    return _draw(logits, bits, blocks, best, heap[kept - 1], _min_p_floor(min_p), temperature, uniform, heap, weights)


@entry("i8(f4[::1], f8, f8, f8, f8, i4[::1], i8[::1], f8[::1], f4[::1])")
def sample_all(logits, top_p, min_p, temperature, uniform, blocks, heap, weights, terms):
    """Sample a token without top-k: the other steps of ``sample_top_k``; ``terms`` float32 [512] is further scratch.

    A separate entry because it takes longer to compile than the usual one; it is compiled on first use.
    """
    bits = logits.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0:
        return best
    powers = terms[BLOCK:]
    powers_bits = powers.view(np.int32)
    # The lowest float32 is the logit of banned tokens, which are never drawn.
    last = np.int64(-0x7F7FFFFE) << 32
    if top_p < 1.0:
        cut = _cut_top_p(logits, bits, blocks, best, top_p, heap, weights, terms, powers_bits, powers)
        last = max(last, cut)
    if min_p > 0.0:
        last = max(last, _cut_min_p(logits[best], min_p, powers_bits, powers))
    return _draw_all(logits, bits, blocks, best, last, temperature, uniform, weights, terms, powers_bits, powers)
