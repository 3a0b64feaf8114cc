"""Requests that the engine computes, and the outputs built of their sequences."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gumba.chat.output_parser import AnswerFormat, AnswerParser
from gumba.engine.generation import Generation
from gumba.engine.search.beam import BeamSearch
from gumba.engine.search.contrastive import ContrastiveSearch
from gumba.engine.sequence import Sequence as EngineSequence
from gumba.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    FinishReason,
    RequestOutput,
    StreamOutput,
)
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer

Output = TypeVar("Output", covariant=True)


class Pending(Protocol[Output]):
    """A request: the engine computes its ``sequences``, then ``output`` returns the result."""

    @property
    def sequences(self) -> Sequence[EngineSequence]: ...

    def output(self) -> Output: ...


@dataclass(frozen=True)
class RequestBatch(Generic[Output]):
    """Requests that are computed together.

    Attributes:
        requests: In the order of the prompts.
        sequences: The sequences of all requests.
    """

    requests: Sequence[Pending[Output]]

    @property
    def sequences(self) -> list[EngineSequence]:
        return [sequence for request in self.requests for sequence in request.sequences]

    def outputs(self) -> list[Output]:
        """The results, in the order of the prompts, once all sequences have finished."""
        return [request.output() for request in self.requests]


@dataclass(frozen=True)
class PendingRequest:
    """One request: its engine sequences, and building its RequestOutput when they finish.

    Attributes:
        prompt: The text of the prompt; None for token ids and conversations.
        sequences: One for each answer.
        form: How answers are split into reasoning, text and tool calls; None: they are not.
    """

    prompt: str | None
    sequences: list[Generation]
    form: AnswerFormat | None = None

    def output(self) -> RequestOutput:
        """The result, once all sequences have finished."""
        first = self.sequences[0]
        best_first = self.sequences
        if len(self.sequences) > first.params.n:
            best_first = sorted(self.sequences, key=_negative_mean_logprob)
        outputs = []
        for index, sequence in enumerate(best_first[: first.params.n]):
            output = _completion(index, sequence)
            outputs.append(output if self.form is None else self.form.parser().output(output))
        prompt_ids = first.prompt[: first.n_source or None]
        return RequestOutput(self.prompt, prompt_ids, outputs, first.prompt_logprobs)

    def parsed(self, steps: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
        """``steps`` of the answers, split as ``form`` says. Closing the iterator closes ``steps``."""
        return steps if self.form is None else self._parsed(steps)

    def aparsed(self, steps: AsyncGenerator[StreamOutput, None]) -> AsyncGenerator[StreamOutput, None]:
        """As ``parsed``, for an event loop."""
        return steps if self.form is None else self._aparsed(steps)

    def _parsed(self, steps: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
        parsers = self._parsers()
        with closing(steps):  # type: ignore[type-var]
            for step in steps:
                yield parsers[step.choice].step(step)

    async def _aparsed(self, steps: AsyncGenerator[StreamOutput, None]) -> AsyncGenerator[StreamOutput, None]:
        parsers = self._parsers()
        async with aclosing(steps):
            async for step in steps:
                yield parsers[step.choice].step(step)

    def _parsers(self) -> dict[int, AnswerParser]:
        return {} if self.form is None else {sequence.choice: self.form.parser() for sequence in self.sequences}


def _completion(index: int, sequence: Generation) -> CompletionOutput:
    """The answer of a finished sequence."""
    logprobs = None
    if sequence.params.logprobs is not None:
        logprobs = [output.logprobs for output in sequence.outputs if output.logprobs is not None]
    return CompletionOutput(
        index,
        "".join(output.text for output in sequence.outputs),
        sequence.answer,
        sequence.ending,
        sequence.timings(),
        logprobs,
        stop_reason=sequence.outputs[-1].stop_reason if sequence.outputs else None,
    )


def _negative_mean_logprob(sequence: Generation) -> float:
    """Sort key: the likeliest answer first. Every answer of ``best_of`` has log-probabilities."""
    logprobs = [output.logprobs.logprob for output in sequence.outputs if output.logprobs is not None]
    return -sum(logprobs) / len(logprobs) if logprobs else 0.0


@dataclass(frozen=True)
class PendingBeamSearch:
    """A beam search for one prompt."""

    prompt: str | None
    search: BeamSearch
    tokenizer: Tokenizer

    @property
    def sequences(self) -> list[BeamSearch]:
        return [self.search]

    def output(self) -> BeamSearchOutput:
        """The result, once the search has finished."""
        sequences = []
        for answer in self.search.answers:
            text = _text(self.tokenizer, answer.tokens, answer.reason, self.search.params.skip_special_tokens)
            sequences.append(BeamSearchSequence(text, answer.tokens, answer.logprob, answer.score, answer.reason))
        prompt_ids = self.search.tokens[: self.search.n_source or None]
        return BeamSearchOutput(self.prompt, prompt_ids, sequences, self.search.timings())


@dataclass(frozen=True)
class PendingContrastiveSearch:
    """A contrastive search for one prompt."""

    prompt: str | None
    search: ContrastiveSearch
    tokenizer: Tokenizer

    @property
    def sequences(self) -> list[ContrastiveSearch]:
        return [self.search]

    def output(self) -> RequestOutput:
        """The result, once the search has finished."""
        search = self.search
        text = _text(self.tokenizer, search.answer, search.ending, search.params.skip_special_tokens)
        stopped = search.ending == "stop" and search.answer[-1] in search.params.stop_token_ids
        answer = CompletionOutput(
            0,
            text,
            search.answer,
            search.ending,
            search.timings(),
            stop_reason=search.answer[-1] if stopped else None,
        )
        return RequestOutput(self.prompt, search.tokens, [answer])


def _text(tokenizer: Tokenizer, tokens: list[int], reason: FinishReason, skip_special: bool) -> str:
    """The text of an answer, without the token that ended it."""
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    return "".join(map(decoder.push, tokens[:-1] if reason == "stop" else tokens)) + decoder.finish()
