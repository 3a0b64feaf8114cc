"""``Conversation``: the messages so far, and what is done with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from gumba.chat.template import Content, encode_chat, joined_text, plain_messages
from gumba.chat.tool_parsers.base import checked_tools
from gumba.errors import RequestError, TemplateError
from gumba.sampling_params import SamplingParams
from gumba.validation import require_count, show

if TYPE_CHECKING:
    from gumba.llm.llm import LLM
    from gumba.outputs import RequestOutput, StreamOutput, ToolCall

#: What the notes of a session file say first when it holds a conversation, and their version.
KIND, VERSION = "conversation", 1


class Conversation:
    """A conversation with a model, by its chat template.

    What earlier turns computed is not computed again while the KV cache has room for it. One thread at a time may use a
    conversation; forks of it are conversations of their own.

    Args:
        llm: The model.
        system: The system message; None for none.
        params: How answers are generated. With a seed, the n-th answer to one message has ``seed + n - 1``.
        template_args: Further variables of the template (``enable_thinking`` of some models).
        forgetful: Where the context is full, forget the oldest messages and their answers, until a quarter of it (or
            ``max_tokens``, where that is less) is free; otherwise a message that does not fit is refused.
        reasoning: As of ``LLM.chat``. What is told from an answer goes to the message's ``reasoning_content``, which templates
            leave out of later prompts.
        tools: Functions that the model may call, as of ``LLM.chat``. An answer that calls some is followed by ``tell``.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` each, the oldest first. May be changed between turns.
        params: As given; may be changed between turns, as may ``template_args``, ``forgetful``, ``reasoning`` and
            ``tools``.
        forgotten: How many of the user's messages have been forgotten.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        template_args: Mapping[str, Any] | None = None,
        forgetful: bool = False,
        reasoning: str = "auto",
        tools: Sequence[Mapping[str, Any]] | None = None,
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
        self.messages: list[dict[str, Any]] = []
        self._attempt = 0
        self._answering = False
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message, the first of ``messages``. Setting it keeps the others; None takes it away."""
        first = self.messages[0] if self.messages else {}
        return first.get("content") if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self._check_idle()
        if text is not None and not isinstance(text, str):
            raise RequestError(f"system: expected a text or None, found {show(text)}")
        self.messages[: self._first] = [] if text is None else [{"role": "system", "content": text}]

    def send(self, text: Content) -> RequestOutput:
        """The answer to the message ``text``, a string or a list of ``{"type": "text", "text": ...}``.

        Raises as ``LLM.chat`` does. Then, as when Ctrl-C ends it, the conversation is as it was before.
        """
        return self._finish(self._asked(text), 0)

    def stream(self, text: Content) -> Iterator[StreamOutput]:
        """As ``send``, one StreamOutput per token, as ``LLM.stream`` gives them.

        The message is checked now and joins the conversation with the first item. When the iterator is closed, or
        Ctrl-C ends it, what has come by then is kept as the answer; after an error the conversation is as it was before.
        """
        return self._stream(self._asked(text), 0)

    def tell(self, results: Sequence[str]) -> RequestOutput:
        """The answer to ``results``, texts, of the tools that the last answer called, in the order of its ``tool_calls``.

        Raises RequestError when it called none, or not so many, and as ``send`` does.
        """
        return self._finish(self._told(results), 0)

    def tell_stream(self, results: Sequence[str]) -> Iterator[StreamOutput]:
        """As ``tell``, one StreamOutput per token, as ``stream`` gives them."""
        return self._stream(self._told(results), 0)

    def regenerate(self) -> RequestOutput:
        """Another answer to the last message in place of the one it has.

        The same one at temperature 0. Raises RequestError when there is no answer, and as ``send`` does.
        """
        return self._finish(self._unanswered(), self._attempt + 1)

    def regenerate_stream(self) -> Iterator[StreamOutput]:
        """As ``regenerate``, one StreamOutput per token, as ``stream`` gives them."""
        return self._stream(self._unanswered(), self._attempt + 1)

    def undo(self) -> dict[str, Any]:
        """Take back the user's last message, which is returned, and what came after it.

        Raises RequestError when there is none.
        """
        self._check_idle()
        for index in reversed(range(len(self.messages))):
            if self.messages[index].get("role") == "user":
                taken = self.messages[index]
                del self.messages[index:]
                self._attempt = 0
                return taken
        raise RequestError("there is no message yet")

    def clear(self) -> None:
        """Forget all but the system message."""
        self._check_idle()
        del self.messages[self._first :]
        self._attempt = 0

    def fork(self) -> Conversation:
        """A copy that goes on by itself. What both have in common stays computed once."""
        self._check_idle()
        twin = copy.copy(self)
        twin.messages = copy.deepcopy(self.messages)
        twin.template_args, twin.tools = copy.deepcopy((self.template_args, self.tools))
        return twin

    def save(self, path: str | PathLike[str]) -> None:
        """Write messages, settings and KV pages to a session file, which ``load`` takes in.

        Raises RequestError when something in them cannot be written (``logits_processors``), ResourceError when the file
        cannot be, EngineError when the LLM is closed.
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
    def load(cls, llm: LLM, path: str | PathLike[str]) -> Conversation:
        """The conversation that ``save`` wrote, which goes on as if it had never ended.

        Raises RequestError when the file holds none, is damaged, or is of another model or kv_type; ResourceError when
        the KV cache has no room for it.
        """
        _, notes = llm.load_session(path)
        try:
            return cls._from_notes(llm, notes)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    @classmethod
    def _from_notes(cls, llm: LLM, notes: Any) -> Conversation:
        if not isinstance(notes, dict) or notes.get("kind") != KIND:
            raise RequestError("a session, but not of a conversation")
        version = notes.get("version")
        if type(version) is not int or version != VERSION:
            raise RequestError(f"version: expected {VERSION}, found {show(version)}; another version of gumba wrote it")
        made = cls(llm)
        found: dict[str, Any] = {}
        for name, check in _CHECKS.items():
            if name not in notes:
                raise RequestError(f"{name}: expected one, found none")
            found[name] = check(name, notes[name])
        made.tools = None if notes.get("tools") is None else checked_tools(notes["tools"])
        made.messages, made.params = found["messages"], found["params"]
        made.template_args, made.forgetful = found["template_args"], found["forgetful"]
        made.forgotten, made._attempt = found["forgotten"], found["attempt"]
        return made

    @property
    def _first(self) -> int:
        """Index of the first message that is not the system's."""
        return int(bool(self.messages) and self.messages[0].get("role") == "system")

    def _check_idle(self) -> None:
        if self._answering:
            raise RequestError(
                "the conversation is still answering: take the whole answer, or close its iterator, first"
            )

    def _asked(self, text: Content) -> list[dict[str, Any]]:
        """The messages with a new one of the user."""
        self._check_idle()
        return [*self.messages, {"role": "user", "content": joined_text("text", text)}]

    def _unanswered(self) -> list[dict[str, Any]]:
        """The messages without the last answer."""
        self._check_idle()
        if not self.messages or self.messages[-1].get("role") != "assistant":
            raise RequestError("there is no answer yet")
        return self.messages[:-1]

    def _attempted(self, attempt: int) -> SamplingParams:
        """The parameters of the answer number ``attempt`` (from 0) to one message."""
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=(seed + attempt) % 2**64)

    def _told(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """The messages with what the tools gave that the last one called."""
        self._check_idle()
        calls = (self.messages[-1].get("tool_calls") or []) if self.messages else []
        if not calls:
            raise RequestError("the last answer calls no tools")
        if isinstance(results, str) or not isinstance(results, Sequence) or len(results) != len(calls):
            raise RequestError(f"results: expected a list of {len(calls)}, one for each call, found {show(results)}")
        told = [
            {
                "role": "tool",
                "tool_call_id": call.get("id"),
                "name": call["function"]["name"],
                "content": joined_text(f"results[{i}]", result),
            }
            for i, (call, result) in enumerate(zip(calls, results))
        ]
        return [*self.messages, *told]

    def _options(self) -> dict[str, Any]:
        """What is said to ``LLM.chat`` besides messages and parameters."""
        return {"template_args": self.template_args, "reasoning": self.reasoning, "tools": self.tools}

    def _finish(self, messages: list[dict[str, Any]], attempt: int) -> RequestOutput:
        forgotten = self._make_room(messages)
        output = self._llm.chat(messages, self._attempted(attempt), **self._options())
        self.messages[:] = [*messages, _reply(output.text, output.reasoning, output.tool_calls)]
        self.forgotten += forgotten
        self._attempt = attempt
        return output

    def _stream(self, messages: list[dict[str, Any]], attempt: int) -> Iterator[StreamOutput]:
        forgotten = self._make_room(messages)
        steps = self._llm.chat_stream(messages, self._attempted(attempt), **self._options())
        return self._watch(steps, self.messages[:], messages, attempt, forgotten)

    def _watch(
        self,
        steps: Iterator[StreamOutput],
        before: list[dict[str, Any]],
        messages: list[dict[str, Any]],
        attempt: int,
        forgotten: int,
    ) -> Iterator[StreamOutput]:
        """Hand on ``steps``, and keep their text as the answer to ``messages``, however they end, unless by an error."""
        self._check_idle()
        if self.messages != before:
            raise RequestError("the conversation has gone on since this message was checked: send it anew")
        self._answering = True
        self.messages[:] = messages
        pieces: list[StreamOutput] = []
        try:
            for step in steps:
                if step.choice == 0:
                    pieces.append(step)
                yield step
        except Exception:  # of the engine, or of a logits processor: whatever it is, the message is taken back
            self.messages[:] = before
            raise
        except BaseException:  # closed, or Ctrl-C
            self._answered(pieces, attempt, forgotten)
            raise
        else:
            self._answered(pieces, attempt, forgotten)
        finally:
            self._answering = False
            steps.close()  # type: ignore[attr-defined]

    def _answered(self, pieces: list[StreamOutput], attempt: int, forgotten: int) -> None:
        text = "".join(step.text for step in pieces)
        calls = [call for step in pieces for call in step.tool_calls]
        self.messages.append(_reply(text, "".join(step.reasoning for step in pieces), calls))
        self.forgotten += forgotten
        self._attempt = attempt

    def _make_room(self, messages: list[dict[str, Any]]) -> int:
        """Take out the oldest messages and their answers as ``forgetful`` says; how many of the user's."""
        if not self.forgetful:
            return 0
        usage = self._llm.kv_usage()
        capacity, most = min(self._llm.model.n_ctx, usage.pages * usage.page_tokens), self.params.max_tokens
        room = max(1, capacity // 4 if most is None else min(most, capacity // 4))
        first, forgotten = self._first, 0
        while len(messages) > first + 1 and len(self._ids(messages)) + room > capacity:
            later = (i for i in range(first + 1, len(messages)) if messages[i].get("role") == "user")
            end = next(later, None)
            if end is None:
                break
            forgotten += messages[first].get("role") == "user"
            del messages[first:end]
        return forgotten

    def _ids(self, messages: Sequence[Mapping[str, Any]], *, ended: bool = False) -> list[int]:
        """Token ids of ``messages``, up to the answer to come; ``ended``: up to their end, and at least one."""
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
            except TemplateError:  # some refuse what does not end with a message of the user's: then no page is saved
                ids = []
        return ids or [0 if tokenizer.bos_id is None else tokenizer.bos_id]


def _reply(text: str, reasoning: str | None, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The model's message."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message |= {"content": text or None, "tool_calls": [call.as_dict() for call in calls]}
    return message


def settings_of(params: SamplingParams) -> dict[str, Any]:
    """``params`` as JSON can hold them, by name. Raises RequestError for ``logits_processors``, which it cannot."""
    if params.logits_processors:
        raise RequestError("logits_processors: functions cannot be saved")
    found = {field.name: getattr(params, field.name) for field in fields(params) if field.name != "logits_processors"}
    if params.structured_outputs is not None:
        given = asdict(params.structured_outputs)
        found["structured_outputs"] = {name: value for name, value in given.items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def params_of(settings: Mapping[str, Any]) -> SamplingParams:
    """The parameters that ``settings_of`` wrote. Raises RequestError, which names the one that is wrong."""
    names = {field.name for field in fields(SamplingParams)} - {"logits_processors"}
    values = dict(settings)
    for name in values:
        if name not in names:
            raise RequestError(f"{show(name)} is no setting of this version")
    bias = values.get("logit_bias")
    if isinstance(bias, list):
        values["logit_bias"] = [tuple(pair) if isinstance(pair, list) else pair for pair in bias]
    return SamplingParams(**values)


def _messages(name: str, found: Any) -> list[dict[str, Any]]:
    return plain_messages(_list(name, found)) if found != [] else []


def _list(name: str, found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise RequestError(f"{name}: expected a list, found {show(found)}")
    return found


def _object(name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RequestError(f"{name}: expected an object, found {show(found)}")
    return found


def _template_args(name: str, found: Any) -> dict[str, Any]:
    for key in _object(name, found):
        if not isinstance(key, str) or key in ("tokenizer", "template", "messages"):
            raise RequestError(f"{name}: {show(key)} is not the name of a further variable")
    return dict(found)


def _params(name: str, found: Any) -> SamplingParams:
    try:
        return params_of(_object(name, found))
    except RequestError as error:
        raise RequestError(f"{name}: {error}".replace(f"{name}: {name}: ", f"{name}: ")) from None


def _flag(name: str, found: Any) -> bool:
    if not isinstance(found, bool):
        raise RequestError(f"{name}: expected true or false, found {show(found)}")
    return found


def _count(name: str, found: Any) -> int:
    return require_count(name, found, 0)


#: The fields of a conversation's notes, and how each is checked.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "messages": _messages,
    "params": _params,
    "template_args": _template_args,
    "forgetful": _flag,
    "forgotten": _count,
    "attempt": _count,
}
