"""Messages with tool calls, in the variants that templates support.

In OpenAI's messages a call's arguments are JSON text, and there is no content beside calls. Most templates write arguments with
``tojson`` and need the object itself; some concatenate the text. Most accept messages without content; some concatenate that.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gumba.errors import RequestError, TemplateError
from gumba.validation import show

Message = dict[str, Any]

#: Roles of messages that are results of calls.
_RESULTS = ("tool", "function")
#: Seconds after which no further variant is tried.
_MAX_SECONDS = 4.0
#: Prefix of the probe texts that replace names, arguments and results.
_MARK = "zqX7kv"


def with_objects(message: Message, name: str) -> Message:
    """``message`` (``name`` in errors) with its calls' arguments as objects if they are the JSON text of one."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
        raise RequestError(f"{name}.tool_calls: expected a list of calls, found {show(calls)}")
    converted = []
    for i, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise RequestError(f"{name}.tool_calls[{i}]: expected a call, found {show(call)}")
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RequestError(f"{name}.tool_calls[{i}]: expected a function with a name, found {show(call)}")
        plain = dict(function)
        if "arguments" in function:
            plain["arguments"] = _object(function["arguments"])
        converted.append({**call, "function": plain} if "function" in call else plain)
    return {**message, "tool_calls": converted}


def _object(arguments: object) -> object:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments


def calls_tools(message: Mapping[str, object]) -> bool:
    """Whether ``message`` contains calls or the result of a call."""
    return bool(message.get("tool_calls") or message.get("function_call") or message.get("role") in _RESULTS)


def rendered(render: Callable[[Sequence[Message]], str], messages: Sequence[Message], knows_tools: bool = True) -> str:
    """The prompt of the variant of ``messages`` that the template supports best.

    That is the first variant whose calls (names and arguments) and results all appear in the text, without Python's
    dictionaries or None; else the one that loses least. A second rendering with probe texts in their place shows what appears.
    For a template that loses calls in every variant, or rejects them without tool support, calls are written into the contents.

    Args:
        knows_tools: Whether the template mentions tools; then a rejection is final.

    Raises TemplateError if every variant is rejected, or loses a call's arguments or a result.
    """
    first: TemplateError | None = None
    best: tuple[tuple[int, int, bool], str, str] | None = None
    end = time.monotonic() + _MAX_SECONDS
    for variant in itertools.chain(_variants(messages), _written_out(messages)):
        if isinstance(variant, _WrittenOut) and (knows_tools if best is None else not best[0][0]):
            break
        if (first or best) and time.monotonic() > end:
            break
        try:
            text = render(variant)
        except TemplateError as error:
            first = first or error
            continue
        lost, unnamed, printed = _losses(render, variant)
        nones = any(message.get("content", "") is None for message in variant) and _prints_none(render, variant, text)
        score = (len(lost), unnamed, printed or nones)
        if best is None or score < best[0]:
            best = (score, text, lost[0] if lost else "")
        if score == (0, 0, False):
            break
    if best is None:
        raise first or TemplateError("the chat template fails")
    if best[0][0]:
        why = "" if first is None else f"; for another variant of the messages it fails: {first!s:.300}"
        raise TemplateError(
            f"{best[2]}: the chat template omits it: choose a template with tool support, such as 'hermes'{why}"
        )
    return best[1]


