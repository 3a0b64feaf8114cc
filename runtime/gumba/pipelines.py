"""``pipeline("text-generation", model=...)``: the interface that people know from transformers.

Keywords, their defaults and the shape of results are transformers': without ``do_sample`` the likeliest tokens are taken,
a list of inputs gives a list of lists, a conversation comes back with its answer. Log-probabilities, hidden states and
training are not here; a keyword that gumba does not know is refused by name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from queue import Queue
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from gumba import sources
from gumba.errors import RequestError, UnsupportedError
from gumba.llm import LLM
from gumba.params import SamplingParams, require_count, show
from gumba.text import StreamDecoder, Tokenizer, encode_chat

log = logging.getLogger("gumba")

Message = Mapping[str, Any]
Record = dict[str, Any]

#: The order in which transformers filters.
_SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
#: Keywords that say what gumba does anyway, or where and in what type other libraries compute.
_WITHOUT_EFFECT = frozenset({
    "device", "device_map", "dtype", "torch_dtype", "framework", "trust_remote_code", "use_fast", "batch_size",
    "num_workers", "pad_token_id", "use_cache", "truncation", "padding", "clean_up_tokenization_spaces",
    "renormalize_logits", "tokenizer",
})  # fmt: skip
#: What models that continue texts are for, and encoder-decoders.
TASKS = ("text-generation", "text2text-generation")
#: transformers' names -> SamplingParams' of what is the same.
_SAME = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical_p",
    "epsilon_cutoff": "epsilon_cutoff", "eta_cutoff": "eta_cutoff", "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size", "min_new_tokens": "min_tokens", "seed": "seed",
    "prompt_lookup_num_tokens": "prompt_lookup_tokens",
}  # fmt: skip
_KEYWORDS = {
    *_SAME, "max_new_tokens", "max_length", "do_sample", "num_return_sequences", "stop_strings", "stop_sequence",
    "eos_token_id", "num_beams", "return_full_text", "return_tensors", "skip_special_tokens", "add_special_tokens",
    "continue_final_message", "tools", "documents", "prefix", "streamer",
}  # fmt: skip


class Streamer(Protocol):
    """What ``streamer`` must be: transformers' streamers are, too."""

    def put(self, value: Any, /) -> None:
        """Take token ids, int64: of the prompt [1, n] first, then each new one [1]."""

    def end(self) -> None:
        """Take note that there are no more."""


