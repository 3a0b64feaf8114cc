"""Logits processors and stopping criteria of transformers that ``SamplingParams`` has no field for.

Each processor is called as ``SamplingParams.logits_processors`` are: with the token ids of prompt and answer so far, and logits
float32 [n_vocab], which it changes and returns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gumba.errors import RequestError
from gumba.validation import is_iterable, require_count, require_number, show

Logits = np.ndarray[Any, Any]
Processor = Callable[[list[int], Logits], Logits]


class LogitsProcessor:
    """Base class of custom logits processors: called with token ids [1, n] and logits [1, n_vocab]; returns logits."""

    def __call__(self, input_ids: object, scores: object) -> Any:
        """The logits, changed."""
        return scores


class LogitsProcessorList(list[Any]):
    """Logits processors, applied one after the other."""


class StoppingCriteria:
    """Base class of custom stopping criteria: called with token ids [1, n] and None; returns whether to stop."""

    def __call__(self, input_ids: object, scores: object, **options: object) -> Any:
        """Whether the answer ends here."""
        return False


class StoppingCriteriaList(list[Any]):
    """Stopping criteria, any of which ends an answer."""


def repetition(penalty: float) -> Processor:
    """Divide positive logits of tokens that occurred by ``penalty``, multiply negative ones (Keskar et al., "CTRL", 2019)."""

    def process(ids: list[int], logits: Logits) -> Logits:
        seen = np.unique(ids)
        values = logits[seen]
        logits[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
        return logits

    return process


def sequence_bias(biases: Iterable[tuple[Sequence[int], float]]) -> Processor:
    """Add a bias to the last token of a sequence if the tokens before it were just generated."""
    table = [(list(sequence[:-1]), sequence[-1], bias) for sequence, bias in biases]

    def process(ids: list[int], logits: Logits) -> Logits:
        for before, last, bias in table:
            if not before or ids[-len(before) :] == before:
                logits[last] += bias
        return logits

    return process


def only_at(position: int, allowed: int) -> Processor:
    """Allow only the token ``allowed`` at ``position``, counted from the start of the prompt."""

    def process(ids: list[int], logits: Logits) -> Logits:
        if len(ids) == position:
            logits[:] = -np.inf
            logits[allowed] = 0.0
        return logits

    return process


def not_at(position: int, tokens: Sequence[int]) -> Processor:
    """Forbid ``tokens`` at ``position``, counted from the start of the prompt."""

    def process(ids: list[int], logits: Logits) -> Logits:
        if len(ids) == position:
            logits[list(tokens)] = -np.inf
        return logits

    return process


def not_before(position: int, tokens: Sequence[int]) -> Processor:
    """Forbid ``tokens`` before ``position``, counted from the start of the prompt."""

    def process(ids: list[int], logits: Logits) -> Logits:
        if len(ids) < position:
            logits[list(tokens)] = -np.inf
        return logits

    return process


def longer_penalty(start: int, factor: float, ends: Sequence[int]) -> Processor:
    """Raise the logits of ``ends`` by a factor that grows with each token behind position ``start``."""

    def process(ids: list[int], logits: Logits) -> Logits:
        if len(ids) > start:
            values = logits[list(ends)]
            logits[list(ends)] = values + np.abs(values) * np.float32(factor ** (len(ids) - start) - 1)
        return logits

    return process


def allowed_only(function: Callable[[int, Any], Iterable[int]], row: int, n_vocab: int) -> Processor:
    """Allow only the tokens that ``function(row, token ids)`` returns."""

    def process(ids: list[int], logits: Logits) -> Logits:
        mask = np.full_like(logits, -np.inf)
        mask[token_ids("prefix_allowed_tokens_fn", function(row, _array(ids)), n_vocab)] = 0.0
        return logits + mask

    return process


def foreign(processor: Callable[[Any, Any], object], n_prompt: int, padded: list[int]) -> Processor:
    """A logits processor with transformers' interface: token ids [1, n], logits [1, n_vocab] (tensors where PyTorch is used).

    ``padded``: what it sees in the place of the ``n_prompt`` tokens of the prompt.
    """

    def process(ids: list[int], logits: Logits) -> Logits:
        scores = processor(_array([[*padded, *ids[n_prompt:]]]), _array(logits[np.newaxis]))
        return np.array(scores, np.float32).reshape(-1)

    return process


class Stop:
    """Ends an answer when a criterion returns True: from then on only the token ``end`` is allowed.

    ``criteria``: functions of (token ids [1, n], None) with a truth value; ``deadline``: seconds of ``time.monotonic``, None
    for none; ``n_prompt``: tokens of the prompt, after which nothing is checked yet; ``padded``: what criteria see instead.
    """

    def __init__(
        self,
        criteria: Sequence[Callable[..., object]],
        deadline: float | None,
        end: int,
        n_prompt: int,
        padded: list[int],
    ) -> None:
        self._criteria, self._deadline, self._end = criteria, deadline, end
        self._n_prompt, self._padded = n_prompt, padded
        self._length: int | None = None

    def __call__(self, ids: list[int], logits: Logits) -> Logits:
        if self._length is None and len(ids) > self._n_prompt and self._ends(ids):
            self._length = len(ids)
        if self._length is not None:
            logits[:] = -np.inf
            logits[self._end] = 0.0
        return logits

    def without_end(self, answer: Sequence[int]) -> list[int]:
        """The tokens of an answer before the one that a criterion forced."""
        return list(answer if self._length is None else answer[: self._length - self._n_prompt])

    def _ends(self, ids: list[int]) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        seen = _array([[*self._padded, *ids[self._n_prompt :]]])
        return any(bool(np.all(np.asarray(criterion(seen, None)))) for criterion in self._criteria)


def bad_words(sequences: object, ends: Iterable[int], n_vocab: int) -> list[tuple[Sequence[int], float]]:
    """``bad_words_ids`` as biases, without sequences that consist of an end-of-generation token."""
    rows = [token_ids("bad_words_ids", row, n_vocab) for row in _rows("bad_words_ids", sequences)]
    return [(row, -np.inf) for row in rows if not (len(row) == 1 and row[0] in set(ends))]


def biases(given: object, n_vocab: int) -> list[tuple[Sequence[int], float]]:
    """``sequence_bias``, a dictionary or a list of [token ids, bias], as pairs."""
    items = list(given.items()) if isinstance(given, Mapping) else _rows("sequence_bias", given)
    pairs: list[tuple[Sequence[int], float]] = []
    for item in items:
        if not isinstance(item, Sequence) or len(item) != 2:
            raise RequestError(f"sequence_bias: expected pairs of token ids and a number, found {show(item)}")
        bias = item[1]
        number = float(bias) if bias in (np.inf, -np.inf) else require_number("sequence_bias", bias, -1e6, 1e6)
        pairs.append((token_ids("sequence_bias", item[0], n_vocab), number))
    return pairs


def decay(given: object) -> tuple[int, float]:
    """``exponential_decay_length_penalty``: the number of new tokens after which it begins, and its factor."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise RequestError(f"exponential_decay_length_penalty: expected (start, factor), found {show(given)}")
    name = "exponential_decay_length_penalty"
    return require_count(name, given[0], 0), require_number(name, given[1], 0.0, 1e3)


def _rows(name: str, given: object) -> list[object]:
    if isinstance(given, str | bytes | Mapping) or not is_iterable(given):
        raise RequestError(f"{name}: expected a list of lists of token ids, found {show(given)}")
    return list(given)


def token_ids(name: str, given: object, n_vocab: int) -> list[int]:
    """One or several token ids as a list. Raises RequestError for ids outside the vocabulary."""
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, int) and not isinstance(given, bool):
        given = [given]
    if isinstance(given, str | bytes | Mapping) or not is_iterable(given):
        raise RequestError(f"{name}: expected a list of token ids, found {show(given)}")
    ids = [require_count(name, token, 0, n_vocab - 1) for token in given]
    if not ids:
        raise RequestError(f"{name}: expected at least one token id, found none")
    return ids


def _array(values: object) -> object:
    """An array, or a tensor in a process that uses PyTorch, whose functions foreign processors call."""
    array = np.asarray(values) if not isinstance(values, list) else np.array(values, np.int64)
    torch = sys.modules.get("torch")
    return array if torch is None else torch.from_numpy(np.ascontiguousarray(array))
