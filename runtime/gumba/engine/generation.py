"""Generation: a sequence that a sampler continues token by token, with stop conditions, constraints and draft tokens."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence as Ordered
from collections.abc import Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gumba.engine.sequence import MAX_LOGIT_ROWS, Outputs, Sequence
from gumba.engine.speculative.base import Drafter
from gumba.engine.stop_strings import StopStrings
from gumba.outputs import FinishReason, Logprobs, StreamOutput
from gumba.sampling.sampler import Choice, Sampler
from gumba.sampling.sampler_state import SamplerState, UniformStream
from gumba.sampling_params import SamplingParams

log = logging.getLogger("gumba")


class TextDecoder(Protocol):
    """Turns tokens into text incrementally: ``gumba.tokenizer.detokenizer.StreamDecoder``."""

    def push(self, token: int, /) -> str:
        """The text that ``token`` completes."""

    def finish(self) -> str:
        """The text of an incomplete end."""


class TokenConstraint(Protocol):
    """Restricts the next token: ``gumba.sampling.structured.constraints.Constraint``."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete."""

    def mask(self) -> NDArray[np.uint32] | None:
        """Allowed tokens, one bit each, as of ``Sampler.sample``; None allows all."""

    def accept(self, token: int, /) -> None:
        """Advance by the chosen token."""


class Generation(Sequence):
    """One answer to a prompt, generated token by token.

    Args:
        prompt: Token ids, at least one and fewer than ``n_ctx``.
        params: Sampling parameters and stop conditions.
        seed: Seed of its random numbers, one per token.
        sampling: Sampler state for the prompt and ``params``.
        decoder: Turns its tokens into text.
        end_ids: Tokens that end it.
        n_ctx: Context length in tokens.
        choice: Index among the answers to its prompt. Only the first one collects the prompt's log-probabilities.
        constraint: Restricts its tokens; not shared with other answers.
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
        n_ctx: int,
        choice: int = 0,
        constraint: TokenConstraint | None = None,
    ) -> None:
        super().__init__(prompt)
        self.params = params
        self.choice = choice
        self.priority = params.priority
        self.uses_prefix_cache = params.cache_prompt
        #: Stream outputs so far, one per token.
        self.outputs: list[StreamOutput] = []
        self._uniforms = UniformStream(seed)
        self._sampling = sampling
        self._decoder = decoder
        self._end_ids = end_ids
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self.prompt = list(prompt)
        #: All generated tokens, including those that a context shift removed from ``tokens``.
        self.answer: list[int] = []
        self._n_ctx = n_ctx
        self._max_tokens = sys.maxsize if params.max_tokens is None else params.max_tokens
        #: Proposes draft tokens; None: no speculative decoding.
        self.drafter: Drafter | None = None
        self._draft: list[int] = []
        self._constraint = constraint
        #: One entry per computed prompt token, None for the first one; None if they were not requested.
        self.prompt_logprobs: list[Logprobs | None] | None = None
        if params.prompt_logprobs is not None and choice == 0:
            self.prompt_logprobs = [None]
            self.max_cached = 0

    @property
    def _scores_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still missing."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.n_prompt

    @property
    def drafts(self) -> bool:
        return self.drafter is not None

    def next_tokens(self, budget: int) -> tuple[list[int], Outputs]:
        count = min(self.remaining, budget)
        if self._scores_prompt:
            return self.tokens[self.n_cached : self.n_cached + min(count, MAX_LOGIT_ROWS)], "all"
        tokens = self.tokens[self.n_cached : self.n_cached + count]
        self._draft = []
        if count < self.remaining:
            return tokens, "none"
        if self.drafter is not None and count == 1 and budget > 1:
            try:
                limit = min(self._max_tokens - len(self.answer), self._n_ctx - len(self.tokens)) - 1
                self._draft = self.drafter.propose(self.tokens, min(budget - 1, limit))
            except Exception as error:  # continue without draft tokens
                log.warning("drafting has failed; tokens are computed one by one from here on (%s)", error)
                self.drafter.close()
                self.drafter = None
        return (tokens + self._draft, "all") if self._draft else (tokens, "last")

    def advance(self, count: int, rows: NDArray[np.float32], sampler: Sampler) -> None:
        draft, self._draft = self._draft, []
        if self._scores_prompt:
            self._score_prompt(rows, sampler)
            rows = rows[-1:] if count == self.remaining else rows[:0]
        self.n_cached += count - len(draft)
        self.prompt_done = self.prompt_done or self.n_cached >= self.n_prompt
        for row, drafted in zip(rows, [*draft, None]):
            # With a draft or without, the same logits and the same random number choose the token: the answer is the same.
            self._accept(self._choose(row, sampler))
            if self.done or self.shifted or self.tokens[-1] != drafted:
                break
            self.n_cached += 1
        if draft and self.drafter is not None:
            self.drafter.on_verified(self.n_cached)

    def _score_prompt(self, rows: NDArray[np.float32], sampler: Sampler) -> None:
        logprobs, top = self.prompt_logprobs, self.params.prompt_logprobs
        if logprobs is None or top is None:
            return
        for position, row in enumerate(rows, self.n_cached + 1):
            if position == len(logprobs) and position < self.n_prompt:
                logprobs.append(sampler.logprobs(row, self.tokens[position], top))

    def _choose(self, row: NDArray[np.float32], sampler: Sampler) -> Choice:
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
            elif len(self.answer) >= self._max_tokens or (len(self.tokens) >= self._n_ctx and not self._shift()):
                reason = "length"
        if reason is None:
            self._emit(text, token, None, logprobs)
        else:
            self._end(text, token, reason, logprobs)

    def _shift(self) -> bool:
        """Context shift, if requested: remove the older half of the tokens after ``n_keep``; the rest is recomputed."""
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
        """Finish. Text that the stop strings withheld is emitted, and may even complete a stop string."""
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
