"""LFM2's calls, which look like Python's: ``<|tool_call_start|>[weather(city="Bonn", days=3)]<|tool_call_end|>``.

They are read, never run.
"""

from __future__ import annotations

import re

from gumba.chat.tool_parsers.base import Call, Parsed, Part, ToolParser, Tools, make_call, read_calls, scan
from gumba.chat.tool_parsers.values import JsonObject, NoCall, after, after_space, read_literal

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


class Pythonic(ToolParser):
    """A list of calls with keywords. Without the marker only if all are of offered functions."""

    template_markers = (OPEN, "<|tool_list_start|>")
    markers = (OPEN,)
    closing = texts = (CLOSE,)

    def starts(self, text: str, tools: Tools) -> bool | None:
        if not text.startswith("["):
            return False
        name, bracket, _ = text[1:].lstrip().partition("(")
        if bracket:
            return name in tools.names
        return None if any(other.startswith(name) for other in tools.names) else False

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        if OPEN in text:
            return scan(text, OPEN, lambda text, place: _read(tools, text, place))
        try:
            calls, end, rest = _read(tools, text, 0)
        except NoCall:
            return [], text
        return ([], text) if rest else (calls, text[end:])


def _read(tools: Tools, text: str, place: int) -> Part:
    place = after_space(text, place)
    if text.startswith(("{", "[{"), place):
        part = read_calls(tools, text, place)  # as JSON, which LFM2 can be told to write
        return part._replace(end=after(text, part.end, CLOSE))
    listed = text.startswith("[", place)
    calls: list[Call] = []
    rest: list[str] = []
    place = after_space(text, place + listed)
    while name := _NAME.match(text, place):
        arguments, end = read_keywords(text, name.end())
        call = make_call(tools, name[0], arguments)
        if call is None:
            rest.append(text[place:end])
        else:
            calls.append(call)
        place = after_space(text, after(text, end, ","))
    if not calls or (listed and not text.startswith("]", place)):
        raise NoCall(place)
    return Part(calls, after(text, place + listed, CLOSE), ", ".join(rest))


def read_keywords(text: str, place: int) -> tuple[JsonObject, int]:
    """``(key=value, ...)`` at ``place`` and where it ends. Raises NoCall when it is something else."""
    if not text.startswith("(", place):
        raise NoCall(place)
    arguments: JsonObject = {}
    place = after_space(text, place + 1)
    while key := _NAME.match(text, place):
        place = after_space(text, key.end())
        if not text.startswith("=", place):
            raise NoCall(place)
        arguments[key[0]], place = read_literal(text, place + 1)
        place = after_space(text, after(text, place, ","))
    if not text.startswith(")", place):
        raise NoCall(place)
    return arguments, place + 1
