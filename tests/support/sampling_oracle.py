"""Choosing a token by the book: NumPy, float64, everything sorted, every sampler as its paper says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gumba.sampling_params import SAMPLERS

EDITS = ("penalties", "dry")


@dataclass
class Situation:
    """What a choice depends on besides logits and parameters."""

    history: list[int] = field(default_factory=list)  # prompt and answer
    n_generated: int = 0
    uniform: float = 0.5
    coin: float = 0.5
    mu: float | None = None
    allowed: np.ndarray | None = None  # bool [n]
    end_ids: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    breakers: tuple[tuple[int, ...], ...] = ()


def window(history, size):
    return history if size < 0 else history[max(len(history) - size, 0) :]


def ruled_out(n, params, at):
    """bool [n]: tokens that may not be chosen."""
    out = np.zeros(n, bool) if at.allowed is None else ~at.allowed
    if params.allowed_token_ids is not None:
        out[[i for i in range(n) if i not in params.allowed_token_ids]] = True
    if at.n_generated < params.min_tokens:
        out[list(at.end_ids)] = True
    for token, bias in params.logit_bias:
        out[token] |= bias == -math.inf
    for word in at.bad_words:
        before = list(word[:-1])
        if at.history[len(at.history) - len(before) :] == before:
            out[word[-1]] = True
    size = params.no_repeat_ngram_size
    if size:
        grams = {tuple(at.history[i : i + size]) for i in range(len(at.history) - size + 1)}
        last = tuple(at.history[len(at.history) - size + 1 :])
        if len(last) == size - 1:
            for gram in grams:
                if gram[:-1] == last:
                    out[gram[-1]] = True
    return out


def penalties(ids, x, params, at):
    seen = window(at.history, params.repetition_window)
    for i, token in enumerate(ids):
        count = seen.count(token)
        if count:
            x[i] = x[i] / params.repetition_penalty if x[i] > 0 else x[i] * params.repetition_penalty
            x[i] -= params.frequency_penalty * count + params.presence_penalty


def since_breaker(tokens, breakers):
    """How many tokens come after the last breaker."""
    for n in range(len(tokens)):
        head = tokens[: len(tokens) - n]
        if any(head[len(head) - len(each) :] == list(each) for each in breakers if len(each) <= len(head)):
            return n
    return len(tokens)


def dry(ids, x, params, at):
    seen = window(at.history, params.dry_range)
    limit = since_breaker(at.history, at.breakers)
    longest: dict[int, int] = {}
    for i in range(1, len(seen)):  # seen[i] follows what ends at i
        length = 0
        while length < min(i, limit) and seen[i - 1 - length] == seen[len(seen) - 1 - length]:
            length += 1
        longest[seen[i]] = max(longest.get(seen[i], 0), length)
    allowed = max(params.dry_allowed_length, 1)
    for i, token in enumerate(ids):
        if longest.get(token, 0) >= allowed:
            x[i] -= params.dry_multiplier * params.dry_base ** (longest[token] - allowed)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def entropy(p):
    return -(p[p > 0] * np.log(p[p > 0])).sum()


def until(order, p, mass, least):
    """The first of ``order`` that hold ``mass``, at least ``least``."""
    enough = int(np.searchsorted(np.cumsum(p[order]), mass * p.sum())) + 1
    return order[: max(enough, least)]


def kept(name, ids, x, params, at, nudge):
    """Places that a filter keeps."""
    likeliest = np.lexsort((ids, -x))
    least = max(params.min_keep, 1)
    p = softmax(x)
    if name == "top_k":
        return likeliest[: max(params.top_k, least)]
    if name == "top_p":
        return until(likeliest, p, min(params.top_p * (1 + nudge), 1), least)
    if name == "typical_p":
        with np.errstate(divide="ignore"):
            surprise = np.where(p > 0, -np.log(np.maximum(p, 1e-320)), 1e300)
        typical = np.lexsort((ids, np.abs(surprise - entropy(p))))
        return until(typical, p, min(params.typical_p * (1 + nudge), 1), least)
    if name == "min_p":
        keep = p >= params.min_p * p.max() * (1 + nudge)
    elif name == "top_n_sigma":
        keep = x >= x.max() - params.top_n_sigma * x.std() * (1 + nudge)
    elif name == "epsilon_cutoff":
        keep = p >= params.epsilon_cutoff * (1 + nudge)
    elif name == "eta_cutoff":
        eta = params.eta_cutoff
        keep = p >= min(eta, math.sqrt(eta) * math.exp(-entropy(p))) * (1 + nudge)
    elif name == "xtc":
        if at.coin >= params.xtc_probability:
            return likeliest
        above = [i for i in likeliest if p[i] >= params.xtc_threshold * (1 + nudge)]
        if len(above) < 2 or len(ids) - len(above) + 1 < least:
            return likeliest
        return [i for i in likeliest if i not in above[:-1]]
    first = [i for i in likeliest if keep[i]]
    return first if len(first) >= least else likeliest[:least]


def tempered(x, params):
    temperature = params.temperature
    if params.dynatemp_range > 0 and x.size > 1:
        low, high = max(temperature - params.dynatemp_range, 0), temperature + params.dynatemp_range
        temperature = low + (high - low) * (entropy(softmax(x)) / math.log(x.size)) ** params.dynatemp_exponent
    with np.errstate(all="ignore"):
        top = np.float64(x.max()) / temperature  # penalties that come later look at signs
        divided = np.maximum(np.where(x < x.max(), (x - x.max()) / temperature, 0.0), -1e300)
    return divided + top if np.isfinite(top) else divided


def mirostat_kept(ids, x, n_vocab, params, mu, nudge):
    likeliest = np.lexsort((ids, -x))
    p = softmax(x)[likeliest]
    if params.mirostat == 2:
        with np.errstate(divide="ignore"):
            return likeliest[: max(int((-np.log2(p) <= mu * (1 + nudge)).sum()), 1)]
    if x.size == 1:
        return likeliest
    i = np.arange(1, min(100, x.size))
    t, b = np.log((i + 1) / i), x[likeliest][i - 1] - x[likeliest][i]
    s = (t * b).sum() / (t * t).sum()
    if s == 0:
        return likeliest if 2**mu > n_vocab - 1 else likeliest[:1]
    e = s - 1
    with np.errstate(all="ignore"):
        k = (e * np.float64(2) ** mu / (1 - np.float64(n_vocab) ** -e)) ** (1 / s) * (1 + nudge)
    return likeliest[: max(int(min(k, x.size)), 1)]


def distribution(logits, params, at, nudge=0.0):
    """Ids that may be drawn, ascending, and their probabilities; greedy choices have one."""
    n = logits.size
    ids = np.flatnonzero(~ruled_out(n, params, at))
    x = logits.astype(np.float64)
    for token, bias in params.logit_bias:
        x[token] += 0 if bias == -math.inf else bias
    x = x[ids]
    named = SAMPLERS if params.samplers is None else params.samplers
    greedy = "temperature" in named and params.temperature == 0
    for name in named:
        if name == "penalties" and params.repetition_window:
            penalties(ids, x, params, at)
        elif name == "dry" and params.dry_multiplier and params.dry_range:
            dry(ids, x, params, at)
        elif greedy or name in EDITS:
            continue
        elif name == "temperature":
            x = tempered(x, params)
        elif name == "top_n_sigma" and params.top_n_sigma <= 0:
            continue
        elif not params.mirostat and getattr(params, name if name != "xtc" else "xtc_probability") != OFF.get(name, 0):
            places = np.sort(kept(name, ids, x, params, at, nudge))
            ids, x = ids[places], x[places]
    if greedy:
        return ids[[np.argmax(x)]], np.ones(1)
    if params.mirostat:
        mu = 2 * params.mirostat_tau if at.mu is None else at.mu
        places = np.sort(mirostat_kept(ids, x, n, params, mu, nudge))
        ids, x = ids[places], x[places]
    return ids, softmax(x)


OFF = {"top_p": 1, "typical_p": 1, "top_n_sigma": -1}


def choose(logits, params, at, nudge=0.0):
    ids, p = distribution(logits, params, at, nudge)
    cumulative = np.cumsum(p)
    place = np.searchsorted(cumulative, at.uniform * cumulative[-1] * (1 + nudge), side="right")
    return int(ids[min(place, ids.size - 1)])


def choices(logits, params, at):
    """Tokens that may be chosen when every bound lies a little lower or higher: nearly always one."""
    return {choose(logits, params, at, nudge) for nudge in (0.0, -1e-6, 1e-6)}
