"""Messages that call tools, in the variants that templates want.

OpenAI's messages have arguments as the text of a JSON object, and no content beside calls. Most templates write arguments by
``tojson`` and want the object itself; some join the text. Most know messages without content; some join that too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gumba.checks import show
from gumba.errors import RequestError, TemplateError

Message = dict[str, Any]


def with_objects(message: Message, name: str) -> Message:
    """``message``, called ``name`` in errors, with the arguments of its calls as objects where they are JSON of one."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
        raise RequestError(f"{name}.tool_calls: expected a list of calls, found {show(calls)}")
    found = []
    for i, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise RequestError(f"{name}.tool_calls[{i}]: expected a call, found {show(call)}")
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RequestError(f"{name}.tool_calls[{i}]: expected a function with a name, found {show(call)}")
        plain = dict(function)
        if "arguments" in function:
            plain["arguments"] = _object(function["arguments"])
        found.append({**call, "function": plain} if "function" in call else plain)
    return {**message, "tool_calls": found}


def _object(arguments: Any) -> Any:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments


def rendered(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str:
    """What ``render`` makes of the variant of ``messages`` that its template wants.

    That is the first one that it takes, unless it prints Python's dictionaries or None. Raises the first variant's error when
    it takes none.
    """
    first: TemplateError | None = None
    fallback: str | None = None
    empty = [_map_content(message) for message in messages]
    for variant in (messages, empty, [_with_texts(each) for each in messages], [_with_texts(each) for each in empty]):
        try:
            text = render(variant)
        except TemplateError as error:
            first = first or error
            continue
        fallback = text if fallback is None else fallback
        if any(printed in text for printed in _printed(variant)):
            continue
        if any(message.get("content", "") is None for message in variant) and _prints_none(render, variant, text):
            continue
        return text
    if fallback is None:
        raise first or TemplateError("the chat template fails")
    return fallback


def _map_content(message: Message) -> Message:
    return {**message, "content": ""} if message.get("content", "") is None else message


def _prints_none(render: Callable[[Sequence[Message]], str], messages: Sequence[Message], text: str) -> bool:
    try:
        return text.count("None") > render([_map_content(message) for message in messages]).count("None")
    except TemplateError:
        return False


def _calls(messages: Sequence[Message]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        for call in message.get("tool_calls") or ():
            yield call.get("function", call)


def _printed(messages: Sequence[Message]) -> list[str]:
    """Arguments as they stand in a text where a template prints the dictionary."""
    return [
        str(call["arguments"])
        for call in _calls(messages)
        if isinstance(call.get("arguments"), dict) and call["arguments"]
    ]


def _with_texts(message: Message) -> Message:
    """``message`` with the arguments of its calls as JSON."""
    if not message.get("tool_calls"):
        return message
    found = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        plain, arguments = dict(function), function.get("arguments")
        if isinstance(arguments, dict):
            plain["arguments"] = json.dumps(arguments, ensure_ascii=False, default=str)
        found.append({**call, "function": plain} if "function" in call else plain)
    return {**message, "tool_calls": found}
