"""Choosing a token from one row of logits: top-k, top-p, min-p, temperature and the draw, in one compiled call.

Every filter keeps a *prefix* of the vocabulary in the order (logit descending, id ascending), so nothing is sorted that
need not be. A token's place in that order is one int64, its rank: the logit's bits as a sortable integer above, the
inverted id below. ``_scan`` finds the best token and the largest logit of every block of 256; then the rank of the last
token that top-k and top-p keep is found; ``_draw`` walks the kept tokens by ascending id. Blocks whose best is below
the cut are skipped, so a draw costs little more than reading the row once.

Probabilities are float64, except where the whole vocabulary is weighed (top-p without top-k, or no filter at all): a
float64 ``exp`` of 150,000 logits would cost more than everything else together, so each block of 256 is float32 there.
All sums have a fixed order: the same logits and the same uniform number give the same token, bit for bit.
"""

from __future__ import annotations

import math

import numpy as np

from gumba.kernels.jit import entry, inline

#: Tokens per block of the scan.
BLOCK = 256
#: Below this difference from the best logit (divided by the temperature) a weight is zero: exp(-60) = 9e-27.
LOWEST = -60.0
#: float32 numbers at and above these bits are infinities and NaNs.
INFINITY_BITS = 0x7F800000


@inline
def _rank(bits, token):
    """Place of ``token`` in the order of (logit descending, id ascending) as an int64, larger is better.

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
    """Fill ``blocks`` (int32 [ceil(n / 256)]) with each block's largest key; return the best token.

    ``bits`` (int32 [n]) are the logits' patterns. Returns ``-1 - token`` for the first token that is not finite.
    """
    best_block = 0
    for block in range(blocks.size):
        # A slice: its indices are known to be in range, which leaves the loop free of wrap-around and so vectorised.
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
def _sift(heap, root, size):
    """Restore the heap (smallest on top) of ``heap[:size]`` below ``root``."""
    value = heap[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[root] = heap[child]
        root = child
    heap[root] = value


@inline
def _top_k(bits, blocks, k, heap):
    """Put the ranks of the ``k`` best tokens into ``heap[:k]``, best first."""
    for i in range(k):
        heap[i] = _rank(bits[i], i)
    for i in range(k // 2 - 1, -1, -1):
        _sift(heap, i, k)
    for block in range(k // BLOCK, blocks.size):
        if (np.int64(blocks[block]) << 32) + 0xFFFFFFFF < heap[0]:
            continue
        for i in range(max(block * BLOCK, k), min((block + 1) * BLOCK, bits.size)):
            rank = _rank(bits[i], i)
            if rank > heap[0]:
                heap[0] = rank
                _sift(heap, 0, k)
    for size in range(k - 1, 0, -1):
        smallest = heap[0]
        heap[0] = heap[size]
        heap[size] = smallest
        _sift(heap, 0, size)


@inline
def _weigh(logits, best, scale, terms, powers_bits, powers):
    """terms[j] = exp((logits[j] - best) * scale) for up to 256 logits, in float32 vector code; 0 past their end.

    ``terms`` float32 [256]; ``powers`` float32 [256] and its int32 view ``powers_bits`` are scratch.
    """
    for j in range(logits.size):
        # exp(x) = 2^whole * exp(rest), |rest| <= ln(2) / 2: ln(2) in two parts, and six terms of the series.
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
def _mass(logits, best, scale, masses, terms, powers_bits, powers):
    """Sum of exp((logit - best) * scale) over the vocabulary; ``masses`` [blocks] gets the sum up to and with each block.

    float32 within a block, halved again and again, and float64 across blocks.
    """
    total = 0.0
    for start in range(0, logits.size, BLOCK):
        _weigh(logits[start : start + BLOCK], best, scale, terms, powers_bits, powers)
        half = BLOCK // 2
        while half > 0:
            for j in range(half):
                terms[j] += terms[j + half]
            half //= 2
        total += np.float64(terms[0])
        masses[start // BLOCK] = total
    return total


@inline
def _draw_all(logits, best, temperature, uniform, masses, terms, powers_bits, powers):
    """Draw from the whole vocabulary: first the block, then the token in it."""
    scale = np.float32(min(1.0 / temperature, 1e30))
    target = uniform * _mass(logits, logits[best], scale, masses, terms, powers_bits, powers)
    block = 0
    while block + 1 < (logits.size + BLOCK - 1) // BLOCK and masses[block] <= target:
        block += 1
    before = masses[block - 1] if block > 0 else 0.0
    part = logits[block * BLOCK : (block + 1) * BLOCK]
    _weigh(part, logits[best], scale, terms, powers_bits, powers)
    held = 0.0
    for j in range(part.size):
        held += np.float64(terms[j])
    # The block's mass, summed in another order, is not quite what its terms add up to one by one.
    target = (target - before) / (masses[block] - before) * held
    token = 0
    cumulative = np.float64(terms[0])
    while token + 1 < part.size and cumulative <= target:
        token += 1
        cumulative += np.float64(terms[token])
    return block * BLOCK + token


@inline
def _cut_top_p(logits, bits, blocks, best, top_p, heap, masses, terms, powers_bits, powers):
    """Rank of the last token that top-p keeps out of the whole vocabulary.

    Only tokens near the best are ordered: those within 4 of it, 8, 16, ... until they hold enough probability.
    """
    highest = np.float64(logits[best])
    wanted = top_p * _mass(logits, logits[best], np.float32(1.0), masses, terms, powers_bits, powers)
    depth = 4.0
    size = 0
    held = 0.0
    while True:
        # Each round appends the tokens whose distance from the best lies in (depth / 2, depth].
        nearest = depth * 0.5 if size > 0 else -1.0
        for block in range(blocks.size):
            top = _token_value(blocks[block], powers_bits, powers)
            if highest - top > depth:
                continue
            for i in range(block * BLOCK, min((block + 1) * BLOCK, bits.size)):
                distance = highest - np.float64(logits[i])
                if nearest < distance and distance <= depth:
                    heap[size] = -_rank(bits[i], i)
                    size += 1
                    held += math.exp(-distance)
        if size == bits.size or held > wanted * 1.00001:
            break
        depth *= 2.0
    for i in range(size // 2 - 1, -1, -1):
        _sift(heap, i, size)
    cumulative = 0.0
    last = -heap[0]
    while size > 0:
        last = -heap[0]
        cumulative += math.exp(np.float64(logits[_token(last)]) - highest)
        if cumulative >= wanted:
            break
        size -= 1
        heap[0] = heap[size]
        _sift(heap, 0, size)
    return last


@inline
def _token_value(key, powers_bits, powers):
    """The float32 logit that has this sortable key, as float64."""
    magnitude = key if key >= 0 else -key
    powers_bits[0] = np.int32(magnitude)
    return np.float64(powers[0]) if key >= 0 else -np.float64(powers[0])


@inline
def _draw(logits, bits, blocks, best, last, floor, temperature, uniform, heap, weights):
    """Draw from the tokens that rank at least ``last`` and lie at most ``-floor`` below the best logit.

    Inverse of the cumulative distribution at ``uniform``, over ascending ids.
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
            # Not difference * scale: a temperature near zero has an infinite scale, and 0 * infinity is not a number.
            exponent = difference * scale if difference < 0.0 else 0.0
            if difference >= floor and exponent > LOWEST and _rank(bits[i], i) >= last:
                total += math.exp(exponent)
                weights[size] = total
                heap[size] = i
                size += 1
    target = uniform * total
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if weights[middle] > target:
            high = middle
        else:
            low = middle + 1
    return heap[low]


