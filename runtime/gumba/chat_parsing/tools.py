"""Calls of tools: how tools are described, what a call is, and the base of the forms in which models write them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gumba.checks import show
from gumba.errors import RequestError


class Call(NamedTuple):
    """A function's name and its arguments, a JSON object as text; the id is the model's own, if it writes one."""

    name: str
    arguments: str
    id: str | None = None


#: Calls, and the text that was none.
Found = tuple[list[Call], str]
#: Calls that begin at a place of a text, and where they end; None where there are none.
Read = Callable[[str, int], tuple[list[Call], int] | None]


class Tools:
    """The tools that a request offers, by name."""

    def __init__(self, functions: Sequence[Mapping[str, Any]]) -> None:
        self._functions = {str(each["name"]): each for each in functions}
        self.names = frozenset(self._functions)

    def typed(self, name: str, key: str, text: str) -> Any:
        """An argument that a model wrote as bare ``text``: a string where the schema says so, else what it is as JSON."""
        schema: Any = self._functions.get(name, {}).get("parameters")
        for part in ("properties", key):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind == "string":
            return text
        value = read_json(text)
        return text if value is None and text.strip() != "null" else value


class ToolFormat(ABC):
    """A form of calls. Text from one of ``markers`` on, or a whole answer that ``starts`` like one, is handed to ``parse``.

    ``texts``: what else of the form may be control tokens of a vocabulary, which have to be shown.
    """

    markers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def starts(self, text: str, tools: Tools) -> bool | None:
        """Whether an answer that begins with ``text`` (no white space in front) is a call without a marker; None: not clear."""
        return False

    @abstractmethod
    def parse(self, text: str, tools: Tools) -> Found:
        """The calls in ``text``. What is no well-formed call is left in the text."""


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """Copies of ``tools``, each ``{"type": "function", "function": {"name": ...}}`` as OpenAI has it. Raises RequestError."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools: expected a list of tools, found {show(tools)}")
    found = []
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
        found.append({"type": "function", **tool})
    return found


_DECODER = json.JSONDecoder(strict=False)


def read_json(text: str) -> Any:
    """The value of a JSON text; None when it is none."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def read_at(text: str, place: int) -> tuple[Any, int] | None:
    """The JSON value at ``place`` (white space may be in front) and where it ends; None when there is none."""
    try:
        return _DECODER.raw_decode(text, after_space(text, place))
    except (ValueError, RecursionError):
        return None


def after_space(text: str, place: int) -> int:
    """Where the white space at ``place`` ends."""
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def after(text: str, place: int, end: str) -> int:
    """The place behind ``end``, if that comes next (white space may be in front); else ``place``."""
    found = after_space(text, place)
    return found + len(end) if text.startswith(end, found) else place


def make_call(name: Any, arguments: Any, call_id: Any = None) -> Call | None:
    """A call; None when ``name`` is no name, or ``arguments`` no object (or JSON of one)."""
    if isinstance(arguments, str):
        arguments = read_json(arguments) if arguments.strip() else {}
    elif arguments is None:
        arguments = {}
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        name.encode()
    except (ValueError, RecursionError):
        return None
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        text = json.dumps(arguments)
    return Call(name.strip(), text, call_id if isinstance(call_id, str) and call_id else None)


def json_calls(value: Any) -> list[Call] | None:
    """Calls from a JSON object or a list of them, by any of the names that fields have; None when one of them is no call."""
    found = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            return None
        function = each.get("function")
        if isinstance(function, dict):
            each = {"id": each.get("id"), **function}
        name = each.get("name", each.get("tool_name", function))
        call = make_call(name, each.get("arguments", each.get("parameters")), each.get("id"))
        if call is None:
            return None
        found.append(call)
    return found or None


def scan(text: str, marker: str, read: Read) -> Found:
    """Calls behind each ``marker`` in ``text``, as ``read`` finds them, and what is left of the text."""
    calls: list[Call] = []
    rest: list[str] = []
    place = 0
    while (at := text.find(marker, place)) >= 0:
        rest.append(text[place:at])
        found = read(text, at + len(marker))
        if found is None:
            rest.append(marker)
            place = at + len(marker)
        else:
            calls += found[0]
            place = found[1]
    return calls, "".join([*rest, text[place:]])
