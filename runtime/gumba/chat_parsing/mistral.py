"""Mistral's calls: a list of them (tokenizers v2 to v7), or name and arguments (from v11 on).

::

    [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn"}, "id": "abcdefghi"}]
    [TOOL_CALLS]weather[ARGS]{"city": "Bonn"}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Köln"}
"""

from __future__ import annotations

import re

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after_space, json_calls, make_call, read_at, scan

_MARKER = "[TOOL_CALLS]"
_NAMED = re.compile(r"\s*([\w.:-]+)\s*(?:\[CALL_ID\]\s*([\w-]*)\s*)?(?:\[ARGS\])?")
_BARE = '[{"name"'


class Mistral(ToolFormat):
    """Without the marker a list of calls of known names is one too: smaller models forget it."""

    markers = (_MARKER,)
    texts = ("[CALL_ID]", "[ARGS]")

    def starts(self, text: str, tools: Tools) -> bool | None:
        packed = "".join(text[:80].split())
        if packed.startswith(_BARE):
            return True
        return None if _BARE.startswith(packed) else False

    def parse(self, text: str, tools: Tools) -> Found:
        if _MARKER in text:
            return scan(text, _MARKER, _read)
        found = read_at(text, 0)
        calls = None if found is None else json_calls(found[0])
        if found is None or calls is None or not all(call.name in tools.names for call in calls):
            return [], text
        return calls, text[found[1] :]


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    if text.startswith(("[", "{"), after_space(text, place)):
        found = read_at(text, place)
        calls = None if found is None else json_calls(found[0])
        return None if found is None or calls is None else (calls, found[1])
    named = _NAMED.match(text, place)
    found = None if named is None else read_at(text, named.end())
    call = None if named is None or found is None else make_call(named[1], found[0], named[2])
    return None if call is None or found is None else ([call], found[1])
