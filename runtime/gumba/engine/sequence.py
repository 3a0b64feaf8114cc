"""One request inside the engine: its tokens, the pages that hold their keys and values, and what it wants of a step."""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Set
from collections.abc import Sequence as Ordered
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from gumba.engine.prefix_cache import Node
from gumba.engine.stop_strings import StopStrings
from gumba.errors import EngineError
from gumba.outputs import FinishReason, Logprobs, StreamOutput, Timings
from gumba.sampling.sampler import Choice, Sampler
from gumba.sampling.sampler_state import SamplerState, UniformStream
from gumba.sampling_params import SamplingParams

if TYPE_CHECKING:
    from gumba.engine.scheduler import Scheduler

log = logging.getLogger("gumba")

#: Most rows of logits that a scored sequence asks for in one step: a row is as wide as the vocabulary.
SCORED_PER_STEP = 128

Outputs = Literal["none", "last", "all"]


class TextDecoder(Protocol):
    """What a sequence needs of ``gumba.tokenizer.detokenizer.StreamDecoder``."""

    def push(self, token: int, /) -> str: ...

    def finish(self) -> str: ...


class TokenConstraint(Protocol):
    """What a sequence needs of ``gumba.sampling.structured.constraints.Constraint``."""

    @property
    def finished(self) -> bool: ...

    def mask(self) -> np.ndarray[Any, Any] | None: ...

    def accept(self, token: int, /) -> None: ...


class Drafter(Protocol):
    """Guesses what comes next; a wrong guess costs time, never changes an answer."""

    def guess(self, tokens: Ordered[int], most: int, /) -> list[int]:
        """At most ``most`` tokens that may follow ``tokens``."""

    def learn(self, n_cached: int, /) -> None:
        """The last guess was right up to where ``n_cached`` tokens are computed."""

    def close(self) -> None:
        """There will be no more guesses."""


class Sequence(ABC):
    """Tokens of one request and how far the KV cache has them: ``tokens[:n_cached]`` lie in ``pages``.

    A sequence that loses its pages goes back to ``n_cached = 0`` and is computed again; since results do not depend
    on how tokens are grouped into steps, nothing else changes. All of it belongs to the engine's thread once it is submitted,
    but ``cancelled``, which any thread may set, and what ``deliver`` has handed over.
    """

    #: Whether somebody waits for each token.
    streaming = False
    #: Whether it may begin with pages that others computed, and leave its own to others.
    uses_prefix_cache = True
    #: Whether ``advance`` reads ``hidden``, the final hidden states of the rows asked for: float32 [n, n_embd].
    wants_hidden = False
    hidden: np.ndarray[Any, Any]
    #: Most tokens that may come from there.
    max_cached = sys.maxsize
    #: Of an encoder-decoder: how many of its first tokens are the source, which has to be in one step.
    n_source = 0
    #: Whether its tokens have to be in one step, since each sees those after it.
    single_step = False

    def __init__(self, prompt: Ordered[int]) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        self.pages: list[int] = []
        #: The same for layers with a window, where they have pages of their own: as many places, or fewer; -1 before the window.
        self.window_pages: list[int] = []
        #: Of a model with recurrent layers: its slot, which holds the state after ``n_cached`` tokens; -1 while it does not run.
        self.state = -1
        #: Another one, for the state before guessed tokens.
        self.backup = -1
        #: Tokens that others began with too, as far as the prefix cache shows.
        self.divergence = 0
        self.n_cached = 0
        #: Of the prefix cache: the last page that is in it, and how many of ``pages`` are.
        self.node: Node | None = None
        self.n_kept = 0
        #: Tokens of the prompt that did not have to be computed.
        self.n_reused = 0
        #: Tokens that were forgotten because the context was full; ``shifted``: just now, so nothing computed is of use.
        self.n_dropped = 0
        self.shifted = False
        self.priority = 0
        #: Its place in the order: priority, arrival.
        self.rank = (0, 0)
        #: Another sequence with the same prompt, which computes it; this one waits until then.
        self.leader: Sequence | None = None
        self.prompt_done = False
        #: Takes what comes of it, in the engine's thread: each token of a stream, then the sequence itself at its end.
        self.deliver: Callable[[Any], object] = lambda item: None
        #: Whether it waits for other sequences, and has nothing to compute until one of them releases it.
        self.waiting_on_group = False
        #: Called in the engine's thread while the prompt is read: tokens that are there, tokens in all.
        self.on_prompt: Callable[[int, int], object] | None = None
        #: Set by any thread; the engine ends the sequence before its next step.
        self.cancelled = False
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None
        self._last: float | None = None

    @property
    def owner(self) -> Sequence:
        """The sequence that stands for its request: another one where a request runs several that belong together."""
        return self

    @property
    def remaining(self) -> int:
        """Tokens that the KV cache does not have yet."""
        return len(self.tokens) - self.n_cached

    @property
    def min_step_tokens(self) -> int:
        """Fewest tokens that a step can compute of it."""
        return len(self.tokens) if self.single_step else max(1, self.n_source - self.n_cached)

    def cache_key(self, first: int, last: int) -> tuple[Any, ...]:
        """What tokens ``first`` up to ``last`` are in the prefix cache, where they come after those before them.

        Of a source no part has a meaning without the whole: that stands in the place of the first token.
        """
        part = tuple(self.tokens[first:last])
        return part if first or not self.n_source else (tuple(self.tokens[: self.n_source]), *part[1:])

    @property
    def guesses(self) -> bool:
        """Whether ``share`` may come with guessed tokens."""
        return False

    @property
    def n_generated(self) -> int:
        """Tokens chosen so far."""
        return len(self.tokens) - self.n_prompt + self.n_dropped

    @property
    def done(self) -> bool:
        """Whether the engine has nothing left to do for it."""
        return self.finish_reason is not None or self.error is not None

    @property
    def ending(self) -> FinishReason:
        """Why it ended. Raises EngineError when it has not, or by an error."""
        if self.finish_reason is None:
            raise EngineError("the request has not ended")
        return self.finish_reason

    @property
    def started(self) -> bool:
        """Whether a step took part of it in."""
        return self._started is not None

    def start(self) -> None:
        """Note that a step is about to take part of it in."""
        if self._started is None:
            self._started = time.perf_counter()

    @abstractmethod
    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        """Tokens from ``n_cached`` on to compute in a step, at most ``budget``, and which rows of logits to ask for."""

    @abstractmethod
    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        """Take in that a step computed ``count`` tokens; ``rows``: the logits asked for, valid during the call."""

    def after_step(self, scheduler: Scheduler) -> Iterable[Sequence]:
        """Called when a step that this sequence was part of has been taken in; sequences that the engine is to run as well."""
        return ()

    def cancel(self) -> None:
        """End as cancelled."""
        self.finish_reason = "cancelled"

    def fail(self, error: BaseException) -> None:
        """End with ``error``, which the request's owner raises."""
        if not self.done:
            self.error = error

    def ended(self) -> None:
        """Tell the owner that it is done, and its pages are free."""
        self.deliver(self)

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
            generated_tokens=self.n_generated,
            cached_tokens=self.n_reused,
        )


