"""One request inside the engine: its tokens, the pages that hold their keys and values, and what it wants of a step."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence as Ordered
from collections.abc import Set
from typing import Any, Literal, Protocol

import numpy as np

from gumba.engine.stopping import StopStrings
from gumba.outputs import FinishReason, StreamOutput, Timings
from gumba.params import SamplingParams
from gumba.sampling.sampler import Sampler, UniformStream

#: Most rows of logits that a scored sequence asks for in one step: a row is as wide as the vocabulary.
SCORED_PER_STEP = 128

Outputs = Literal["none", "last", "all"]


class TextDecoder(Protocol):
    """What a sequence needs of ``gumba.text.StreamDecoder``."""

    def push(self, token: int, /) -> str: ...

    def finish(self) -> str: ...


class Sequence(ABC):
    """Tokens of one request and how far the KV cache has them: ``tokens[:n_cached]`` lie in ``pages``.

    A sequence that loses its pages goes back to ``n_cached = 0`` and is computed again; since results do not depend
    on how tokens are grouped into steps, nothing else changes.
    """

    def __init__(self, prompt: Ordered[int]) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        self.pages: list[int] = []
        self.n_cached = 0
        #: Set by any thread; the engine ends the sequence before its next step.
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None
        self._last: float | None = None

    @property
    def remaining(self) -> int:
        """Tokens that the KV cache does not have yet."""
        return len(self.tokens) - self.n_cached

    @property
    def done(self) -> bool:
        """Whether the engine has nothing left to do for it."""
        return self.finish_reason is not None or self.error is not None

    def start(self) -> None:
        """Note that a step is about to take part of it in."""
        if self._started is None:
            self._started = time.perf_counter()

    @abstractmethod
    def share(self, budget: int) -> tuple[int, Outputs]:
        """How many of at most ``budget`` tokens to compute in a step, and which rows of logits to ask for."""

    @abstractmethod
    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        """Take in that a step computed ``count`` more tokens; ``rows``: the logits asked for, valid during the call."""

    def cancel(self) -> None:
        """End as cancelled."""
        self.finish_reason = "cancelled"

    def fail(self, error: BaseException) -> None:
        """End with ``error``, which the request's owner raises."""
        if not self.done:
            self.error = error

    def timings(self) -> Timings:
        """Times of the request so far."""
        now = time.perf_counter()
        started = self._started or now
        first = self._first or (now if self._started else started)
        return Timings(
            queue_s=started - self._submitted,
            prompt_s=first - started,
            decode_s=(self._last or first) - first,
            prompt_tokens=self.n_prompt,
            generated_tokens=len(self.tokens) - self.n_prompt,
        )


class Generation(Sequence):
    """A sequence that is continued token by token.

    Args:
        prompt: Token ids, at least one and fewer than ``capacity``.
        params: How to choose tokens and when to stop.
        seed: Of its random numbers.
        decoder: Makes text of its tokens.
        end_ids: Tokens that end it.
        capacity: Tokens that fit the context.
    """

    def __init__(
        self,
        prompt: Ordered[int],
        params: SamplingParams,
        *,
        seed: int,
        decoder: TextDecoder,
        end_ids: Set[int],
        capacity: int,
    ) -> None:
        super().__init__(prompt)
        self.params = params
        #: What the owner has not taken yet, one entry per token.
        self.events: deque[StreamOutput] = deque()
        self._uniforms = UniformStream(seed)
        self._decoder = decoder
        self._end_ids = end_ids
        self._stops = StopStrings(params.stop)
        limit = capacity if params.max_tokens is None else self.n_prompt + params.max_tokens
        self._limit = min(limit, capacity)

    def share(self, budget: int) -> tuple[int, Outputs]:
        count = min(self.remaining, budget)
        return count, "last" if count == self.remaining else "none"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        if len(rows):
            index = len(self.tokens) - self.n_prompt
            self._accept(sampler.sample(rows[0], self.params, self.tokens, self._uniforms[index]))
        self.n_cached += count

    def _accept(self, token: int) -> None:
        self.tokens.append(token)
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        reason: FinishReason | None = None
        text = ""
        if token in self._end_ids:
            reason = "stop"
        else:
            text = self._stops.push(self._decoder.push(token))
            if self._stops.stopped:
                reason = "stop"
            elif len(self.tokens) >= self._limit:
                reason = "length"
        if reason is None:
            self._emit(text, token, None)
        else:
            self._end(text, token, reason)

    def cancel(self) -> None:
        self._end("", None, "cancelled")

    def _end(self, text: str, token: int | None, reason: FinishReason) -> None:
        """Finish; text still held back comes out, and may even complete a stop string."""
        text += self._stops.push(self._decoder.finish())
        if self._stops.stopped and reason == "length":
            reason = "stop"
        self._emit(text + self._stops.flush(), token, reason)
        self.finish_reason = reason

    def _emit(self, text: str, token: int | None, reason: FinishReason | None) -> None:
        generated = len(self.tokens) - self.n_prompt
        index = generated if token is None else generated - 1
        self.events.append(StreamOutput(text, token, index, reason, self.timings() if reason else None))


class Scoring(Sequence):
    """A sequence whose logits are wanted at every position: float32 [n, n_vocab] in ``logits``."""

    def __init__(self, tokens: Ordered[int], n_vocab: int) -> None:
        super().__init__(tokens)
        self.logits = np.empty((self.n_prompt, n_vocab), np.float32)

    def share(self, budget: int) -> tuple[int, Outputs]:
        return min(self.remaining, budget, SCORED_PER_STEP), "all"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self.logits[self.n_cached : self.n_cached + count] = rows
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.finish_reason = "length"