def pipeline(
    task: str = "text-generation",
    model: str | PathLike[str] | LLM | None = None,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> TextGenerationPipeline:
    """A callable that continues texts and answers conversations, for people who come from transformers.

    Args:
        task: "text-generation", or of an encoder-decoder "text2text-generation".
        model: A GGUF file, a Hugging Face folder or hub id (converted once and kept), a known name, or an ``LLM``;
            None: a small default model.
        model_kwargs: Arguments of ``LLM`` (``n_ctx``, ``n_threads``, ...).
        defaults: Values for keywords of the calls (see ``TextGenerationPipeline``). Those about types of numbers
            (``torch_dtype``, ...) have no effect; ``device`` and ``device_map`` may say "cpu" or "auto".

    Raises:
        UnsupportedError: Another task, or another device.
        RequestError: ``model`` is no model, or a keyword is unknown.
    """
    if task not in TASKS:
        raise UnsupportedError(f"task: gumba has {' and '.join(map(repr, TASKS))}, found {show(task)}")
    _check_keywords(defaults)  # before anything is fetched
    if model is None and sources.pulled(sources.DEFAULT_MODEL) is None:
        known = sources.KNOWN[sources.DEFAULT_MODEL]
        log.warning(
            "no model is given: fetching %s (%.0f MB) to %s", known.title, known.n_bytes / 1e6, sources.models_folder()
        )
    if not isinstance(model, LLM):
        model = LLM(sources.resolve(model), **(model_kwargs or {}))
    elif model_kwargs:
        raise RequestError("model_kwargs: the model is loaded already")
    made = TextGenerationPipeline(model, **defaults)
    if task != made.task:
        raise UnsupportedError(
            f"task: this {model.model.config.architecture} model is for {made.task!r}, found {task!r}"
        )
    return made


class TextGenerationPipeline:
    """Continues texts, and answers conversations, with an ``LLM``.

    Call it with a text, a list of texts, a conversation (a list of ``{"role": ..., "content": ...}``), or a list of
    conversations. A text gives ``[{"generated_text": text}, ...]``, one for each of ``num_return_sequences``; a
    conversation the same, where the text is the conversation with its answer; a list gives one such list for each.
    Control tokens' texts in a text are read as these tokens. A conversation that ends with the assistant's words is gone on
    with (``continue_final_message``). An encoder-decoder's text is its answer alone.

    Keywords of a call: ``max_new_tokens`` (256), ``max_length`` (prompt and answer together), ``min_new_tokens``,
    ``do_sample`` (False), ``temperature`` (1.0), ``top_k`` (50), ``top_p`` (1.0), ``min_p``, ``typical_p``,
    ``epsilon_cutoff``, ``eta_cutoff``, ``repetition_penalty`` (1.0, over the whole context), ``no_repeat_ngram_size``,
    ``num_return_sequences`` (1), ``stop_strings`` or ``stop_sequence`` (part of the text, as there), ``eos_token_id``,
    ``prompt_lookup_num_tokens``, ``seed`` (gumba's: for the same texts again), ``return_full_text`` (True),
    ``return_tensors`` (token ids instead of text), ``skip_special_tokens`` (True), ``add_special_tokens`` (True),
    ``continue_final_message``, ``tools``, ``documents``, ``prefix``, ``streamer``.
    """

    def __init__(self, llm: LLM, **defaults: Any) -> None:
        _check_keywords(defaults)
        self.llm = llm
        self.task = TASKS[0] if llm.model.config.start_token is None else TASKS[1]
        self._defaults = defaults

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.llm.tokenizer

    def __call__(self, text_inputs: Any, **options: Any) -> Any:
        """Results for ``text_inputs``, in the shapes that the class tells.

        Raises RequestError (a ValueError) for inputs, or a keyword's value, that are wrong, TemplateError when the chat
        template refuses a conversation.
        """
        _check_keywords(options)
        options = {**self._defaults, **options}
        inputs, one = _inputs(text_inputs)
        calls = [_Call(self.llm, each, options) for each in inputs]
        streamer = options.get("streamer")
        if streamer is not None:
            if len(calls) != 1 or calls[0].n != 1:
                raise RequestError("streamer: expected a single input and a single answer")
            records = [calls[0].stream(streamer)]
        else:
            params = [each for call in calls for each in call.samples()]
            prompts = [call.ids for call in calls for _ in range(call.n)]
            answers = iter(self.llm.generate(prompts, params))
            records = [[call.record(next(answers).token_ids) for _ in range(call.n)] for call in calls]
        return records[0] if one else records

    def close(self) -> None:
        """Free the model."""
        self.llm.close()

    def __enter__(self) -> TextGenerationPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Call:
    """One input of a call: its token ids, its parameters, and the form of its result."""

    def __init__(self, llm: LLM, given: str | list[Message], options: Mapping[str, Any]) -> None:
        self._llm = llm
        self._options = options
        self._text: str | None = None
        self._messages: list[Message] = []
        self._continued = False
        if isinstance(given, str):
            self._text = options.get("prefix", "") + given
            special = bool(options.get("add_special_tokens", True))
            self.ids = llm.tokenizer.encode(self._text, add_special=special, parse_special=True)
            if not self.ids and llm.tokenizer.bos_id is not None:
                self.ids = [llm.tokenizer.bos_id]
        else:
            self._messages = given
            self.ids = self._chat_ids()
        self.n = require_count("num_return_sequences", options.get("num_return_sequences", 1), 1)
        #: What stands before an answer: of an encoder-decoder nothing but its start, which is no text.
        self._before = self.ids if llm.model.config.start_token is None else []
        self.params = _params(options, len(self.ids) if llm.model.config.start_token is None else 1)

    def samples(self) -> list[SamplingParams]:
        """What to ask for each answer: the same, but for the seed."""
        seed = self.params.seed
        if seed is None:
            return [self.params] * self.n
        return [replace(self.params, seed=(seed + i) % 2**64) for i in range(self.n)]

    def record(self, token_ids: list[int]) -> Record:
        """The result of an answer."""
        if self._options.get("return_tensors"):
            return {"generated_token_ids": [*self._before, *token_ids]}
        skip = bool(self._options.get("skip_special_tokens", True))
        text = self._llm.tokenizer.decode(token_ids, skip, continuation=True)
        if self._options.get("return_full_text") is False or not self._before:
            return {"generated_text": text}
        if self._text is not None:
            return {"generated_text": self._text + text}
        if self._continued:
            *before, last = self._messages
            return {"generated_text": [*before, {**last, "content": last["content"] + text}]}
        return {"generated_text": [*self._messages, {"role": "assistant", "content": text}]}

    def stream(self, streamer: Streamer) -> list[Record]:
        """The result, whose tokens ``streamer`` gets as they come; it is told the end whatever happens."""
        token_ids: list[int] = []
        try:
            streamer.put(np.array([self.ids], np.int64))
            for output in self._llm.stream(self.ids, self.params):
                if output.token_id is not None:
                    token_ids.append(output.token_id)
                    streamer.put(np.array([output.token_id], np.int64))
        finally:
            streamer.end()
        return [self.record(token_ids)]

    def _chat_ids(self) -> list[int]:
        """Token ids of a conversation up to where the answer begins, or goes on."""
        variables = {
            name: self._options[name] for name in ("tools", "documents") if self._options.get(name) is not None
        }

        def encode(messages: list[Message]) -> list[int]:
            return encode_chat(self._llm.tokenizer, self._llm.chat_template, messages, **variables)

        last = self._messages[-1]
        chosen = self._options.get("continue_final_message")
        self._continued = last.get("role") == "assistant" if chosen is None else bool(chosen)
        if not self._continued:
            return encode(self._messages)
        if not isinstance(last.get("content"), str):
            raise RequestError(
                f"messages: expected text to go on with in the last one, found {show(last.get('content'))}"
            )
        return [*encode(self._messages[:-1]), *self._llm.tokenizer.encode(last["content"], add_special=False)]


def _inputs(given: Any) -> tuple[list[str | list[Message]], bool]:
    """Texts or conversations, and whether there was just one, not in a list."""
    if isinstance(given, str):
        return [given], True
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise RequestError(f"text_inputs: expected text, messages, or a list of either, found {show(given)}")
    items = list(given)
    if items and all(isinstance(each, Mapping) for each in items):
        return [items], True
    found: list[str | list[Message]] = []
    for item in items:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Sequence) and item and all(isinstance(each, Mapping) for each in item):
            found.append(list(item))
        else:
            raise RequestError(f"text_inputs: expected text or a list of messages, found {show(item)}")
    return found, False


