"""``pipeline("text-generation", model=...)``: as in transformers.

Keywords and the shape of results are transformers': a list of inputs gives a list of lists, a conversation comes back with its
answer. One default differs: without ``do_sample`` decoding is greedy, while transformers' pipelines sample at 0.7.
Log-probabilities, hidden states and training are not supported; an unknown keyword raises an error that names it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from queue import Queue
from types import TracebackType
from typing import Any

import numpy as np

from gumba import store
from gumba.compat.transformers.auto import tokenizer_of
from gumba.compat.transformers.generation import Plan, Row
from gumba.compat.transformers.keywords import GenerationConfig, check_keywords
from gumba.compat.transformers.model import PreTrainedModel, opened
from gumba.compat.transformers.tokenizer import PreTrainedTokenizer, without_spaces
from gumba.errors import RequestError, UnsupportedError
from gumba.llm.engine_args import check_dtype
from gumba.llm.llm import LLM
from gumba.tokenizer.detokenizer import StreamDecoder
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import is_iterable, require_strings, show

log = logging.getLogger("gumba")

Message = Mapping[str, Any]
Record = dict[str, Any]

#: Keywords without effect: what gumba does anyway, or devices and data types of other libraries.
_WITHOUT_EFFECT = frozenset({
    "device", "device_map", "dtype", "torch_dtype", "framework", "trust_remote_code", "use_fast", "batch_size",
    "num_workers", "padding", "binary_output", "processor", "image_processor", "feature_extractor",
})  # fmt: skip
#: The tasks of decoders, and of encoder-decoders.
TASKS = ("text-generation", "text2text-generation")
#: Default maximum number of new tokens, as in transformers' pipelines.
DEFAULT_NEW_TOKENS = 256
#: The pipeline's keywords beside those of ``generate``.
_KEYWORDS = frozenset({
    "return_full_text", "return_tensors", "return_text", "skip_special_tokens", "clean_up_tokenization_spaces",
    "add_special_tokens", "continue_final_message", "tools", "documents", "prefix", "stop_sequence", "truncation",
    "handle_long_generation", "tokenizer_encode_kwargs", *_WITHOUT_EFFECT,
})  # fmt: skip


def pipeline(
    task: str = "text-generation",
    model: str | PathLike[str] | LLM | PreTrainedModel | None = None,
    *,
    tokenizer: Any = None,
    config: object = None,
    revision: str | None = None,
    token: str | bool | None = None,
    model_kwargs: Mapping[str, object] | None = None,
    **defaults: object,
) -> TextGenerationPipeline:
    """A callable that continues texts and answers conversations, as in transformers.

    Args:
        task: "text-generation", or of an encoder-decoder "text2text-generation".
        model: A GGUF file, a Hugging Face folder or hub id (converted once and kept), a known name, an ``LLM``, or a
            model of ``gumba.compat.transformers``; None: a small default model.
        tokenizer: One of ``gumba.compat.transformers``, of the same vocabulary; None: the model's.
        config: None, as the file has its own.
        revision, token: Branch, tag or commit of a model on a hub, and the access token for it.
        model_kwargs: Arguments of ``LLM`` (``n_ctx``, ``n_threads``, ...), and of transformers' ``from_pretrained``.
        defaults: Values for keywords of the calls (see ``TextGenerationPipeline``). Those about types of numbers
            (``torch_dtype``, ...) have no effect; ``device`` and ``device_map`` may say "cpu" or "auto".

    Raises:
        UnsupportedError: Another task, or another device.
        RequestError: ``model`` is no model, or a keyword is unknown.
    """
    if task not in TASKS:
        raise UnsupportedError(f"task: gumba has {' and '.join(map(repr, TASKS))}, found {show(task)}")
    if config is not None:
        raise UnsupportedError(f"config: expected None, because the model file has its own, found {show(config)}")
    _check_keywords(defaults)  # before anything is fetched
    if isinstance(model, LLM | PreTrainedModel):
        if model_kwargs:
            raise RequestError("model_kwargs: expected none, because the model is already loaded")
    else:
        naming = {"revision": revision, "token": token}
        model = opened(store.DEFAULT_MODEL if model is None else model, {**naming, **(model_kwargs or {})})
    if isinstance(tokenizer, str | PathLike):
        if str(tokenizer) != (model.name_or_path if isinstance(model, PreTrainedModel) else ""):
            log.warning("tokenizer=%s is ignored: gumba uses the tokenizer of the model file", show(tokenizer))
        tokenizer = None
    pipe = TextGenerationPipeline(model, tokenizer=tokenizer, **defaults)
    if task != pipe.task:
        raise UnsupportedError(
            f"task: this {pipe.llm.model.config.architecture} model is for {pipe.task!r}, found {task!r}"
        )
    return pipe


class TextGenerationPipeline:
    """Continues texts, and answers conversations, with an ``LLM``.

    Call it with a text, a list of texts, a conversation (a list of ``{"role": ..., "content": ...}``), or a list of
    conversations. A text gives ``[{"generated_text": text}, ...]``, one for each of ``num_return_sequences``; a
    conversation the same, where the text is the conversation with its answer; a list gives one such list for each.
    Control tokens' texts in a text are read as these tokens. A conversation that ends with a message of the assistant is
    continued (``continue_final_message``). An encoder-decoder's text is its answer alone.

    Keywords of a call are transformers'. Of the pipeline: ``return_full_text`` (True), ``return_tensors`` (token ids instead
    of text), ``skip_special_tokens`` (True), ``clean_up_tokenization_spaces``, ``add_special_tokens`` (True), ``prefix``
    (before each text, but not part of the result), ``truncation``, ``handle_long_generation``, ``stop_sequence``,
    ``continue_final_message``, ``tools``, ``documents``, ``tokenizer_encode_kwargs``. Of ``generate``: ``max_new_tokens`` (256),
    ``max_length`` (prompt and answer together), ``min_new_tokens``, ``min_length``, ``do_sample`` (False: the likeliest
    tokens), ``temperature`` (1.0), ``top_k`` (50), ``top_p`` (1.0), ``num_return_sequences`` (1), ``num_beams`` (1),
    ``length_penalty``, ``early_stopping``, ``repetition_penalty`` (1.0, over the whole context), ``no_repeat_ngram_size``,
    ``stop_strings`` (part of the text, as there), ``eos_token_id``, ``streamer``, ``generation_config`` and the others of
    ``gumba.compat.transformers.keywords``; ``seed`` is gumba's: for the same texts again.

    Attributes:
        model: The model, with ``generate``, ``config`` and ``generation_config``.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self, model: LLM | PreTrainedModel, *, tokenizer: PreTrainedTokenizer | None = None, **defaults: object
    ) -> None:
        _check_keywords(defaults)
        self.model = (
            PreTrainedModel(model, str(model.metadata.get("general.name", ""))) if isinstance(model, LLM) else model
        )
        self.llm = self.model.llm
        if tokenizer is None:
            tokenizer = tokenizer_of(self.llm, self.model.name_or_path)
        elif not isinstance(tokenizer, PreTrainedTokenizer) or not self.llm.tokenizer.same_vocabulary(
            tokenizer.backend
        ):
            raise RequestError(
                f"tokenizer: expected a gumba.compat.transformers tokenizer with the model's vocabulary, found {show(tokenizer)}"
            )
        self.tokenizer = tokenizer
        self.task = TASKS[0] if self.llm.model.config.start_token is None else TASKS[1]
        self._defaults = defaults

    @property
    def device(self) -> Any:
        """The CPU."""
        return self.model.device

    @property
    def generation_config(self) -> GenerationConfig:
        """The model's defaults of ``generate``'s keywords."""
        return self.model.generation_config

    def __call__(self, text_inputs: object, **options: object) -> Any:
        """Results for ``text_inputs``, in the shapes that the class documents.

        Raises RequestError (a ValueError) for invalid inputs or values of keywords, UnsupportedError for unsupported keywords
        that would change results, TemplateError if the chat template rejects a conversation.
        """
        _check_keywords(options)
        options = {**self._defaults, **options}
        inputs, one = _inputs(text_inputs)
        plan = Plan(self.llm, self.model.keywords(_generation(options)), DEFAULT_NEW_TOKENS)
        form = _Form(options)
        calls = [_Call(self, item, options, plan) for item in inputs]
        if plan.streamer is not None:
            if len(calls) != 1 or plan.n != 1:
                raise RequestError("streamer: expected a single input and a single answer")
            row = calls[0].row
            records = [[calls[0].record(plan.streamed(row, [row.ids]), form)]]
        else:
            answers = plan.answers([call.row for call in calls])
            records = [
                [call.record(answer, form) for answer in row_answers] for call, row_answers in zip(calls, answers)
            ]
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


