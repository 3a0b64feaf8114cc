"""Reference sampler: NumPy, float64, everything sorted, every sampler as its paper defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gumba.sampling_params import SAMPLERS

EDITS = ("penalties", "dry")


@dataclass
class Situation:
    """The inputs of a choice besides logits and parameters."""

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
        allowed = set(params.allowed_token_ids)
        out[[i for i in range(n) if i not in allowed]] = True
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


@dataclass(frozen=True)
class Oracle:
    """A filter by the book, and the values that the tests try.

    ``keep(ids, x, params, at, nudge)``: places of the candidates that it keeps; bounds move by the factor ``1 + nudge``.
    ``ranges``: field of SamplingParams: its lowest and highest value. ``off``: values with which it does nothing.
    ``typical`` and ``extreme``: parameters, one set at a time, that turn it on.
    """

    keep: Callable[..., Sequence[int]]
    ranges: dict[str, tuple[float, float]]
    off: dict[str, float]
    typical: list[dict[str, float]]
    extreme: list[dict[str, float]]


def likeliest(ids, x):
    """Places by (logit descending, id ascending)."""
    return np.lexsort((ids, -x))


def where(keep, ids, x, params):
    """The places for which ``keep`` is true, at least ``min_keep`` of the likeliest."""
    order, least = likeliest(ids, x), max(params.min_keep, 1)
    first = [i for i in order if keep[i]]
    return first if len(first) >= least else order[:least]


def keep_top_k(ids, x, params, at, nudge):
    return likeliest(ids, x)[: max(params.top_k, params.min_keep, 1)]


def keep_top_p(ids, x, params, at, nudge):
    return until(likeliest(ids, x), softmax(x), min(params.top_p * (1 + nudge), 1), max(params.min_keep, 1))


def keep_typical(ids, x, params, at, nudge):
    p = softmax(x)
    with np.errstate(divide="ignore"):
        surprise = np.where(p > 0, -np.log(np.maximum(p, 1e-320)), 1e300)
    order = np.lexsort((ids, np.abs(surprise - entropy(p))))
    return until(order, p, min(params.typical_p * (1 + nudge), 1), max(params.min_keep, 1))


def keep_min_p(ids, x, params, at, nudge):
    p = softmax(x)
    return where(p >= params.min_p * p.max() * (1 + nudge), ids, x, params)


def keep_top_n_sigma(ids, x, params, at, nudge):
    return where(x >= x.max() - params.top_n_sigma * x.std() * (1 + nudge), ids, x, params)


def keep_epsilon_cutoff(ids, x, params, at, nudge):
    return where(softmax(x) >= params.epsilon_cutoff * (1 + nudge), ids, x, params)


def keep_eta_cutoff(ids, x, params, at, nudge):
    p, eta = softmax(x), params.eta_cutoff
    return where(p >= min(eta, math.sqrt(eta) * math.exp(-entropy(p))) * (1 + nudge), ids, x, params)


def keep_xtc(ids, x, params, at, nudge):
    order, p = likeliest(ids, x), softmax(x)
    if at.coin >= params.xtc_probability:
        return order
    above = [i for i in order if p[i] >= params.xtc_threshold * (1 + nudge)]
    if len(above) < 2 or len(ids) - len(above) + 1 < max(params.min_keep, 1):
        return order
    return [i for i in order if i not in above[:-1]]


#: The filters by name.
FILTERS = {
    "top_n_sigma": Oracle(
        keep_top_n_sigma,
        ranges={"top_n_sigma": (-1, 100)},
        off={"top_n_sigma": -1},
        typical=[{"top_n_sigma": n} for n in (0.01, 0.5, 1, 2.5)],
        extreme=[{"top_n_sigma": n} for n in (1e-9, 1, 100)],
    ),
    "top_k": Oracle(
        keep_top_k,
        ranges={},
        off={"top_k": 0},
        typical=[{"top_k": k} for k in (1, 3, 50, 1500, 4999)],
        extreme=[{"top_k": k} for k in (1, 2, 5, 40, 2000)],
    ),
    "typical_p": Oracle(
        keep_typical,
        ranges={"typical_p": (0, 1)},
        off={"typical_p": 1},
        typical=[{"typical_p": p} for p in (0, 0.1, 0.5, 0.9, 0.999)],
        extreme=[{"typical_p": p} for p in (0, 1e-9, 0.5, 0.99)],
    ),
    "top_p": Oracle(
        keep_top_p,
        ranges={"top_p": (0, 1)},
        off={"top_p": 1},
        typical=[{"top_p": p} for p in (0, 0.1, 0.5, 0.9, 0.999)],
        extreme=[{"top_p": p} for p in (0, 1e-9, 0.3, 0.95)],
    ),
    "min_p": Oracle(
        keep_min_p,
        ranges={"min_p": (0, 1)},
        off={"min_p": 0},
        typical=[{"min_p": p} for p in (0.001, 0.1, 0.9, 1)],
        extreme=[{"min_p": p} for p in (1e-300, 0.05, 1)],
    ),
    "epsilon_cutoff": Oracle(
        keep_epsilon_cutoff,
        ranges={"epsilon_cutoff": (0, 1)},
        off={"epsilon_cutoff": 0},
        typical=[{"epsilon_cutoff": p} for p in (1e-4, 0.003, 0.1, 1)],
        extreme=[{"epsilon_cutoff": p} for p in (1e-300, 0.01, 1)],
    ),
    "eta_cutoff": Oracle(
        keep_eta_cutoff,
        ranges={"eta_cutoff": (0, 1)},
        off={"eta_cutoff": 0},
        typical=[{"eta_cutoff": p} for p in (1e-4, 0.003, 0.1, 1)],
        extreme=[{"eta_cutoff": p} for p in (1e-300, 0.01, 1)],
    ),
    "xtc": Oracle(
        keep_xtc,
        ranges={"xtc_probability": (0, 1), "xtc_threshold": (0, 1)},
        off={"xtc_probability": 0},
        typical=[{"xtc_probability": p, "xtc_threshold": t} for p in (0.5, 1) for t in (0, 0.003, 0.1, 0.6)],
        extreme=[{"xtc_probability": 1, "xtc_threshold": t} for t in (0, 0.1, 0.5, 1)],
    ),
}


def is_on(name, params):
    """Whether a filter does anything."""
    if name == "top_n_sigma" and params.top_n_sigma <= 0:
        return False
    return any(getattr(params, field) != value for field, value in FILTERS[name].off.items())


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
    order = likeliest(ids, x)
    p = softmax(x)[order]
    if params.mirostat == 2:
        with np.errstate(divide="ignore"):
            return order[: max(int((-np.log2(p) <= mu * (1 + nudge)).sum()), 1)]
    if x.size == 1:
        return order
    i = np.arange(1, min(100, x.size))
    t, b = np.log((i + 1) / i), x[order][i - 1] - x[order][i]
    s = (t * b).sum() / (t * t).sum()
    if s == 0:
        return order if 2**mu > n_vocab - 1 else order[:1]
    e = s - 1
    with np.errstate(all="ignore"):
        k = (e * np.float64(2) ** mu / (1 - np.float64(n_vocab) ** -e)) ** (1 / s) * (1 + nudge)
    return order[: max(int(min(k, x.size)), 1)]


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
        elif not params.mirostat and is_on(name, params):
            places = np.sort(FILTERS[name].keep(ids, x, params, at, nudge))
            ids, x = ids[places], x[places]
    if greedy:
        return ids[[np.argmax(x)]], np.ones(1)
    if params.mirostat:
        mu = 2 * params.mirostat_tau if at.mu is None else at.mu
        places = np.sort(mirostat_kept(ids, x, n, params, mu, nudge))
        ids, x = ids[places], x[places]
    return ids, softmax(x)


def choose(logits, params, at, nudge=0.0):
    ids, p = distribution(logits, params, at, nudge)
    cumulative = np.cumsum(p)
    place = np.searchsorted(cumulative, at.uniform * cumulative[-1] * (1 + nudge), side="right")
    return int(ids[min(place, ids.size - 1)])


def choices(logits, params, at):
    """Tokens that may be chosen when every bound lies a little lower or higher: nearly always one."""
    return {choose(logits, params, at, nudge) for nudge in (0.0, -1e-6, 1e-6)}
