"""Llama 3.1 to 3.3's calls: the whole answer is JSON, or follows <|python_tag|>.

::

    {"name": "weather", "parameters": {"city": "Bonn"}}
    <|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}
    <|python_tag|>brave_search.call(query="Bonn")
    <|python_tag|>print(1 + 1)
"""

from __future__ import annotations

import re

from gumba.chat.tool_parsers.base import Call, Parsed, ToolParser, Tools, make_call, read_calls
from gumba.chat.tool_parsers.pythonic import read_keywords
from gumba.chat.tool_parsers.values import NoCall, after, after_space

_TAG = "<|python_tag|>"
_FIRST = re.compile(r"""\{\s*(["'])(?:name|type|function|parameters|arguments)\1""")
_BUILT_IN = re.compile(r"\s*([A-Za-z_]\w*)\.call\(")
_INTERPRETERS = ("python", "ipython", "code_interpreter")
#: White space that may be inside a call's beginning.
_MAX_UNDECIDED = 40


class Llama3(ToolParser):
    """Without the tag only known names are calls: JSON may be the answer."""

    template_markers = (_TAG, "ipython")
    markers = (_TAG,)

    def starts(self, text: str, tools: Tools) -> bool | None:
        if not text.startswith("{"):
            return False
        if _FIRST.match(text[:_MAX_UNDECIDED]):
            return True
        return None if len(text) < _MAX_UNDECIDED else False

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        if not text.startswith(_TAG):
            calls, rest = _objects(text, tools)
            return ([], text) if rest else (calls, "")
        body = text[len(_TAG) :]
        calls, rest = _objects(body, tools)
        if calls:
            return calls, rest
        if _BUILT_IN.match(body) or body.lstrip().startswith("{"):
            called = _built_in(body, tools)
            return ([], text) if called is None else ([called], "")
        name = next((name for name in _INTERPRETERS if name in tools.names), None)
        code = None if name is None or cut or not body.strip() else make_call(tools, name, {"code": body.strip()})
        return ([], text) if code is None else ([code], "")


def _objects(text: str, tools: Tools) -> Parsed:
    """Calls one after the other, perhaps with ; or , between, and the rest of the text."""
    calls: list[Call] = []
    place = after_space(text, 0)
    while text.startswith(("{", _TAG), place):
        try:
            more = read_calls(tools, text, after(text, place, _TAG))
        except NoCall:
            break
        calls += more.calls
        place = after_space(text, after(text, more.end, ";", ","))
    return calls, text[place:]


def _built_in(text: str, tools: Tools) -> Call | None:
    """``name.call(key="value", ...)``."""
    match = _BUILT_IN.match(text)
    if match is None:
        return None
    try:
        arguments, end = read_keywords(text, match.end() - 1)
    except NoCall:
        return None
    return make_call(tools, match[1], arguments) if after_space(text, end) == len(text) else None