class _Form:
    """The form of the results, as selected by the keywords."""

    def __init__(self, options: Mapping[str, object]) -> None:
        given = [
            name for name in ("return_full_text", "return_tensors", "return_text") if options.get(name) is not None
        ]
        if len(given) > 1:
            raise RequestError(f"{given[0]} and {given[1]} exclude each other: pass only one of them")
        self.ids = bool(options.get("return_tensors"))
        self.full = options.get("return_full_text") is not False
        self.skip_special = options.get("skip_special_tokens") is not False
        self.clean = options.get("clean_up_tokenization_spaces")


class _Call:
    """One input of a call: its token ids, and its results."""

    def __init__(
        self, pipe: TextGenerationPipeline, given: str | list[Message], options: Mapping[str, object], plan: Plan
    ) -> None:
        self._pipe = pipe
        self._text: str | None = None
        self._messages: list[Message] = []
        self._continued = False
        more = options.get("tokenizer_encode_kwargs") or {}
        if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
            raise RequestError(f"tokenizer_encode_kwargs: expected a dictionary of keywords, found {show(more)}")
        given_lengths = {name: options[name] for name in ("truncation", "max_length") if options.get(name) is not None}
        encoding = {**given_lengths, **more}
        n_prefix = 0
        if isinstance(given, str):
            self._text = given
            prefix = options.get("prefix") or ""
            if not isinstance(prefix, str):
                raise RequestError(f"prefix: expected a string, found {show(prefix)}")
            n_prefix = len(pipe.tokenizer.encode(prefix, add_special_tokens=False))
            if options.get("add_special_tokens") is not None:
                encoding["add_special_tokens"] = options["add_special_tokens"]
            ids = pipe.tokenizer.encode(prefix + given, **encoding)
            if not ids and pipe.tokenizer.bos_token_id is not None:
                ids = [pipe.tokenizer.bos_token_id]
        else:
            self._messages = given
            ids = self._chat_ids(options, encoding)
        if options.get("handle_long_generation") is not None:
            ids = self._cut(ids, options, plan)
        #: Token ids before the answer; none for an encoder-decoder, whose start token is not text.
        self._before = ids if pipe.llm.model.config.start_token is None else []
        self.row = Row(ids, len(ids) - n_prefix if self._before else 1)
        plan.new_tokens(self.row.n_counted)  # raises for a length that has no room for an answer

    def record(self, token_ids: list[int], form: _Form) -> Record:
        """The result of an answer."""
        if form.ids:
            return {"generated_token_ids": [*self._before, *token_ids]}
        text = self._pipe.llm.tokenizer.decode(token_ids, form.skip_special, continuation=True)
        text = without_spaces(text) if form.clean else text
        if not form.full or not self._before:
            return {"generated_text": text}
        if self._text is not None:
            return {"generated_text": self._text + text}
        if self._continued:
            *before, last = self._messages
            return {"generated_text": [*before, {**last, "content": last["content"] + text}]}
        return {"generated_text": [*self._messages, {"role": "assistant", "content": text}]}

    def _chat_ids(self, options: Mapping[str, Any], encoding: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins or continues."""
        last = self._messages[-1]
        chosen = options.get("continue_final_message")
        self._continued = last.get("role") == "assistant" if chosen is None else bool(chosen)
        ids = self._pipe.tokenizer.apply_chat_template(
            self._messages,
            tools=options.get("tools"),
            documents=options.get("documents"),
            add_generation_prompt=not self._continued,
            continue_final_message=self._continued,
            return_dict=False,
            **encoding,
        )
        return list(ids)

    def _cut(self, ids: list[int], options: Mapping[str, object], plan: Plan) -> list[int]:
        """The last tokens of a prompt that leave room for the answer in the context (``handle_long_generation="hole"``)."""
        if options["handle_long_generation"] != "hole":
            raise RequestError(
                f"handle_long_generation: expected 'hole' or None, found {show(options['handle_long_generation'])}"
            )
        most, n_ctx = plan.new_tokens(len(ids))[0], self._pipe.llm.model.n_ctx
        if len(ids) + most <= n_ctx:
            return ids
        if n_ctx <= most:
            raise RequestError(
                f"handle_long_generation: {most} new tokens leave no room for a prompt in the context of {n_ctx}"
            )
        return ids[most - n_ctx :]


def _inputs(given: object) -> tuple[list[str | list[Message]], bool]:
    """Texts or conversations, and whether the input was a single one outside of a list."""
    if isinstance(given, str):
        return [given], True
    if isinstance(given, Mapping) or not is_iterable(given):
        raise RequestError(f"text_inputs: expected text, messages, or a list of either, found {show(given)}")
    items = list(given)
    if items and all(isinstance(item, Mapping) for item in items):
        return [items], True
    prompts: list[str | list[Message]] = []
    for item in items:
        if isinstance(item, str):
            prompts.append(item)
        elif isinstance(item, Sequence) and item and all(isinstance(message, Mapping) for message in item):
            prompts.append(list(item))
        else:
            raise RequestError(f"text_inputs: expected text or a list of messages, found {show(item)}")
    return prompts, False


def _check_keywords(options: Mapping[str, object]) -> None:
    """Check the keywords of a call, or of the pipeline.

    Raises RequestError for an unknown one, UnsupportedError for a value that would change results and for devices other than
    the CPU.
    """
    for name in ("device", "device_map"):
        given = options.get(name)
        for device in given.values() if isinstance(given, Mapping) else [given]:
            if device is not None and str(device) not in ("cpu", "auto", "-1"):
                raise UnsupportedError(f"{name}: gumba computes on the CPU, found {show(given)}")
    for name in ("dtype", "torch_dtype"):
        if options.get(name) is not None:
            check_dtype(name, options[name])
    check_keywords(options, _KEYWORDS)


def _generation(options: Mapping[str, object]) -> dict[str, object]:
    """The keywords of ``generate`` among those of a call."""
    keywords = {name: value for name, value in options.items() if name not in _KEYWORDS}
    stops = options.get("stop_sequence")
    if stops is not None:
        more = options.get("stop_strings") or ()
        keywords["stop_strings"] = [*require_strings("stop_sequence", stops), *require_strings("stop_strings", more)]
    return keywords


class TextStreamer:
    """A ``streamer`` that writes text to stdout, in whole characters.

    ``tokenizer``: the pipeline's; ``skip_prompt``: do not write the prompt; ``decode_kwargs``: ``skip_special_tokens``.
    """

    def __init__(
        self, tokenizer: Tokenizer | PreTrainedTokenizer, skip_prompt: bool = False, **decode_kwargs: object
    ) -> None:
        unknown = sorted(set(decode_kwargs) - {"skip_special_tokens", "clean_up_tokenization_spaces"})
        if unknown:
            raise RequestError(f"{unknown[0]}: unknown keyword; expected skip_special_tokens")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self._skip_special = bool(decode_kwargs.get("skip_special_tokens", False))
        self._decoder: StreamDecoder | None = None

    def put(self, value: object) -> None:
        """Write token ids, an array [n] or [1, n]; the first call is the prompt."""
        ids = np.asarray(value)
        if ids.ndim > 1 and len(ids) > 1:
            raise RequestError("TextStreamer shows one answer at a time")
        first = self._decoder is None
        if self._decoder is None:
            self._decoder = StreamDecoder(
                self.tokenizer.backend if isinstance(self.tokenizer, PreTrainedTokenizer) else self.tokenizer,
                skip_special=self._skip_special,
                continuation=self.skip_prompt,
            )
        if not (first and self.skip_prompt):
            self.on_finalized_text("".join(map(self._decoder.push, ids.reshape(-1).tolist())))

    def end(self) -> None:
        """Write the pending text; the next tokens belong to another prompt."""
        rest = self._decoder.finish() if self._decoder is not None else ""
        self._decoder = None
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each new text; ``stream_end`` is True for the last one. Subclasses override it."""
        sys.stdout.write(text + ("\n" if stream_end else ""))
        sys.stdout.flush()


class TextIteratorStreamer(TextStreamer):
    """A ``streamer`` to iterate over, in another thread than the pipeline's call.

    ``timeout``: seconds to wait for a text before raising ``queue.Empty``; None waits forever.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: object,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue a text, and after the last one the end."""
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
