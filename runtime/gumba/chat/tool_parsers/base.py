"""Tool calls: the offered tools, a call, and the base class of the parsers of the forms in which models write calls."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gumba.chat.tool_parsers.schemas import typed
from gumba.chat.tool_parsers.values import JsonObject, NoCall, after, after_space, read_at, read_whole
from gumba.errors import RequestError
from gumba.validation import show


class Call(NamedTuple):
    """A function's name and its arguments, the text of a JSON object; the id is the model's, if it writes one."""

    name: str
    arguments: str
    id: str | None = None


class Part(NamedTuple):
    """Calls read from a text, their end, and the text between them that is no call."""

    calls: list[Call]
    end: int
    rest: str = ""


#: Calls, and the rest of the text.
Parsed = tuple[list[Call], str]
#: Reads the calls at a position of a text; raises NoCall if there are none.
Read = Callable[[str, int], Part]

#: Prefixes that models write before function names.
_NAMESPACES = ("functions.", "default_api.")


class Tools:
    """The tools that a request offers, by name."""

    def __init__(self, functions: Sequence[Mapping[str, object]]) -> None:
        self._functions = {str(function["name"]): function for function in functions}
        self.names = frozenset(self._functions)

    def offered(self, name: object) -> str | None:
        """The offered function for ``name``, which may have quotes or a namespace; None if there is none."""
        if not isinstance(name, str):
            return None
        if name in self.names:
            return name
        name = name.strip().strip("\"'`").strip()
        names: list[str] = [name.removeprefix(space) for space in ("", *_NAMESPACES)]
        return next((name for name in names if name in self.names), None)

    def typed(self, name: str, key: str, text: str, quotes: bool = False) -> Any:
        """The value of the argument ``key`` of the function ``name``, written as unquoted ``text``; see ``schemas.typed``."""
        return typed(self._functions.get(name, {}).get("parameters"), key, text, quotes)

    def keys(self, name: str) -> frozenset[str]:
        """The parameters that the function ``name`` declares at the top level of its schema."""
        schema = self._functions.get(name, {}).get("parameters")
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        return frozenset(map(str, properties)) if isinstance(properties, Mapping) else frozenset()


def outer_ends(kinds: Sequence[str | None], value: str, value_end: str, following: tuple[str, ...]) -> list[int]:
    """For each tag of ``kinds``, and for the end: the index of the ``value_end`` that closes the value around it; -1 outside of
    values.

    That is the next one that closes no ``value`` opened after the tag, if a tag of ``following`` comes after it. Tags of the
    kind "" are text.
    """
    outside, inside = [-1], [-1]  # from the end: outside of and inside an open value
    kind_after = None
    for at in range(len(kinds) - 1, -1, -1):
        kind = kinds[at]
        if kind == "":
            outside.append(outside[-1])
            inside.append(inside[-1])
            continue
        if kind == value_end:
            inside.append(outside[-1])
            outside.append(at if kind_after in following else -1)
        else:
            new = inside[-1] if kind == value else outside[-1]
            outside.append(new)
            inside.append(new)
        kind_after = kind
    return outside[::-1]


class ToolParser(ABC):
    """Parser of one form of tool calls.

    ``parse`` receives the text from one of ``markers`` on, or a whole answer that ``starts`` like a call.

    Attributes:
        template_markers: Texts of chat templates whose models write this form.
        markers: Texts that open calls.
        closing: Texts that close calls.
        texts: Other texts of the form that may be control tokens, which must be part of the answer's text.
    """

    template_markers: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def starts(self, text: str, tools: Tools) -> bool | None:
        """Whether an answer that begins with ``text`` (without leading white space) is a call without a marker.

        None: undecided. A decision holds for every longer text.
        """
        return False

    @abstractmethod
    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        """The calls in ``text`` to functions of ``tools``, and the rest of the text.

        ``cut``: the answer was cut off at the token limit, so an unfinished call does not count.
        """


def checked_tools(tools: object) -> list[JsonObject]:
    """Checked copies of ``tools``, OpenAI's ``{"type": "function", "function": {"name": ...}}``. Raises RequestError."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools: expected a list of tools, found {show(tools)}")
    checked = []
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise RequestError(
                f"tools[{i}]: expected {{'type': 'function', 'function': {{'name': ...}}}}, found {show(tool)}"
            )
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"tools[{i}].function.name: expected a string, found {show(name)}")
        if not isinstance(function.get("parameters", {}), Mapping):
            raise RequestError(
                f"tools[{i}].function.parameters: expected a schema, found {show(function['parameters'])}"
            )
        checked.append({"type": "function", **tool})
    return checked