def _check_keywords(options: Mapping[str, Any]) -> None:
    """Raises RequestError for an unknown keyword, UnsupportedError for beams and for devices other than the processor."""
    if options.get("num_beams", 1) not in (None, 1):
        raise UnsupportedError("num_beams: the pipeline takes the likeliest token or draws; use LLM.beam_search")
    for name in ("device", "device_map"):
        given = options.get(name)
        for device in given.values() if isinstance(given, Mapping) else [given]:
            if device is not None and str(device) not in ("cpu", "auto", "-1"):
                raise UnsupportedError(f"{name}: gumba computes on the CPU, found {show(given)}")
    for name in options:
        if name not in _KEYWORDS and name not in _WITHOUT_EFFECT:
            raise RequestError(f"{show(name)}: unknown keyword; expected some of {', '.join(sorted(_KEYWORDS))}")


def _params(options: Mapping[str, Any], n_prompt: int) -> SamplingParams:
    """transformers' generation keywords, with its defaults."""
    most = options.get("max_new_tokens")
    if most is None and options.get("max_length") is not None:
        most = require_count("max_length", options["max_length"], 1) - n_prompt
        if most < 1:
            raise RequestError(f"max_length: the input has {n_prompt} tokens already; set max_new_tokens instead")
    ends = options.get("eos_token_id")
    values = {ours: options[theirs] for theirs, ours in _SAME.items() if options.get(theirs) is not None}
    if not options.get("do_sample", False):
        values["temperature"] = 0
    stops = [options.get("stop_strings"), options.get("stop_sequence")]
    params = SamplingParams(
        **{"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, **values},
        max_tokens=256 if most is None else most,
        samplers=_SAMPLERS,
        repetition_window=-1,
        stop=[text for each in stops if each is not None for text in ([each] if isinstance(each, str) else each)],
        stop_token_ids=() if ends is None else [ends] if isinstance(ends, int) else ends,
        ignore_eos=ends is not None,
    )
    return params


class TextStreamer:
    """A ``streamer`` that writes text to stdout as soon as its characters are whole.

    ``tokenizer``: the pipeline's; ``skip_prompt``: leave the input out; ``decode_kwargs``: ``skip_special_tokens``.
    """

    def __init__(self, tokenizer: Tokenizer, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        unknown = sorted(set(decode_kwargs) - {"skip_special_tokens", "clean_up_tokenization_spaces"})
        if unknown:
            raise RequestError(f"{unknown[0]}: unknown keyword; expected skip_special_tokens")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self._skip_special = bool(decode_kwargs.get("skip_special_tokens", False))
        self._decoder: StreamDecoder | None = None

    def put(self, value: Any) -> None:
        """Token ids, an array [n] or [1, n]; the first one is the prompt."""
        ids = np.asarray(value)
        if ids.ndim > 1 and len(ids) > 1:
            raise RequestError("TextStreamer shows one answer at a time")
        first = self._decoder is None
        if self._decoder is None:
            self._decoder = StreamDecoder(
                self.tokenizer, skip_special=self._skip_special, continuation=self.skip_prompt
            )
        if not (first and self.skip_prompt):
            self.on_finalized_text("".join(map(self._decoder.push, ids.reshape(-1).tolist())))

    def end(self) -> None:
        """What is left; the next tokens are those of another prompt."""
        rest = self._decoder.finish() if self._decoder is not None else ""
        self._decoder = None
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each new text; ``stream_end`` with the last one. For subclasses."""
        sys.stdout.write(text + ("\n" if stream_end else ""))
        sys.stdout.flush()


class TextIteratorStreamer(TextStreamer):
    """A ``streamer`` to iterate over, in another thread than the pipeline's call.

    ``timeout``: seconds to wait for a text before ``queue.Empty`` is raised; None waits for ever.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue a text, and the end."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text