class Generation(Sequence):
    """A sequence that is continued token by token.

    Args:
        prompt: Token ids, at least one and fewer than ``capacity``.
        params: How to choose tokens and when to stop.
        seed: Of its random numbers.
        sampling: What its sampler carries from token to token; of the prompt and ``params``.
        decoder: Makes text of its tokens.
        end_ids: Tokens that end it.
        capacity: Tokens that fit the context.
        choice: Its number among the answers to its prompt. The first one collects the prompt's log-probabilities.
        constraint: What its text must be; of its own.
    """

    def __init__(
        self,
        prompt: Ordered[int],
        params: SamplingParams,
        *,
        seed: int,
        sampling: SamplerState,
        decoder: TextDecoder,
        end_ids: Set[int],
        capacity: int,
        choice: int = 0,
        constraint: TokenConstraint | None = None,
    ) -> None:
        super().__init__(prompt)
        self.params = params
        self.choice = choice
        self.priority = params.priority
        self.uses_prefix_cache = params.cache_prompt
        #: What came of it so far, one entry per token.
        self.outputs: list[StreamOutput] = []
        self._uniforms = UniformStream(seed)
        self._sampling = sampling
        self._decoder = decoder
        self._end_ids = end_ids
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self.prompt = list(prompt)
        #: All tokens chosen.
        self.answer: list[int] = []
        self._capacity = capacity
        self._most = sys.maxsize if params.max_tokens is None else params.max_tokens
        #: Guesses the next tokens; None: nobody does.
        self.drafter: Drafter | None = None
        self._guess: list[int] = []
        self._constraint = constraint
        #: Of the prompt's tokens, as far as they were computed: nothing of the first; None where they are not wanted.
        self.prompt_logprobs: list[Logprobs | None] | None = None
        if params.prompt_logprobs is not None and choice == 0:
            self.prompt_logprobs = [None]
            self.max_cached = 0

    @property
    def _scores_prompt(self) -> bool:
        """Whether the prompt's log-probabilities are wanted and not complete."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.n_prompt

    @property
    def guesses(self) -> bool:
        return self.drafter is not None

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        if self._scores_prompt:
            return self.tokens[self.n_cached : self.n_cached + min(count, SCORED_PER_STEP)], "all"
        tokens = self.tokens[self.n_cached : self.n_cached + count]
        self._guess = []
        if count < self.remaining:
            return tokens, "none"
        if self.drafter is not None and count == 1 and budget > 1:
            try:
                room = min(self._most - len(self.answer), self._capacity - len(self.tokens)) - 1
                self._guess = self.drafter.guess(self.tokens, min(budget - 1, room))
            except Exception as error:  # nobody needs guesses
                log.warning("guessing tokens has failed, they are computed one by one (%s)", error)
                self.drafter.close()
                self.drafter = None
        return (tokens + self._guess, "all") if self._guess else (tokens, "last")

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        guess, self._guess = self._guess, []
        if self._scores_prompt:
            self._score_prompt(rows, sampler)
            rows = rows[-1:] if count == self.remaining else rows[:0]
        self.n_cached += count - len(guess)
        self.prompt_done = self.prompt_done or self.n_cached >= self.n_prompt
        for row, guessed in zip(rows, [*guess, None]):
            # Guessed or not, the token is chosen by the same logits and the same random number: the answer is the same.
            self._accept(self._choose(row, sampler))
            if self.done or self.shifted or self.tokens[-1] != guessed:
                break
            self.n_cached += 1
        if guess and self.drafter is not None:
            self.drafter.learn(self.n_cached)

    def _score_prompt(self, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        found, most = self.prompt_logprobs, self.params.prompt_logprobs
        if found is None or most is None:
            return
        for position, row in enumerate(rows, self.n_cached + 1):
            if position == len(found) and position < self.n_prompt:
                found.append(sampler.logprobs(row, self.tokens[position], most))

    def _choose(self, row: np.ndarray[Any, Any], sampler: Sampler) -> Choice:
        index = len(self.answer)
        mask = None if self._constraint is None else self._constraint.mask()
        return sampler.sample(row, self._sampling, self._uniforms[index], mask)

    def _accept(self, choice: Choice) -> None:
        token = choice.token
        logprobs = None
        if choice.logprob is not None and choice.rank is not None:
            logprobs = Logprobs(choice.logprob, choice.rank, choice.top)
        self._sampling.accept(token)
        self.tokens.append(token)
        self.answer.append(token)
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        reason: FinishReason | None = None
        text = ""
        if token in self._end_ids:
            reason = "stop"
        else:
            text = self._stops.push(self._decoder.push(token))
            if self._constraint is not None:
                self._constraint.accept(token)
            if self._stops.stopped or (self._constraint is not None and self._constraint.finished):
                reason = "stop"
            elif len(self.answer) >= self._most or (len(self.tokens) >= self._capacity and not self._shift()):
                reason = "length"
        if reason is None:
            self._emit(text, token, None, logprobs)
        else:
            self._end(text, token, reason, logprobs)

    def _shift(self) -> bool:
        """Make room in a full context by forgetting old tokens, if that is wanted; what is left is to be computed anew."""
        keep = self.n_prompt if self.params.n_keep < 0 or self.n_source else self.params.n_keep
        drop = (len(self.tokens) - keep) // 2
        if not self.params.context_shift or drop < 1:
            return False
        del self.tokens[keep : keep + drop]
        self.n_dropped += drop
        self.shifted = True
        if self.drafter is not None:
            self.drafter.close()
        return True

    def cancel(self) -> None:
        self._end("", None, "cancelled")

    def _end(self, text: str, token: int | None, reason: FinishReason, logprobs: Logprobs | None = None) -> None:
        """Finish; text still held back comes out, and may even complete a stop string."""
        text += self._stops.push(self._decoder.finish())
        if self._stops.stopped and reason == "length":
            reason = "stop"
        self._emit(text + self._stops.flush(), token, reason, logprobs)
        self.finish_reason = reason

    def _emit(self, text: str, token: int | None, reason: FinishReason | None, logprobs: Logprobs | None) -> None:
        index = len(self.answer) - (token is not None)
        timings = self.timings() if reason else None
        stop_reason = self._stop_reason(token) if reason == "stop" else None
        output = StreamOutput(text, token, index, reason, timings, self.choice, logprobs, stop_reason=stop_reason)
        self.outputs.append(output)
        if self.streaming and reason is None:
            self.deliver(output)

    def _stop_reason(self, token: int | None) -> str | int | None:
        """The stop string or stop token that ended the answer."""
        if self._stops.reason is not None:
            return self._stops.reason
        return token if token in self.params.stop_token_ids else None

    def ended(self) -> None:
        if self.drafter is not None:
            self.drafter.close()
        if self.streaming and self.error is None:
            self.deliver(self.outputs[-1])
        super().ended()


class LogitsSequence(Sequence):
    """A sequence whose logits are wanted at every position: float32 [n, n_vocab] in ``logits``."""

    def __init__(self, tokens: Ordered[int], n_vocab: int) -> None:
        super().__init__(tokens)
        self.max_cached = 0
        self.logits = np.empty((self.n_prompt, n_vocab), np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        return self.tokens[self.n_cached : self.n_cached + min(budget, SCORED_PER_STEP)], "all"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self.logits[self.n_cached : self.n_cached + count] = rows
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.prompt_done = True
            self.finish_reason = "length"


class EmbedSequence(Sequence):
    """A sequence whose final hidden states are wanted, pooled: float64 [n_embd] in ``vector``.

    ``pooling``: "mean" of all tokens, or that of the "first" or the "last"; or "none": all of them, float32 [n, n_embd] in
    ``rows``. ``single_step``: all tokens in one step, for an encoder. ``skip``: tokens at the beginning that are not pooled;
    where these are all, the vector is zero, but for "first", which then is the first token's.
    """

    wants_hidden = True

    def __init__(
        self,
        tokens: Ordered[int],
        n_embd: int,
        pooling: Literal["mean", "first", "last", "none"],
        single_step: bool = False,
        skip: int = 0,
    ) -> None:
        super().__init__(tokens)
        if pooling != "last":
            self.max_cached = 0
        self._pooling = pooling
        self._skip = min(skip, self.n_prompt)
        self._first_row = self._skip if self._skip < self.n_prompt else 0
        self.vector = np.zeros(n_embd, np.float64)
        self.rows = np.empty((self.n_prompt if pooling == "none" else 0, n_embd), np.float32)
        if single_step:
            self.single_step, self.uses_prefix_cache = True, False

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        if self.single_step:
            return self.tokens[:], "last" if self._pooling == "last" else "all"
        if self._pooling in ("mean", "none"):
            return self.tokens[self.n_cached : self.n_cached + min(count, SCORED_PER_STEP)], "all"
        if self._pooling == "first":
            count = min(count, self._first_row + 1 - self.n_cached)
        wanted = self.n_prompt if self._pooling == "last" else self._first_row + 1
        last = self.n_cached + count == wanted
        return self.tokens[self.n_cached : self.n_cached + count], "last" if last else "none"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        if self._pooling == "mean" and self.n_cached == 0:
            self.vector[:] = 0.0  # perhaps from the beginning again
        if self._pooling == "none":
            self.rows[self.n_cached : self.n_cached + count] = self.hidden
        # One row after the other, so that the sum does not depend on the steps.
        for row in self._pooled():
            self.vector = self.vector + row if self._pooling == "mean" else row.astype(np.float64)
        self.n_cached += count
        done = self.n_cached > self._first_row if self._pooling == "first" else self.n_cached == self.n_prompt
        if done:
            if self._pooling == "mean":
                self.vector /= max(1, self.n_prompt - self._skip)
            self.prompt_done = True
            self.finish_reason = "length"

    def _pooled(self) -> np.ndarray[Any, Any]:
        """The rows of this step's hidden states that count."""
        if self._pooling == "first":
            return self.hidden[self._first_row : self._first_row + 1] if self.single_step else self.hidden
        if self._pooling == "last":
            return self.hidden[: 0 if self._skip == self.n_prompt else None]
        return self.hidden[max(0, self._skip - self.n_cached) :]


class ClassifySequence(Sequence):
    """A text that a model's head judges: float32 [n_labels] in ``scores``.

    ``single_step``: of an encoder, all of it in one step, by what the head says of the first token; of a decoder, the last one.
    """

    def __init__(self, tokens: Ordered[int], *, single_step: bool) -> None:
        super().__init__(tokens)
        if single_step:
            self.max_cached = 0
            self.single_step, self.uses_prefix_cache = True, False
        self.scores = np.empty(0, np.float32)

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        if self.single_step:
            return self.tokens[:], "all"
        count = min(self.remaining, budget)
        return self.tokens[self.n_cached : self.n_cached + count], "last" if count == self.remaining else "none"

    def advance(self, count: int, rows: np.ndarray[Any, Any], sampler: Sampler) -> None:
        self.n_cached += count
        if self.n_cached == self.n_prompt:
            self.scores = rows[0].copy()
            self.prompt_done = True
            self.finish_reason = "length"