def _variants(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The variants of calls that templates support: arguments as objects or JSON text, no content or an empty one, the older
    ``function_call`` as a tool call, ids of nine letters and digits, the function's fields beside ``function`` too, and one
    call per message."""
    shapes = [messages]
    for change in (_modern, _with_ids, _with_flat_fields, _one_by_one):
        if (changed := change(shapes[-1])) != shapes[-1]:
            shapes.append(changed)
    for shape in shapes:
        empty = [_map_content(message) for message in shape]
        yield shape
        if empty != shape:
            yield empty
        texts = [_with_texts(message) for message in shape]
        if texts != shape:
            yield texts
            if empty != shape:
                yield [_with_texts(message) for message in empty]


class _WrittenOut(list[Message]):
    """Messages with calls written into their content; ``places``: the indices of these and of results."""

    places: set[int]


def _written_out(messages: Sequence[Message]) -> Iterator[_WrittenOut]:
    """For templates without tool support: calls in the content, in the form of Hermes 2 Pro; results in their own role, or
    together in the user's."""
    for role in ("tool", "user"):
        written, was_result = _WrittenOut(), False
        written.places = set()
        for message in _modern(messages):
            text, is_result = _text(message.get("content") or ""), message.get("role") == "tool"
            if message.get("tool_calls"):
                calls = [{"name": call.get("name"), "arguments": call.get("arguments", {})} for call in _calls(message)]
                texts = [json.dumps(call, ensure_ascii=False, default=str) for call in calls]
                text += ("\n" if text else "") + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in texts)
                message = {"role": message["role"], "content": text}
            elif is_result and role == "user":
                text = f"<tool_response>\n{text}\n</tool_response>"
                if was_result:
                    text = f"{written.pop()['content']}\n{text}"
                message = {"role": role, "content": text}
            written.append(message)
            if is_result or "<tool_call>" in text:
                written.places.add(len(written) - 1)
            was_result = is_result
        yield written


