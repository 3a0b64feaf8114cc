"""``Conversation``: messages and answers of one chat, kept together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from gumba.chat.template import Content, encode_chat, joined_text, plain_messages
from gumba.chat.tool_parsers.base import checked_tools
from gumba.errors import RequestError, TemplateError
from gumba.sampling_params import SamplingParams
from gumba.validation import require_count, show

if TYPE_CHECKING:
    from gumba.chat.template import ChatTemplate
    from gumba.outputs import KVUsage, RequestOutput, StreamOutput, ToolCall
    from gumba.tokenizer.tokenizer import Tokenizer

#: Kind and version of the notes in a conversation's session file.
KIND, VERSION = "conversation", 1

Message = dict[str, Any]


class ContextLength(Protocol):
    """What a conversation needs of ``gumba.runner.load.Model``."""

    @property
    def n_ctx(self) -> int: ...


class ChatModel(Protocol):
    """What a conversation needs of ``gumba.llm.llm.LLM``."""

    @property
    def model(self) -> ContextLength: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate: ...

    @property
    def tool_template(self) -> ChatTemplate: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None,
        reasoning: str,
        template_args: Mapping[str, object] | None,
    ) -> RequestOutput: ...

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None,
        reasoning: str,
        template_args: Mapping[str, object] | None,
    ) -> Iterator[StreamOutput]: ...

    def kv_usage(self) -> KVUsage: ...

    def save_session(self, path: str | PathLike[str], tokens: Sequence[int], notes: Any = None) -> int: ...

    def load_session(self, path: str | PathLike[str]) -> tuple[list[int], Any]: ...


class Conversation:
    """A conversation with a model, by its chat template.

    The KV pages of earlier turns are reused as long as the prefix cache keeps them. One thread at a time may use a
    conversation; its forks are independent of it.

    Args:
        llm: The model.
        system: The system message; None for none.
        params: Sampling parameters of the answers. With a seed, the n-th answer to one message has ``seed + n - 1``.
        template_args: Further variables of the template (``enable_thinking`` of some models).
        forgetful: When the context is full, drop the oldest messages and their answers until a quarter of it (or
            ``max_tokens``, if that is less) is free; otherwise a message that does not fit raises RequestError.
        reasoning: As of ``LLM.chat``. Reasoning goes to the message's ``reasoning_content``, which templates leave out of later
            prompts.
        tools: Functions that the model may call, as of ``LLM.chat``. After an answer with calls, ``tell`` passes their results.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` each, the oldest first. May be changed between turns.
        params: Sampling parameters; may be changed between turns, as may ``template_args``, ``forgetful``, ``reasoning`` and
            ``tools``.
        forgotten: Number of the user's messages that have been dropped.
    """

    def __init__(
        self,
        llm: ChatModel,
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        template_args: Mapping[str, object] | None = None,
        forgetful: bool = False,
        reasoning: str = "auto",
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        if params is not None and not isinstance(params, SamplingParams):
            raise RequestError(f"params: expected SamplingParams, found {show(params)}")
        self._llm = llm
        self.params = SamplingParams() if params is None else params
        self.template_args = {} if template_args is None else _template_args("template_args", template_args)
        self.forgetful = forgetful
        self.reasoning = reasoning
        self.tools = None if tools is None else checked_tools(tools)
        self.forgotten = 0
        self.messages: list[Message] = []
        self._attempt = 0
        self._streaming = False
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message, the first of ``messages``. Setting it keeps the others; None removes it."""
        first = self.messages[0] if self.messages else {}
        return first.get("content") if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self._check_idle()
        if text is not None and not isinstance(text, str):
            raise RequestError(f"system: expected a text or None, found {show(text)}")
        self.messages[: self._first] = [] if text is None else [{"role": "system", "content": text}]

    def send(self, text: Content) -> RequestOutput:
        """Answer the message ``text``, a string or a list of ``{"type": "text", "text": ...}``.

        Raises as ``LLM.chat`` does. Then, or after Ctrl-C, the conversation is as it was before.
        """
        return self._finish(self._with_message(text), 0)

    def stream(self, text: Content) -> Iterator[StreamOutput]:
        """As ``send``, one StreamOutput per token, as ``LLM.stream`` gives them.

        The message is checked now and joins the conversation with the first item. If the iterator is closed, or Ctrl-C
        interrupts it, the text so far is kept as the answer; after an error the conversation is as it was before.
        """
        return self._stream(self._with_message(text), 0)

    def tell(self, results: Sequence[str]) -> RequestOutput:
        """Answer the tools' ``results``, one text for each of the last answer's ``tool_calls``, in the same order.

        Raises RequestError if the last answer has another number of calls, and as ``send`` does.
        """
        return self._finish(self._with_results(results), 0)

    def tell_stream(self, results: Sequence[str]) -> Iterator[StreamOutput]:
        """As ``tell``, one StreamOutput per token, as ``stream`` gives them."""
        return self._stream(self._with_results(results), 0)

    def regenerate(self) -> RequestOutput:
        """Replace the last answer by another one to the same message (the same one at temperature 0).

        Raises RequestError if there is no answer, and as ``send`` does.
        """
        return self._finish(self._without_last_answer(), self._attempt + 1)

    def regenerate_stream(self) -> Iterator[StreamOutput]:
        """As ``regenerate``, one StreamOutput per token, as ``stream`` gives them."""
        return self._stream(self._without_last_answer(), self._attempt + 1)

    def undo(self) -> Message:
        """Remove and return the user's last message; remove everything after it, too.

        Raises RequestError if there is none.
        """
        self._check_idle()
        for index in reversed(range(len(self.messages))):
            if self.messages[index].get("role") == "user":
                message = self.messages[index]
                del self.messages[index:]
                self._attempt = 0
                return message
        raise RequestError("there is no message yet")

    def clear(self) -> None:
        """Remove all messages but the system message."""
        self._check_idle()
        del self.messages[self._first :]
        self._attempt = 0

    def fork(self) -> Conversation:
        """An independent copy. The KV cache of the common prefix is shared."""
        self._check_idle()
        twin = copy.copy(self)
        twin.messages = copy.deepcopy(self.messages)
        twin.template_args, twin.tools = copy.deepcopy((self.template_args, self.tools))
        return twin

    def save(self, path: str | PathLike[str]) -> None:
        """Write messages, settings and KV pages to a session file that ``load`` reads.

        Raises RequestError for a setting that cannot be saved (``logits_processors``), ResourceError if the file cannot be
        written, EngineError if the LLM is closed.
        """
        self._check_idle()
        notes = {
            "kind": KIND,
            "version": VERSION,
            "messages": _messages("messages", self.messages),
            "params": settings_of(self.params),
            "template_args": self.template_args,
            "forgetful": self.forgetful,
            "forgotten": self.forgotten,
            "attempt": self._attempt,
        }
        if self.tools is not None:
            notes["tools"] = self.tools
        self._llm.save_session(path, self._ids(self.messages, ended=True), notes)

    @classmethod
    def load(cls, llm: ChatModel, path: str | PathLike[str]) -> Conversation:
        """Resume the conversation that ``save`` wrote.

        Raises RequestError if the file has no conversation, is damaged, or belongs to another model or kv_type;
        ResourceError if the KV cache is too small for it.
        """
        _, notes = llm.load_session(path)
        try:
            return cls._from_notes(llm, notes)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    @classmethod
    def _from_notes(cls, llm: ChatModel, notes: object) -> Conversation:
        if not isinstance(notes, dict) or notes.get("kind") != KIND:
            raise RequestError("a session, but not of a conversation")
        version = notes.get("version")
        if type(version) is not int or version != VERSION:
            raise RequestError(f"version: expected {VERSION}, found {show(version)}; another version of gumba wrote it")

        def note(name: str) -> object:
            if name not in notes:
                raise RequestError(f"{name}: expected one, found none")
            return notes[name]

        conversation = cls(llm)
        conversation.messages = _messages("messages", note("messages"))
        conversation.params = _params("params", note("params"))
        conversation.template_args = _template_args("template_args", note("template_args"))
        conversation.forgetful = _flag("forgetful", note("forgetful"))
        conversation.forgotten = require_count("forgotten", note("forgotten"), 0)
        conversation._attempt = require_count("attempt", note("attempt"), 0)
        conversation.tools = None if notes.get("tools") is None else checked_tools(notes["tools"])
        return conversation

    @property
    def _first(self) -> int:
        """Index of the first message after the system message."""
        return int(bool(self.messages) and self.messages[0].get("role") == "system")

    def _check_idle(self) -> None:
        if self._streaming:
            raise RequestError("an answer is still being streamed: read it to the end, or close its iterator, first")

    def _with_message(self, text: Content) -> list[Message]:
        """The messages with a new one from the user."""
        self._check_idle()
        return [*self.messages, {"role": "user", "content": joined_text("text", text)}]

    def _without_last_answer(self) -> list[Message]:
        """The messages without the last answer."""
        self._check_idle()
        if not self.messages or self.messages[-1].get("role") != "assistant":
            raise RequestError("there is no answer yet")
        return self.messages[:-1]

    def _params_of(self, attempt: int) -> SamplingParams:
        """The parameters of answer number ``attempt`` (from 0) to one message."""
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=(seed + attempt) % 2**64)

    def _with_results(self, results: Sequence[str]) -> list[Message]:
        """The messages with the results of the tools that the last one calls."""
        self._check_idle()
        calls = (self.messages[-1].get("tool_calls") or []) if self.messages else []
        if not calls:
            raise RequestError("the last answer calls no tools")
        if isinstance(results, str) or not isinstance(results, Sequence) or len(results) != len(calls):
            raise RequestError(f"results: expected a list of {len(calls)}, one for each call, found {show(results)}")
        answers = [
            {
                "role": "tool",
                "tool_call_id": call.get("id"),
                "name": call["function"]["name"],
                "content": joined_text(f"results[{i}]", result),
            }
            for i, (call, result) in enumerate(zip(calls, results))
        ]
        return [*self.messages, *answers]

    def _options(self) -> dict[str, Any]:
        """The arguments of ``LLM.chat`` besides messages and parameters."""
        return {"template_args": self.template_args, "reasoning": self.reasoning, "tools": self.tools}

    def _finish(self, messages: list[Message], attempt: int) -> RequestOutput:
        forgotten = self._make_room(messages)
        output = self._llm.chat(messages, self._params_of(attempt), **self._options())
        self.messages[:] = [*messages, _reply(output.text, output.reasoning, output.tool_calls)]
        self.forgotten += forgotten
        self._attempt = attempt
        return output

    def _stream(self, messages: list[Message], attempt: int) -> Iterator[StreamOutput]:
        forgotten = self._make_room(messages)
        steps = self._llm.chat_stream(messages, self._params_of(attempt), **self._options())
        return self._watch(steps, self.messages[:], messages, attempt, forgotten)

    def _watch(
        self,
        steps: Iterator[StreamOutput],
        before: list[Message],
        messages: list[Message],
        attempt: int,
        forgotten: int,
    ) -> Iterator[StreamOutput]:
        """Yield ``steps``; then, or if interrupted, append their text to ``messages``; after an error restore ``before``."""
        self._check_idle()
        if self.messages != before:
            raise RequestError("the conversation has changed since this message was checked: send it again")
        self._streaming = True
        self.messages[:] = messages
        pieces: list[StreamOutput] = []
        try:
            for step in steps:
                if step.choice == 0:
                    pieces.append(step)
                yield step
        except Exception:  # of the engine, or of a logits processor
            self.messages[:] = before
            raise
        except BaseException:  # closed, or Ctrl-C
            self._append_answer(pieces, attempt, forgotten)
            raise
        else:
            self._append_answer(pieces, attempt, forgotten)
        finally:
            self._streaming = False
            steps.close()  # type: ignore[attr-defined]

    def _append_answer(self, pieces: list[StreamOutput], attempt: int, forgotten: int) -> None:
        text = "".join(step.text for step in pieces)
        calls = [call for step in pieces for call in step.tool_calls]
        self.messages.append(_reply(text, "".join(step.reasoning for step in pieces), calls))
        self.forgotten += forgotten
        self._attempt = attempt

    def _make_room(self, messages: list[Message]) -> int:
        """Drop the oldest messages and their answers if ``forgetful``; the number of the user's messages dropped."""
        if not self.forgetful:
            return 0
        usage = self._llm.kv_usage()
        n_ctx, max_tokens = min(self._llm.model.n_ctx, usage.pages * usage.page_tokens), self.params.max_tokens
        reserve = max(1, n_ctx // 4 if max_tokens is None else min(max_tokens, n_ctx // 4))
        first, forgotten = self._first, 0
        while len(messages) > first + 1 and len(self._ids(messages)) + reserve > n_ctx:
            later = (i for i in range(first + 1, len(messages)) if messages[i].get("role") == "user")
            end = next(later, None)
            if end is None:
                break
            forgotten += messages[first].get("role") == "user"
            del messages[first:end]
        return forgotten

    def _ids(self, messages: Sequence[Mapping[str, object]], *, ended: bool = False) -> list[int]:
        """Token ids of ``messages`` with the beginning of an answer; ``ended``: without it, but at least one id."""
        args = {**self.template_args, "add_generation_prompt": not ended}
        if self.tools:
            args["tools"] = self.tools
        tokenizer = self._llm.tokenizer
        template = self._llm.tool_template if self.tools else self._llm.chat_template
        if not ended:
            return encode_chat(tokenizer, template, messages, **args)
        ids: list[int] = []
        if messages:
            try:
                ids = encode_chat(tokenizer, template, messages, **args)
            except TemplateError:  # some templates require a last message from the user: then no page is saved
                ids = []
        return ids or [0 if tokenizer.bos_id is None else tokenizer.bos_id]


def _reply(text: str, reasoning: str | None, calls: Sequence[ToolCall]) -> Message:
    """The model's message."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message |= {"content": text or None, "tool_calls": [call.as_dict() for call in calls]}
    return message


def settings_of(params: SamplingParams) -> dict[str, Any]:
    """``params`` as a JSON object. Raises RequestError for ``logits_processors``, which cannot be saved."""
    if params.logits_processors:
        raise RequestError("logits_processors: functions cannot be saved")
    values = {field.name: getattr(params, field.name) for field in fields(params) if field.name != "logits_processors"}
    if params.structured_outputs is not None:
        outputs = asdict(params.structured_outputs)
        values["structured_outputs"] = {name: value for name, value in outputs.items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def params_of(settings: Mapping[str, object]) -> SamplingParams:
    """The parameters that ``settings_of`` wrote. Raises RequestError naming the parameter that is wrong."""
    names = {field.name for field in fields(SamplingParams)} - {"logits_processors"}
    values: dict[str, Any] = dict(settings)
    for name in values:
        if name not in names:
            raise RequestError(f"{show(name)} is not a parameter in this version")
    bias = values.get("logit_bias")
    if isinstance(bias, list):
        values["logit_bias"] = [tuple(pair) if isinstance(pair, list) else pair for pair in bias]
    return SamplingParams(**values)


def _messages(name: str, value: object) -> list[Message]:
    if not isinstance(value, list):
        raise RequestError(f"{name}: expected a list, found {show(value)}")
    return plain_messages(value) if value else []


def _object(name: str, value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{name}: expected an object, found {show(value)}")
    return value


def _template_args(name: str, value: object) -> dict[str, Any]:
    for key in _object(name, value):
        if not isinstance(key, str) or key in ("tokenizer", "template", "messages"):
            raise RequestError(f"{name}: {show(key)} is not the name of a template variable")
    return dict(_object(name, value))


def _params(name: str, value: object) -> SamplingParams:
    try:
        return params_of(_object(name, value))
    except RequestError as error:
        raise RequestError(f"{name}: {error}".replace(f"{name}: {name}: ", f"{name}: ")) from None


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected true or false, found {show(value)}")
    return value
