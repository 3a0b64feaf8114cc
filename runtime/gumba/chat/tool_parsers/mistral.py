"""Mistral's calls: a list of them (tokenizers v2 to v7), or name and arguments (from v11 on).

::

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn"}, "id": "abcdefghi"}]
    [TOOL_CALLS]weather[ARGS]{"city": "Bonn"}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Köln"}
"""

from __future__ import annotations

import re
from typing import Any

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, make_call, read_calls, scan
from gumba.chat.tool_parsers.values import NoCall, after_space, read_at

_MARKER, _ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_NAMED = re.compile(r"\s*([^\s\[\]{}]{1,500})\s*(?:\[CALL_ID\]\s*([\w-]{0,500})\s*)?(?:\[ARGS\])?")
_BARE = '[{"name"'


class Mistral(ToolParser):
    """Without the marker a list of calls of known names is one too: smaller models forget it."""

    template_markers = (_MARKER,)
    markers = (_MARKER,)
    texts = ("[CALL_ID]", _ARGUMENTS)

    def starts(self, text: str, tools: Tools) -> bool | None:
        packed = "".join(text[:80].split()).replace("'", '"')
        if packed.startswith(_BARE):
            return True
        return None if _BARE.startswith(packed) else False

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        if _MARKER in text:
            return scan(text, _MARKER, lambda text, place: _read(tools, text, place, cut))
        try:
            calls, end, rest = read_calls(tools, text, 0)
        except NoCall:
            return [], text
        return ([], text) if rest else (calls, text[end:])


def _read(tools: Tools, text: str, place: int, cut: bool) -> Part:
    if text.startswith(("[", "{"), after_space(text, place)):
        return read_calls(tools, text, place)
    named = _NAMED.match(text, place)
    if named is None:
        raise NoCall(place)
    end = after_space(text, named.end())
    if named[0].endswith(_ARGUMENTS) and (text.startswith(_MARKER, end) or (end == len(text) and not cut)):
        arguments: Any = {}
    else:
        arguments, end = read_at(text, named.end())
    call = make_call(tools, named[1], arguments, named[2])
    if call is None:
        raise NoCall(end)
    return Part([call], end)
