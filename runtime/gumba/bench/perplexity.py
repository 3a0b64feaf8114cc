"""How well a model predicts a text: perplexity, as llama.cpp's tool computes it.

The text is split into consecutive windows of ``n_ctx`` tokens, each scored from an empty context. If the model uses a BOS
token, it replaces each window's first token. Only the second half of a window is scored, so that every scored token has at
least half a window before it: position i predicts token i + 1 for i = n_ctx/2 … n_ctx-2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gumba.errors import RequestError

if TYPE_CHECKING:
    from gumba.runner.load import Model

#: Maximum size of the logits of one step, in bytes; it limits the tokens that are scored at once.
_LOGITS_BYTES = 32 << 20


@dataclass(frozen=True)
class Perplexity:
    """The figure after ``windows`` of ``n_windows``: exp of the mean negative log-likelihood of ``n_scored`` tokens."""

    perplexity: float
    #: One standard error of ``perplexity``.
    error: float
    nll: float
    n_scored: int
    windows: int
    n_windows: int


def log_probabilities(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log of the softmax probability of each row's target, in float64.

    ``logits``: float32 [n, n_vocab]; ``targets``: integers [n]; the result: float64 [n].
    """
    result = np.empty(len(targets), np.float64)
    for i, (row, target) in enumerate(zip(logits, targets)):
        wide = row.astype(np.float64)
        wide -= wide.max()
        result[i] = wide[target] - np.log(np.exp(wide).sum())
    return result


def perplexity(
    model: Model, tokens: Sequence[int], n_ctx: int = 512, bos_id: int | None = None
) -> Iterator[Perplexity]:
    """Score ``tokens`` in windows of ``n_ctx``, yielding the running figure after each window.

    ``bos_id`` replaces the first token of each window; None if the model uses no BOS token.

    Raises ``RequestError`` if ``n_ctx`` is below 4 or above the model's context, or the text is shorter than two windows
    (one window would score little more than its own beginning).
    """
    config = model.config
    if not config.causal or config.n_labels or config.start_token is not None:
        raise RequestError(f"this {config.architecture} model has no next-token logits, which perplexity needs")
    if not 4 <= n_ctx <= model.n_ctx:
        raise RequestError(f"windows of {n_ctx} tokens: this model supports 4 to {model.n_ctx}")
    n_windows = len(tokens) // n_ctx
    if n_windows < 2:
        raise RequestError(f"the text has {len(tokens)} tokens; windows of {n_ctx} need at least {2 * n_ctx}")
    total = squares = 0.0
    n_scored = 0
    for window in range(n_windows):
        ids = np.array(tokens[window * n_ctx : (window + 1) * n_ctx], np.int32)
        if bos_id is not None:
            ids[0] = bos_id
        scores = -_score_window(model, ids)
        total += float(scores.sum())
        squares += float((scores * scores).sum())
        n_scored += len(scores)
        mean = total / n_scored
        variance = max(0.0, squares / n_scored - mean * mean)
        value = math.exp(mean) if mean < 700 else math.inf
        error = math.sqrt(variance / max(1, n_scored - 1)) * value
        yield Perplexity(value, error, mean, n_scored, window + 1, n_windows)


def _score_window(model: Model, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities of ``ids[n/2 + 1:]``, each given all tokens before it: float64 [n - 1 - n/2]."""
    from gumba.runner.load import Chunk

    n, first = len(ids), len(ids) // 2
    step = max(1, min(model.max_batch_tokens, _LOGITS_BYTES // (4 * model.config.n_vocab)))
    pages, state = model.kv.allocate(-(-n // model.kv.page_tokens)), model.allocate_state()
    try:
        for start in range(0, first, model.max_batch_tokens):
            end = min(first, start + model.max_batch_tokens)
            model.forward([Chunk(ids[start:end], start, pages, "none", state=state)])
        scores = []
        for start in range(first, n - 1, step):
            end = min(n - 1, start + step)
            logits = model.forward([Chunk(ids[start:end], start, pages, "all", state=state)])
            scores.append(log_probabilities(logits, ids[start + 1 : end + 1]))
        return np.concatenate(scores)
    finally:
        model.kv.release(pages)
        model.release_state(state)
