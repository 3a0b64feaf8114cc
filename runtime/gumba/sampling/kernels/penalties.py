"""Edits of a row of logits before sampling: banned tokens, penalties, DRY, repeated n-grams.

Edits work on a copy of the row (``copy_row``). A banned token has the logit ``BANNED``: finite, so that the sampling kernels
need no special case, and so low that its probability is 0. Occurrences are counted in ``marks``, an int32 per token of the
vocabulary, which is all zeros between calls.

Penalties and DRY come in two forms: on a whole row (``row``, float32), and on the candidates that filters kept (the first
``n`` of ``ids``, int32, and ``x``, float64).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gumba.jit.jit import entry, inline

#: The logit of a banned token: the lowest float32.
BANNED = np.float32(-3.4028234663852886e38)
#: No penalty brings a logit below this, so that it stays above BANNED.
LOWEST_LOGIT = -3.0e38
INFINITY_BITS = 0x7F800000


@entry("i8(f4[::1], u4[::1], f4[::1])")
def copy_row(logits, mask, row):
    """Copy ``logits`` to ``row`` (float32 [n]), with BANNED for tokens whose ``mask`` bit is 0.

    Bit i % 32 of word i // 32 of ``mask`` (uint32 [ceil(n / 32)], or empty to allow all) is token i. Returns 0, or
    ``-1 - token`` for a logit that is NaN or infinite, masked or not.
    """
    bits = logits.view(np.int32)
    for start in range(0, logits.size, 32):
        # Slices: their indices are known to be in range, so these loops become vector code.
        part, out, patterns = logits[start : start + 32], row[start : start + 32], bits[start : start + 32]
        extreme = np.int32(0)
        for j in range(patterns.size):
            extreme = max(extreme, np.int32(patterns[j] & np.int32(0x7FFFFFFF)))
        if extreme >= INFINITY_BITS:
            for j in range(part.size):
                if (bits[start + j] & 0x7FFFFFFF) >= INFINITY_BITS:
                    return -1 - (start + j)
        if mask.size == 0 or mask[start >> 5] == np.uint32(0xFFFFFFFF):
            for j in range(part.size):
                out[j] = part[j]
        elif mask[start >> 5] == np.uint32(0):
            for j in range(part.size):
                out[j] = BANNED
        else:
            word = mask[start >> 5]
            for j in range(part.size):
                out[j] = part[j] if (word >> np.uint32(j)) & np.uint32(1) else BANNED
    return 0


@inline
def _penalized(logit, count, repetition, frequency, presence):
    """The penalized logit of a token that occurred ``count`` times (1 or more)."""
    logit = logit / repetition if logit > 0.0 else logit * repetition
    return max(logit - count * frequency - presence, LOWEST_LOGIT)


@entry("void(f4[::1], i4[::1], i4[::1], f8, f8, f8)")
def penalize_row(row, window, marks, repetition, frequency, presence):
    """Penalize the tokens of ``window`` (int32 [any]) in a row; banned tokens stay banned."""
    for i in range(window.size):
        marks[window[i]] += 1
    for i in range(window.size):
        token = window[i]
        if marks[token] > 0 and row[token] != BANNED:
            value = _penalized(np.float64(row[token]), marks[token], repetition, frequency, presence)
            row[token] = np.float32(min(value, -LOWEST_LOGIT))
        marks[token] = 0


@entry("void(i4[::1], f8[::1], i8, i4[::1], i4[::1], f8, f8, f8)")
def penalize(ids, x, n, window, marks, repetition, frequency, presence):
    """Penalize the candidates that occur in ``window`` (int32 [any])."""
    for i in range(window.size):
        marks[window[i]] += 1
    for i in range(n):
        if marks[ids[i]] > 0:
            x[i] = _penalized(x[i], marks[ids[i]], repetition, frequency, presence)
    for i in range(window.size):
        marks[window[i]] = 0


@inline
def _mark_repetitions(window, limit, allowed, lengths, marks):
    """marks[t] = length of the longest repetition, ``allowed`` or more, that token t would continue.

    A repetition of L tokens: the last L of ``window``, L at most ``limit``, also occur earlier in it, followed by t.
    ``lengths`` int32 [window.size] is scratch: the length of the common suffix of the window and of its prefix ending at p
    (the Z function of the reversed window; Gusfield, "Algorithms on strings, trees and sequences", 1997): linear time.
    """
    n = window.size
    left, right = 0, 0  # the match that reaches farthest: reversed window [left, right) equals its own prefix
    for p in range(1, n):
        length: Any = 0
        if p < right:
            length = min(np.int64(lengths[p - left]), right - p)
        while p + length < n and window[n - 1 - length] == window[n - 1 - p - length]:
            length += 1
        if p + length > right:
            left, right = p, p + length
        lengths[p] = length
        follower = window[n - p]
        length = min(length, limit)
        if length >= allowed and length > marks[follower]:
            marks[follower] = length


@inline
def _dry_penalty(length, allowed, multiplier, base):
    # The exponent is capped where float64 would overflow.
    return multiplier * math.exp(min((length - allowed) * math.log(base), 700.0))


@entry("void(f4[::1], i4[::1], i8, i8, f8, f8, i4[::1], i4[::1])")
def dry_row(row, window, limit, allowed, multiplier, base, lengths, marks):
    """Subtract ``multiplier * base ** (L - allowed)`` from tokens that would continue a repetition of L tokens, in a row."""
    _mark_repetitions(window, limit, allowed, lengths, marks)
    for i in range(window.size):
        token = window[i]
        if marks[token] > 0 and row[token] != BANNED:
            value = np.float64(row[token]) - _dry_penalty(marks[token], allowed, multiplier, base)
            row[token] = np.float32(max(value, LOWEST_LOGIT))
        marks[token] = 0


@entry("void(i4[::1], f8[::1], i8, i4[::1], i8, i8, f8, f8, i4[::1], i4[::1])")
def dry(ids, x, n, window, limit, allowed, multiplier, base, lengths, marks):
    """Subtract ``multiplier * base ** (L - allowed)`` from candidates that would continue a repetition of L tokens."""
    _mark_repetitions(window, limit, allowed, lengths, marks)
    for i in range(n):
        if marks[ids[i]] > 0:
            x[i] = max(x[i] - _dry_penalty(marks[ids[i]], allowed, multiplier, base), LOWEST_LOGIT)
    for i in range(window.size):
        marks[window[i]] = 0


@entry("void(f4[::1], i4[::1], i8)")
def ban_ngrams(row, tokens, size):
    """Ban every token that would complete a sequence of ``size`` tokens that already occurs in ``tokens`` (int32 [any])."""
    prefix = size - 1
    last = tokens.size - prefix
    for start in range(last):
        j = 0
        while j < prefix and tokens[start + j] == tokens[last + j]:
            j += 1
        if j == prefix:
            row[tokens[start + prefix]] = BANNED