@inline
def _min_p_floor(min_p):
    return math.log(min_p) if min_p > 0.0 else -np.inf


@entry("i8(f4[::1], i8, f8, f8, f8, f8, i4[::1], i8[::1], f8[::1])")
def sample_top_k(logits, top_k, top_p, min_p, temperature, uniform, blocks, heap, weights):
    """Choose a token: top-k, top-p, min-p, temperature, draw, in this order; ``top_k`` 1 takes the likeliest (lowest id).

    ``logits`` float32 [n]; ``top_k`` 1 to n, ``top_p`` above 0 (1 keeps all), ``min_p`` (0 keeps all), ``temperature``
    above 0; ``uniform`` in [0, 1) decides the draw. Scratch: ``blocks`` int32 [ceil(n / 256)], ``heap`` int64 [n],
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
    """As ``sample_top_k`` with a ``top_k`` of n; ``terms`` float32 [512] is further scratch.

    A function of its own, compiled when it is first wanted, because it takes longer to compile than the usual one.
    """
    bits = logits.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0:
        return best
    powers = terms[BLOCK:]
    powers_bits = powers.view(np.int32)
    if top_p == 1.0 and min_p == 0.0:
        return _draw_all(logits, best, temperature, uniform, weights, terms, powers_bits, powers)
    last = np.int64(-0x7FFFFFFFFFFFFFFF)
    if top_p < 1.0:
        last = _cut_top_p(logits, bits, blocks, best, top_p, heap, weights, terms, powers_bits, powers)
    return _draw(logits, bits, blocks, best, last, _min_p_floor(min_p), temperature, uniform, heap, weights)
