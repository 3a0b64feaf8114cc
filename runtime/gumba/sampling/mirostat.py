"""Mirostat: keep the surprise of the tokens drawn near a target (Basu et al., "Mirostat: a neural text decoding algorithm
that directly controls perplexity", 2021)."""

from __future__ import annotations

import math

import numpy as np

from gumba.sampling.candidates import Candidates

#: Version 1 estimates the exponent of Zipf's law from this many of the most likely tokens.
_ZIPF_TOKENS = 100


def keep_zipf_top_k(candidates: Candidates, mu: float, n_vocab: int) -> None:
    """Version 1: keep as many of the most likely tokens as give a surprise of ``mu`` bits by Zipf's law (algorithm 1)."""
    n = candidates.n
    if n == 1:
        return
    m = min(_ZIPF_TOKENS, n)
    likeliest = candidates.largest_logits(m)
    ranks = np.arange(1, m)
    gaps = np.log((ranks + 1) / ranks)
    exponent = float((gaps * (likeliest[:-1] - likeliest[1:])).sum() / (gaps * gaps).sum())
    # k = (e 2^mu / (1 - N^-e)) ^ (1 / exponent) with e = exponent - 1: in logarithms, which do not overflow.
    size, excess = math.log(n_vocab), exponent - 1.0
    if excess < -1e-9:
        ratio = math.log(-excess) - (-excess * size) - math.log1p(-math.exp(excess * size))
    else:
        ratio = math.log(excess / -math.expm1(-excess * size)) if excess > 1e-9 else -math.log(size)
    log_power = ratio + mu * math.log(2)
    # Equal logits, whose exponent is 0, keep all or one.
    log_k = log_power / exponent if exponent > 0 else math.copysign(math.inf, log_power)
    log_k = min(max(log_k, 0.0), math.log(n) + 1.0)
    candidates.keep_top_k(min(max(int(math.exp(log_k)), 1), n))


def keep_below_surprise(candidates: Candidates, mu: float) -> None:
    """Version 2: keep tokens whose surprise is at most ``mu`` bits, or the most likely one (algorithm 2)."""
    # The bound as a distance from the largest logit, in nats.
    distance = mu * math.log(2) - candidates.log_total()
    if distance >= 0:
        candidates.keep_within(distance, 1)
    else:
        candidates.keep_top_k(1)
