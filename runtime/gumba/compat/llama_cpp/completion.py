"""One text completion: tokens become text, log-probabilities and an answer of OpenAI's form."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from gumba.compat.llama_cpp.llama_tokenizer import LlamaTokenizer, detokenize
from gumba.compat.llama_cpp.options import ArgumentError, logger, require, stop_list
from gumba.compat.llama_cpp.sampling import Controls, StoppingCriteria
from gumba.engine.stop_strings import StopStrings
from gumba.errors import EngineError, RequestError
from gumba.outputs import Logprobs as TokenLogprobs
from gumba.outputs import StreamOutput
from gumba.sampling_params import SamplingParams, show
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.loaded import LoadedModel


class Pieces:
    """Text as tokens arrive: whole characters (bytes that make none are left out), nothing of a stop string.

    ``strip``: leave out a space at the very beginning, as there is no text before it.
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
        """Text that is certain with this token."""
        piece = detokenize(self._tokenizer, [token], False)
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        return self._stops.push(self._decoder.decode(piece))

    def finish(self) -> str:
        """Text that was held back."""
        return self._stops.push(self._decoder.decode(b"", final=True)) + self._stops.flush()


class Step(NamedTuple):
    """A token, the text that became certain with it, and log-probabilities by token when they were asked for."""

    token: int
    text: str
    logprobs: Mapping[int, float] | None


