"""Llama 3.1 to 3.3's calls: the whole answer is JSON, or follows <|python_tag|>.

::

    {"name": "weather", "parameters": {"city": "Bonn"}}
    <|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}
    <|python_tag|>brave_search.call(query="Bonn")
    <|python_tag|>print(1 + 1)
"""

from __future__ import annotations

import re
from typing import Any

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after_space, json_calls, make_call, read_at

_TAG = "<|python_tag|>"
_FIRST = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"')
_BUILT_IN = re.compile(r"\s*([A-Za-z_]\w*)\.call\(")
_KEYWORD = re.compile(r"\s*,?\s*([A-Za-z_]\w*)=")
_INTERPRETERS = ("python", "ipython", "code_interpreter")
#: White space that may be inside a call's beginning.
_MOST_UNDECIDED = 40


class Llama3(ToolFormat):
    """Without the tag only known names are calls: JSON may be the answer."""

    markers = (_TAG,)

    def starts(self, text: str, tools: Tools) -> bool | None:
        if not text.startswith("{"):
            return False
        if _FIRST.match(text):
            return True
        return None if len(text) < _MOST_UNDECIDED else False

    def parse(self, text: str, tools: Tools) -> Found:
        if not text.lstrip().startswith(_TAG):
            return _objects(text, tools)
        body = text.lstrip()[len(_TAG) :]
        calls, rest = _objects(body, None)
        if calls:
            return calls, rest
        called = _built_in(body)
        if called is not None:
            return [called], ""
        name = next((each for each in _INTERPRETERS if each in tools.names), None)
        code = None if name is None or not body.strip() else make_call(name, {"code": body.strip()})
        return ([], text) if code is None else ([code], "")


def _objects(text: str, tools: Tools | None) -> Found:
    """Calls one after the other, perhaps with ; or , between; with ``tools`` only if all are of these."""
    calls: list[Call] = []
    place = after_space(text, 0)
    while text.startswith("{", place):
        found = read_at(text, place)
        more = None if found is None else json_calls(found[0])
        if found is None or more is None or (tools is not None and more[0].name not in tools.names):
            break
        calls += more
        place = after_space(text, found[1])
        if text[place : place + 1] in (";", ","):
            place = after_space(text, place + 1)
    rest = text[place:]
    return (calls, rest) if calls and (tools is None or not rest) else ([], text)


def _built_in(text: str) -> Call | None:
    """``name.call(key="value", ...)``."""
    found = _BUILT_IN.match(text)
    if found is None:
        return None
    place, arguments = found.end(), dict[str, Any]()
    while keyword := _KEYWORD.match(text, place):
        value = read_at(text, keyword.end())
        if value is None:
            return None
        arguments[keyword[1]], place = value
    return make_call(found[1], arguments) if text[place:].strip() == ")" else None
