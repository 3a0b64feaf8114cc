"""One text completion: tokens to text, log-probabilities and OpenAI's completion object."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from gumba.compat.llama_cpp.errors import ArgumentError
from gumba.compat.llama_cpp.llama_tokenizer import detokenize
from gumba.compat.llama_cpp.options import logger, require, stop_list
from gumba.compat.llama_cpp.sampling import Controls, StoppingCriteria
from gumba.compat.llama_cpp.state import CompletionModel, FloatArray
from gumba.engine.stop_strings import StopStrings
from gumba.errors import EngineError, RequestError
from gumba.openai.responses import Head, text_choice, text_completion, usage
from gumba.outputs import Logprobs as TokenLogprobs
from gumba.outputs import StreamOutput
from gumba.sampling_params import SamplingParams
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

if TYPE_CHECKING:
    from gumba.openai import types


class Pieces:
    """Decodes tokens as they arrive: whole characters (invalid bytes are dropped), without any part of a stop string.

    ``strip``: drop a space at the very beginning.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._stops = StopStrings(stops)
        self._strip = strip

    @property
    def stopped(self) -> bool:
        """Whether a stop string was seen."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that this token completes."""
        piece = detokenize(self._tokenizer, [token], False)
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        return self._stops.push(self._decoder.decode(piece))

    def finish(self) -> str:
        """The pending text at the end."""
        return self._stops.push(self._decoder.decode(b"", final=True)) + self._stops.flush()


class Step(NamedTuple):
    """A token, the text that it completes, and log-probabilities by token if requested."""

    token: int
    text: str
    logprobs: Mapping[int, float] | None