class Logprobs:
    """Log-probabilities of tokens one after the other, in the form of OpenAI's completions.

    ``offset``: characters of text before the first one.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        self._tokenizer = tokenizer
        self.offset = offset
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")
        }

    def add(self, token: int, values: Mapping[int, float] | None, n_top: int) -> None:
        """One more token. ``values``: log-probabilities of it and of the likeliest tokens; None: unknown."""
        text = self._text(token)
        row: list[Any] = [text, self.offset, None, None]
        if values is not None:
            likeliest = sorted(values, key=lambda each: (-values[each], each))[:n_top]
            row[2:] = values[token], {self._text(each): values[each] for each in [*likeliest, token]}
        for column, value in zip(self._columns.values(), row):
            column.append(value)
        self.offset += len(text)

    def as_dict(self) -> dict[str, list[Any]]:
        """All so far."""
        return self._columns

    def _text(self, token: int) -> str:
        return detokenize(self._tokenizer, [token], False).decode("utf-8", "ignore")


def steps(
    llama: LoadedModel, tokens: Sequence[int], params: SamplingParams, criteria: StoppingCriteria | None
) -> Generator[tuple[int, StreamOutput], None, None]:
    """The engine's tokens after ``tokens``, and all it tells of each, until ``criteria`` (asked before each one) are met.

    Raises EngineError when the model is closed meanwhile.
    """
    rows: dict[int, Any] = {}  # logits, by the number of tokens before them: the engine may be ahead of its reader

    def keep(ids: list[int], logits: Any) -> Any:
        rows[len(ids)] = logits.copy()
        return logits

    if criteria is not None:
        params = replace(params, logits_processors=(keep, *params.logits_processors))
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


class Completion:
    """One call of ``create_completion``. ``response`` or ``chunks`` runs it, once."""

    def __init__(
        self,
        llama: LoadedModel,
        prompt: str | Sequence[int],
        controls: Controls,
        *,
        suffix: str | None,
        max_tokens: int | None,
        logprobs: int | None,
        echo: bool,
        stop: str | Sequence[str] | None,
        seed: int | None,
        model: str | None,
        stopping_criteria: StoppingCriteria | None,
    ) -> None:
        if logprobs is not None and not llama.logits_all:
            raise RequestError("logprobs is not supported for models created with logits_all=False")
        self._llama = llama
        self._tokenizer = llama.llm.tokenizer
        self._echo = echo
        self._n_top = logprobs
        self._criteria = stopping_criteria
        self._prompt, self.prompt_tokens, self._appended = self._read(prompt, suffix)
        n_prompt, n_ctx = len(self.prompt_tokens), llama.n_ctx()
        if n_prompt >= n_ctx:
            raise RequestError(f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}")
        room = n_ctx - n_prompt
        require("max_tokens", max_tokens, (Integral, type(None)), "an integer or None")
        require("stopping_criteria", stopping_criteria, (Callable, type(None)), "a function or None")  # type: ignore[arg-type]
        self._limit = room if max_tokens is None or max_tokens <= 0 else min(max_tokens, room)
        empty = isinstance(prompt, str) and not prompt
        self._pieces = Pieces(self._tokenizer, SamplingParams(stop=stop_list(stop)).stop, strip=empty)
        self._params = controls.params(
            window=llama.last_n_tokens_size,
            seed=llama.next_seed(seed),
            max_tokens=self._limit,
            logprobs=logprobs,
            prompt_lookup_tokens=llama.prompt_lookup_tokens,
        )
        self.tokens: list[int] = []
        self._finish_reason: str | None = None
        self._head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": llama.model_path if model is None else model,
        }

    def response(self) -> dict[str, Any]:
        """Run to the end."""
        done = list(self._steps())
        text = "".join(step.text for step in done) + self._tail()
        choice = {
            "text": (self._prompt if self._echo else "") + text + self._appended,
            "index": 0,
            "logprobs": None if self._n_top is None else self._logprobs(done, self._n_top),
            "finish_reason": self._finish_reason,
        }
        n_prompt, n_tokens = len(self.prompt_tokens), len(self.tokens)
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}
        return {**self._head, "choices": [choice], "usage": usage}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Run, a part of the text at a time (a token at a time with log-probabilities); the last one says why it ended."""
        offset = len(self._prompt)
        for step in self._steps():
            if self._n_top is None:
                if step.text:
                    yield self._chunk(step.text, None, None)
                continue
            logprobs = Logprobs(self._tokenizer, offset)
            logprobs.add(step.token, step.logprobs, self._n_top)
            offset = logprobs.offset
            yield self._chunk(step.text, logprobs.as_dict(), None)
        rest = self._tail() + self._appended
        if rest:
            yield self._chunk(rest, None, None)
        yield self._chunk("", None, self._finish_reason)

    def _logprobs(self, done: Sequence[Step], n_top: int) -> dict[str, list[Any]]:
        """Of the whole answer, and of the prompt before it where that is echoed."""
        logprobs = Logprobs(self._tokenizer, 0 if self._echo else len(self._prompt))
        if self._echo:
            tokens = self.prompt_tokens
            rows = self._llama.llm.logits(tokens)[:, : self._tokenizer.n_vocab]
            for i in range(tokens[0] == self._tokenizer.bos_id, len(tokens)):
                logprobs.add(tokens[i], None if i == 0 else _likeliest(rows[i - 1], n_top, tokens[i]), n_top)
        for step in done:
            logprobs.add(step.token, step.logprobs, n_top)
        found = logprobs.as_dict()
        if self._echo:
            found["token_logprobs"][:1] = found["top_logprobs"][:1] = [None]  # as OpenAI: nothing comes before it
        return found

    def _chunk(self, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def _tail(self) -> str:
        return "" if self._pieces.stopped else self._pieces.finish()

    def _steps(self) -> Iterator[Step]:
        """Tokens of the answer; the one that ends it by being an end-of-generation token is not among them."""
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

        With ``suffix``, models that have infill tokens write what goes between; others get it appended.
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
            if isinstance(llama.tokenizer_, LlamaTokenizer):
                ids = tokenizer.encode(prompt, add_special=True, parse_special=True)
            else:
                ids = llama.tokenize(prompt.encode("utf-8"), special=True)
            if not ids and tokenizer.bos_id is not None:
                ids = [tokenizer.bos_id]
            return prompt, ids, ""
        pre, suf, mid = (tokenizer.special_id(f"fim_{part}") for part in ("pre", "suf", "mid"))
        if pre is None or suf is None or mid is None:
            return prompt, self._read(prompt, None)[1], suffix
        before = [pre, *tokenizer.encode(prompt, add_special=False)]
        after = [suf, *tokenizer.encode(suffix, add_special=False)]
        start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        return prompt, [*start, *(after + before if llama.spm_infill else before + after), mid], ""


def _by_token(token: int, logprobs: TokenLogprobs | None) -> dict[int, float] | None:
    """Log-probabilities of ``token`` and of the likeliest ones, from what the engine tells of a token."""
    return None if logprobs is None else {**dict(logprobs.top), token: logprobs.logprob}


def _likeliest(logits: np.ndarray[Any, Any], n_top: int, token: int) -> dict[int, float]:
    """Log-probabilities of the ``n_top`` likeliest tokens, and of ``token``."""
    values = log_softmax(logits)
    top = np.argsort(-values, kind="stable")[:n_top].tolist()
    return {each: float(values[each]) for each in [*top, token]}


def log_softmax(logits: np.ndarray[Any, Any], axis: int = -1) -> np.ndarray[Any, Any]:
    """Log-probabilities of logits, float32, along ``axis``."""
    values = np.asarray(logits, np.float32)
    top = np.max(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(top), top, np.float32(0))
    with np.errstate(divide="ignore"):
        found: np.ndarray[Any, Any] = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return found
