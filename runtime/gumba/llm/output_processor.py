"""What was asked of one prompt: the sequences that answer it, and the result that is made of them at their end."""

from __future__ import annotations

from dataclasses import dataclass

from gumba.chat.output_parser import AnswerFormat
from gumba.engine.search.beam import BeamSearch
from gumba.engine.search.contrastive import ContrastiveSearch
from gumba.engine.sequence import Generation
from gumba.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, FinishReason, RequestOutput
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class PendingRequest:
    """What was asked of one prompt, and the sequences that answer it."""

    prompt: str | None
    generations: list[Generation]
    #: Of a conversation: how its answers are taken apart.
    form: AnswerFormat | None = None

    def output(self) -> RequestOutput:
        """The result, when all have ended."""
        first = self.generations[0]
        found = (
            sorted(self.generations, key=_mean_logprob) if len(self.generations) > first.params.n else self.generations
        )
        outputs = []
        for index, each in enumerate(found[: first.params.n]):
            text = "".join(output.text for output in each.outputs)
            logprobs = [output.logprobs for output in each.outputs if output.logprobs is not None]
            asked = None if each.params.logprobs is None else logprobs
            stop_reason = each.outputs[-1].stop_reason if each.outputs else None
            output = CompletionOutput(
                index, text, each.answer, each.ending, each.timings(), asked, stop_reason=stop_reason
            )
            outputs.append(output if self.form is None else self.form.parser().output(output))
        asked_ids = first.prompt[: first.n_source or None]
        return RequestOutput(self.prompt, asked_ids, outputs, first.prompt_logprobs)


def _mean_logprob(generation: Generation) -> float:
    """Of all its tokens, with the sign changed: the likeliest first. Every answer of ``best_of`` has log-probabilities."""
    logprobs = [output.logprobs.logprob for output in generation.outputs if output.logprobs is not None]
    return -sum(logprobs) / len(logprobs) if logprobs else 0.0


@dataclass(frozen=True)
class PendingBeamSearch:
    """A beam search for one prompt."""

    prompt: str | None
    search: BeamSearch
    tokenizer: Tokenizer

    def output(self) -> BeamSearchOutput:
        """The result, when it has ended."""
        sequences = []
        for answer in self.search.answers:
            text = _text(self.tokenizer, answer.tokens, answer.reason, self.search.params.skip_special_tokens)
            sequences.append(BeamSearchSequence(text, answer.tokens, answer.logprob, answer.score, answer.reason))
        asked_ids = self.search.tokens[: self.search.n_source or None]
        return BeamSearchOutput(self.prompt, asked_ids, sequences, self.search.timings())


@dataclass(frozen=True)
class PendingContrastiveSearch:
    """A contrastive search for one prompt."""

    prompt: str | None
    search: ContrastiveSearch
    tokenizer: Tokenizer

    def output(self) -> RequestOutput:
        """The result, when it has ended."""
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