class Logprobs:
    """Collects log-probabilities of tokens in the shape of OpenAI's completions.

    ``offset``: characters of text before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        self._tokenizer = tokenizer
        self.offset = offset
        self.columns: types.CompletionLogprobs = {
            "tokens": [],
            "text_offset": [],
            "token_logprobs": [],
            "top_logprobs": [],
        }

    def add(self, token: int, values: Mapping[int, float] | None, n_top: int) -> None:
        """Append a token. ``values``: log-probabilities of it and of the most likely tokens; None: unknown."""
        text = self._text(token)
        self.columns["tokens"].append(text)
        self.columns["text_offset"].append(self.offset)
        self.columns["token_logprobs"].append(None if values is None else values[token])
        top: dict[str, float] | None = None
        if values is not None:
            likeliest = sorted(values, key=lambda other: (-values[other], other))[:n_top]
            top = {self._text(other): values[other] for other in [*likeliest, token]}
        self.columns["top_logprobs"].append(top)
        self.offset += len(text)

    def _text(self, token: int) -> str:
        return detokenize(self._tokenizer, [token], False).decode("utf-8", "ignore")


def steps(
    llama: CompletionModel, tokens: Sequence[int], params: SamplingParams, criteria: StoppingCriteria | None
) -> Generator[tuple[int, StreamOutput], None, None]:
    """The engine's tokens after ``tokens``, with its output for each, until ``criteria`` (checked before each token) are met.

    Raises EngineError when the model is closed meanwhile.
    """
    rows: dict[int, FloatArray] = {}  # logits by the number of preceding tokens: the engine may be ahead of its reader

    def record_logits(ids: list[int], logits: FloatArray) -> FloatArray:
        rows[len(ids)] = logits.copy()
        return logits

    if criteria is not None:
        params = replace(params, logits_processors=(record_logits, *params.logits_processors))
    history = list(tokens)
    stream = cast("Generator[StreamOutput, None, None]", llama.llm.stream(history, params))
    with closing(stream) as outputs:
        for output in outputs:
            if output.token_id is None:
                raise EngineError("the request was cancelled")
            if criteria is not None and criteria(np.array(history, np.intc), rows.pop(len(history))):
                return
            yield output.token_id, output
            history.append(output.token_id)


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """The keywords of ``create_completion`` besides the prompt and the samplers."""

    suffix: str | None
    max_tokens: int | None
    logprobs: int | None
    echo: bool
    stop: str | Sequence[str] | None
    seed: int | None
    model: str | None
    stopping_criteria: StoppingCriteria | None


class Completion:
    """One call of ``create_completion``. ``response`` or ``chunks`` runs it, once."""

    def __init__(
        self, llama: CompletionModel, prompt: str | Sequence[int], controls: Controls, options: CompletionOptions
    ) -> None:
        if options.logprobs is not None and not llama.logits_all:
            raise RequestError("logprobs is not supported for models created with logits_all=False")
        self._llama = llama
        self._tokenizer = llama.llm.tokenizer
        self._echo = options.echo
        self._n_top = options.logprobs
        self._criteria = options.stopping_criteria
        self._prompt, self.prompt_tokens, self._appended = self._read(prompt, options.suffix)
        n_prompt, n_ctx = len(self.prompt_tokens), llama.n_ctx()
        if n_prompt >= n_ctx:
            raise RequestError(f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}")
        limit, max_tokens = n_ctx - n_prompt, options.max_tokens
        require("max_tokens", max_tokens, (Integral, type(None)), "an integer or None")
        require("stopping_criteria", self._criteria, (Callable, type(None)), "a function or None")  # type: ignore[arg-type]
        self._limit = limit if max_tokens is None or max_tokens <= 0 else min(max_tokens, limit)
        empty = isinstance(prompt, str) and not prompt
        self._pieces = Pieces(self._tokenizer, SamplingParams(stop=stop_list(options.stop)).stop, strip=empty)
        self._params = controls.params(
            window=llama.last_n_tokens_size,
            seed=llama.next_seed(options.seed),
            max_tokens=self._limit,
            logprobs=options.logprobs,
            prompt_lookup_tokens=llama.prompt_lookup_tokens,
        )
        self.tokens: list[int] = []
        self._finish_reason: str | None = None
        model = llama.model_path if options.model is None else options.model
        self._head = Head(f"cmpl-{uuid.uuid4()}", int(time.time()), model)

    def response(self) -> types.CreateCompletionResponse:
        """Run to the end."""
        steps_done = list(self._steps())
        text = "".join(step.text for step in steps_done) + self._tail()
        choice = text_choice(
            (self._prompt if self._echo else "") + text + self._appended,
            None if self._n_top is None else self._logprobs(steps_done, self._n_top),
            self._finish_reason,
        )
        return text_completion(self._head, [choice], usage(len(self.prompt_tokens), len(self.tokens)))

    def chunks(self) -> Iterator[types.CreateCompletionStreamResponse]:
        """Run, and yield the text as it comes (token by token with log-probabilities); the last chunk has the finish reason."""
        offset = len(self._prompt)
        for step in self._steps():
            if self._n_top is None:
                if step.text:
                    yield self._chunk(step.text, None, None)
                continue
            logprobs = Logprobs(self._tokenizer, offset)
            logprobs.add(step.token, step.logprobs, self._n_top)
            offset = logprobs.offset
            yield self._chunk(step.text, logprobs.columns, None)
        rest = self._tail() + self._appended
        if rest:
            yield self._chunk(rest, None, None)
        yield self._chunk("", None, self._finish_reason)

    def _logprobs(self, steps_done: Sequence[Step], n_top: int) -> types.CompletionLogprobs:
        """Log-probabilities of the whole answer, and of the prompt if it is echoed."""
        logprobs = Logprobs(self._tokenizer, 0 if self._echo else len(self._prompt))
        if self._echo:
            tokens = self.prompt_tokens
            rows = self._llama.llm.logits(tokens)[:, : self._tokenizer.n_vocab]
            for i in range(tokens[0] == self._tokenizer.bos_id, len(tokens)):
                logprobs.add(tokens[i], None if i == 0 else _top_logprobs(rows[i - 1], n_top, tokens[i]), n_top)
        for step in steps_done:
            logprobs.add(step.token, step.logprobs, n_top)
        columns = logprobs.columns
        if self._echo:
            columns["token_logprobs"][:1] = [None]  # as OpenAI: the first token has no context
            columns["top_logprobs"][:1] = [None]
        return columns

    def _chunk(
        self, text: str, logprobs: types.CompletionLogprobs | None, finish_reason: str | None
    ) -> types.CreateCompletionStreamResponse:
        return text_completion(self._head, [text_choice(text, logprobs, finish_reason)])

    def _tail(self) -> str:
        return "" if self._pieces.stopped else self._pieces.finish()

    def _steps(self) -> Iterator[Step]:
        """Tokens of the answer, without a final end-of-generation token."""
        with closing(steps(self._llama, self.prompt_tokens, self._params, self._criteria)) as outputs:
            for token, output in outputs:
                if token in self._tokenizer.eog_ids:
                    break
                self.tokens.append(token)
                text = self._pieces.push(token)
                if output.finish_reason == "length":
                    self._finish_reason = "length"
                if self._pieces.stopped:
                    self._finish_reason = "stop"
                    if self._params.structured_outputs is not None:
                        logger.warning("a stop string ended a grammar-constrained answer, which may be incomplete")
                yield Step(token, text, _by_token(token, output.logprobs))
                if self._finish_reason:
                    break
        self._finish_reason = self._finish_reason or "stop"
        self._llama.remember([*self.prompt_tokens, *self.tokens])

    def _read(self, prompt: str | Sequence[int], suffix: str | None) -> tuple[str, list[int], str]:
        """The prompt's text and tokens, and the text to append to the answer.

        With ``suffix``, models with infill tokens generate the text between; for others it is appended.
        """
        llama, tokenizer = self._llama, self._tokenizer
        if suffix is not None and not isinstance(suffix, str):
            raise RequestError(f"suffix: expected text, found {show(suffix)}")
        if isinstance(prompt, bytes | bytearray | memoryview) or not isinstance(prompt, Sequence):
            raise ArgumentError(f"prompt: expected text or a list of token ids, found {show(prompt)}")
        if not isinstance(prompt, str):
            prompt = [tokenizer.check_id(token) for token in prompt]
            return detokenize(tokenizer, prompt, False).decode("utf-8", "ignore"), list(prompt), suffix or ""
        if suffix is None:
            if llama.has_own_tokenizer:
                ids = tokenizer.encode(prompt, add_special=True, parse_special=True)
            else:
                ids = llama.tokenize(prompt.encode("utf-8"), special=True)
            if not ids and tokenizer.bos_id is not None:
                ids = [tokenizer.bos_id]
            return prompt, ids, ""
        pre, suf, mid = (tokenizer.special_id(f"fim_{part}") for part in ("pre", "suf", "mid"))
        if pre is None or suf is None or mid is None:
            return prompt, self._read(prompt, None)[1], suffix
        prefix_ids = [pre, *tokenizer.encode(prompt, add_special=False)]
        suffix_ids = [suf, *tokenizer.encode(suffix, add_special=False)]
        bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        return prompt, [*bos, *(suffix_ids + prefix_ids if llama.spm_infill else prefix_ids + suffix_ids), mid], ""


def _by_token(token: int, logprobs: TokenLogprobs | None) -> dict[int, float] | None:
    """Log-probabilities of ``token`` and of the most likely tokens."""
    return None if logprobs is None else {**dict(logprobs.top), token: logprobs.logprob}


def _top_logprobs(logits: FloatArray, n_top: int, token: int) -> dict[int, float]:
    """Log-probabilities of the ``n_top`` most likely tokens, and of ``token``."""
    values = log_softmax(logits)
    top = np.argsort(-values, kind="stable")[:n_top].tolist()
    return {other: float(values[other]) for other in [*top, token]}


def log_softmax(logits: FloatArray, axis: int = -1) -> FloatArray:
    """Log-probabilities of logits, float32, along ``axis``."""
    values = np.asarray(logits, np.float32)
    top = np.max(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(top), top, np.float32(0))
    with np.errstate(divide="ignore"):
        logprobs: FloatArray = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return logprobs
