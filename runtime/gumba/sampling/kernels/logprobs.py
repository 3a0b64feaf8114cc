"""Log-probabilities of tokens: the log-softmax of a row of logits in float64, and the most likely tokens."""

from __future__ import annotations

import math

import numpy as np

from gumba.jit.jit import entry
from gumba.sampling.kernels.candidate_weights import decay
from gumba.sampling.kernels.sample import BLOCK, _rank, _scan, _top_k, halved


@entry("i8(f4[::1], i8, i8, i4[::1], i8[::1], f8[::1], f8[::1])")
def log_softmax(logits, token, top_k, blocks, heap, scratch, result):
    """Write the largest logit and log(sum(exp(logits - largest))) to ``result`` (float64 [2]), and count better tokens.

    ``heap[:top_k]`` receives the ranks of the most likely tokens, best first. ``logits`` float32 [n]; ``top_k`` 0 to n.
    Returns the number of tokens that rank above ``token`` (ties: lower ids first), or ``-1 - token`` for a logit that is not
    finite. Working space: ``blocks`` and ``heap`` as in ``sample_top_k``, ``scratch`` float64 [1024].
    """
    bits = logits.view(np.int32)
    best = _scan(bits, blocks)
    if best < 0:
        return best
    distances, weights, powers = scratch[:BLOCK], scratch[BLOCK : 2 * BLOCK], scratch[2 * BLOCK : 3 * BLOCK]
    lanes, powers_bits = scratch[3 * BLOCK : 4 * BLOCK], powers.view(np.int64)
    highest = np.float64(logits[best])
    for j in range(BLOCK):
        lanes[j] = 0.0
    for start in range(0, logits.size, BLOCK):
        part = logits[start : start + BLOCK]
        for j in range(part.size):
            distances[j] = highest - np.float64(part[j])
        decay(distances[: part.size], weights, powers, powers_bits)
        for j in range(part.size):
            lanes[j] += weights[j]
    result[0] = highest
    result[1] = math.log(halved(lanes))
    if top_k > 0:
        _top_k(bits, blocks, top_k, heap)
    own = _rank(bits[token], token)
    likelier = 0
    for block in range(blocks.size):
        if blocks[block] >= (own >> 32):
            for i in range(block * BLOCK, min((block + 1) * BLOCK, bits.size)):
                likelier += _rank(bits[i], i) > own
    return likelier