def _text(content: Any) -> str:
    """A content's text; parts are joined."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)


def _losses(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> tuple[list[str], int, bool]:
    """The parts of ``messages`` that the text lacks: calls' arguments and results, by their places, and the number of names;
    and whether arguments appear as Python prints them."""
    if isinstance(messages, _WrittenOut):
        return _lost_contents(render, messages), 0, False
    probe = [_probe(message, f"{_MARK}{i}q") for i, message in enumerate(messages)]
    try:
        text = render(probe)
    except TemplateError:  # a template that checks names or results refuses the probe: trust it
        return [], 0, False
    lost, unnamed, printed = [], 0, False
    for i, message in enumerate(messages):
        mark = f"{_MARK}{i}q"
        for j, call in enumerate(_calls(message)):
            is_named = f"{mark}{j}name" in text
            shows = f"{mark}{j}value" in text if call.get("arguments") else is_named
            unnamed += not is_named
            printed = printed or f"'{mark}{j}key'" in text
            if not shows:
                lost.append(f"messages[{i}]: the call of {show(call.get('name'))}")
        if message.get("role") in _RESULTS and f"{mark}result" not in text:
            lost.append(f"messages[{i}]: the result of a call")
    return lost, unnamed, printed


def _lost_contents(render: Callable[[Sequence[Message]], str], messages: _WrittenOut) -> list[str]:
    """The messages at ``messages.places`` whose content is missing from the text."""
    probe = [
        {**message, "content": f"{_text(message.get('content') or '')}{_MARK}{i}q"}
        for i, message in enumerate(messages)
    ]
    try:
        text = render(probe)
    except TemplateError:
        return []
    return [f"messages[{i}]: a call or its result" for i in sorted(messages.places) if f"{_MARK}{i}q" not in text]


def _probe(message: Message, mark: str) -> Message:
    """``message`` with probe texts that begin with ``mark`` in place of names, and in arguments and results."""
    if message.get("role") in _RESULTS:
        return {**message, "content": f"{message.get('content') or ''}{mark}result"}

    def changed(call: Mapping[str, object], j: int) -> Message:
        arguments, probe = call.get("arguments"), dict(call)
        if "name" in call:
            probe["name"] = f"{mark}{j}name"
        is_text = isinstance(arguments, str)
        value = _object(arguments) if arguments else None
        if isinstance(value, dict):
            value = {k: f"{v}{mark}{j}value" if isinstance(v, str) else v for k, v in value.items()}
            value |= {f"{mark}{j}key": f"{mark}{j}value"}
            probe["arguments"] = json.dumps(value, ensure_ascii=False, default=str) if is_text else value
        elif value is not None:
            probe["arguments"] = f"{mark}{j}value"
        return probe

    result = dict(message)
    if isinstance(message.get("function_call"), Mapping):
        result["function_call"] = changed(message["function_call"], 0)
    if message.get("tool_calls"):
        result["tool_calls"] = [
            {**changed(call, j), "function": changed(call["function"], j)} if "function" in call else changed(call, j)
            for j, call in enumerate(message["tool_calls"])
        ]
    return result


def _map_content(message: Message) -> Message:
    return {**message, "content": ""} if message.get("content", "") is None else message


def _prints_none(render: Callable[[Sequence[Message]], str], messages: Sequence[Message], text: str) -> bool:
    try:
        return text.count("None") > render([_map_content(message) for message in messages]).count("None")
    except TemplateError:
        return False


def _calls(message: Message) -> list[Mapping[str, object]]:
    """The functions that ``message`` calls, with names and arguments."""
    if message.get("tool_calls"):
        return [call.get("function", call) for call in message["tool_calls"]]
    called = message.get("function_call")
    return [called] if isinstance(called, Mapping) else []


def _with_texts(message: Message) -> Message:
    """``message`` with the arguments of its calls as JSON text."""

    def changed(call: Mapping[str, object]) -> Message:
        if not isinstance(call.get("arguments"), dict):
            return dict(call)
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False, default=str)}

    if not message.get("tool_calls"):
        return message
    calls = [
        {**changed(call), "function": changed(call["function"])} if "function" in call else changed(call)
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _with_flat_fields(messages: Sequence[Message]) -> list[Message]:
    """``messages`` whose calls have the function's fields both beside ``function`` and inside it."""

    def changed(call: Mapping[str, Any]) -> Message:
        function = call.get("function", call)
        fields = {name: function[name] for name in ("name", "arguments") if name in function}
        return {**call, **fields, "function": function}

    return [
        {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _modern(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with ``function_call`` and the role "function" converted to tool calls and tool results."""
    result: list[Message] = []
    call_id = ""
    for i, message in enumerate(messages):
        called = message.get("function_call")
        if isinstance(called, Mapping) and not message.get("tool_calls"):
            call_id = f"call{i:05}"  # nine letters and digits, as Mistral's templates require
            call = {
                "id": call_id,
                "type": "function",
                "function": {**called, "arguments": _object(called.get("arguments"))},
            }
            rest = {key: value for key, value in message.items() if key != "function_call"}
            message = {**rest, "content": message.get("content"), "tool_calls": [call]}
        elif message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": message.get("tool_call_id", call_id)}
        result.append(message)
    return result


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """``messages`` whose calls and results have ids of nine letters and digits, as Mistral's templates require."""
    ids: dict[object, str] = {}
    open_ids: list[str] = []  # new ids of calls without one, in the order of their results
    result: list[Message] = []
    for i, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
            for j, call in enumerate(message["tool_calls"]):
                known = call.get("id")
                fits = isinstance(known, str) and len(known) == 9 and known.isalnum() and known.isascii()
                new = known if fits else f"c{i % 10000:04}{j % 10000:04}"
                open_ids += [] if known else [new]
                ids[known] = new
                calls.append({**call, "id": new})
            message = {**message, "tool_calls": calls}
        elif message.get("role") == "tool":
            known = message.get("tool_call_id")
            new = ids.get(known) if known else open_ids.pop(0) if open_ids else None
            message = message if new is None else {**message, "tool_call_id": new}
        result.append(message)
    return result


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with one call per message, followed by its result."""
    result: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        calls = message.get("tool_calls") or ()
        place += 1
        if len(calls) < 2:
            result.append(message)
            continue
        results: list[Message] = []
        while place < len(messages) and messages[place].get("role") == "tool":
            results.append(messages[place])
            place += 1
        for j, call in enumerate(calls):
            result.append({**message, "content": message.get("content") if j == 0 else None, "tool_calls": [call]})
            own = [answer for answer in results if call.get("id") and answer.get("tool_call_id") == call.get("id")]
            own = own or [answer for answer in results if not answer.get("tool_call_id")][:1]
            result += own
            results = [answer for answer in results if not any(answer is other for other in own)]
        result += results
    return result