def make_call(tools: Tools, name: object, arguments: object, call_id: object = None) -> Call | None:
    """A call; None if ``name`` is not an offered function, or ``arguments`` not an object (or the text of one)."""
    offered = tools.offered(name)
    if isinstance(arguments, str):
        try:
            arguments = read_whole(arguments) if arguments.strip() else {}
        except NoCall:
            return None
    elif arguments is None:
        arguments = {}
    if offered is None or not isinstance(arguments, dict):
        return None
    text = _unicode(json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    return Call(offered, text, _unicode(call_id) if isinstance(call_id, str) and call_id else None)


def _unicode(text: str) -> str:
    """``text`` with surrogate pairs joined and lone surrogates replaced, which neither UTF-8 nor other JSON parsers accept."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


#: Names of the arguments field, most common first; and of the other fields of a call.
_ARGUMENTS = ("arguments", "parameters", "args", "params", "kwargs", "input", "tool_input")
_FIELDS = frozenset(("name", "tool_name", "function", "type", "id", "tool_call_id", "index"))


def json_call(tools: Tools, value: object) -> Call | None:
    """The call that an object describes, under any of the field names in use; None if it is none.

    Without a field for arguments, the parameters may be beside the name; undeclared fields there make it no call, because the
    call would lose them.
    """
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if isinstance(function, dict):
        value = {"id": value.get("id"), **function}
    name = value.get("name", value.get("tool_name", function))
    field = next((field for field in _ARGUMENTS if field in value), None)
    if field is not None:
        arguments = value[field]
    else:
        arguments = {key: item for key, item in value.items() if key not in _FIELDS}
        if not arguments.keys() <= tools.keys(tools.offered(name) or ""):
            return None
    return make_call(tools, name, arguments, value.get("id"))


def read_arguments(text: str, place: int, *ends: str) -> tuple[Any, int]:
    """The arguments of a call and their end; empty if one of ``ends`` follows. Raises NoCall if there are none."""
    start = after_space(text, place)
    return ({}, start) if text.startswith(ends, start) else read_at(text, place)


def read_calls(tools: Tools, text: str, place: int) -> Part:
    """Calls as a JSON object or a list of objects. Raises NoCall if there is none."""
    place = after_space(text, place)
    listed = text.startswith("[", place)
    calls: list[Call] = []
    rest: list[str] = []
    place += listed
    while not (listed and text.startswith("]", start := after_space(text, place))):
        try:
            value, end = read_at(text, place)
        except NoCall:
            if not calls:
                raise
            return Part(calls, place, "\n".join(rest))
        call = json_call(tools, value)
        if call is None:
            rest.append(text[place:end].strip())
        else:
            calls.append(call)
        if not listed:
            place = end
            break
        place = after(text, end, ",")
    else:
        place = start + 1
    if not calls:
        raise NoCall(place)
    return Part(calls, place, "\n".join(rest))


#: Maximum number of characters read without finding a call, beyond a multiple of the text's length.
_MAX_WASTED = 1 << 16


def scan(text: str, marker: str, read: Read) -> Parsed:
    """The calls that ``read`` reads after every ``marker`` in ``text``, and the rest of the text.

    Stops when it has read several times the text's length without finding a call, so that the time is linear.
    """
    calls: list[Call] = []
    rest: list[str] = []
    place, spent = 0, 0
    while spent <= _MAX_WASTED + 8 * len(text) and (at := text.find(marker, place)) >= 0:
        rest.append(text[place:at])
        start = at + len(marker)
        try:
            part = read(text, start)
        except NoCall as error:
            rest.append(marker)
            place = start
            spent += max(error.place - start, 0)
        else:
            while len(rest) > 1 and rest[-2] == marker and not rest[-1].strip():  # a repeated marker
                del rest[-2:]
            calls += part.calls
            rest.append(part.rest)
            place = part.end
    return calls, "".join([*rest, text[place:]])
