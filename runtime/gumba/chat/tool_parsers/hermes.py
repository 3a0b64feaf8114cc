"""Hermes 2 Pro's calls, which Qwen2.5, Qwen3, SmolLM3, Granite 4 and others write too.

::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bonn"}}
    </tool_call>
"""

from __future__ import annotations

import re

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, read_calls, scan
from gumba.chat.tool_parsers.values import NoCall, after, after_space

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BRACKETS = re.compile(r"[\s}\]]*")


class Hermes(ToolParser):
    """JSON in <tool_call>."""

    template_markers = (OPEN,)
    markers = (OPEN,)
    closing = texts = (CLOSE,)

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        return scan(text, OPEN, lambda text, place: read_hermes(tools, text, place))


def read_hermes(tools: Tools, text: str, place: int) -> Part:
    """Calls after ``OPEN``, possibly in a code fence, and with a bracket too many or too few before ``CLOSE``."""
    start = after(text, place, "```json", "```")
    try:
        part = read_calls(tools, text, start)
    except NoCall as error:
        return _unfinished(tools, text, start, error)
    while text.startswith("{", following := after_space(text, after(text, part.end, ",", ";"))):
        try:
            following_calls = read_calls(tools, text, following)  # another call in the same marks
        except NoCall:
            break
        part = Part(part.calls + following_calls.calls, following_calls.end, part.rest)
    end = after(text, part.end, "```") if start > place else part.end
    closed = after(text, _BRACKETS.match(text, end).end(), CLOSE)  # type: ignore[union-attr]
    if text.startswith(CLOSE, closed - len(CLOSE)) and closed > end:
        return part._replace(end=closed)
    # The end may be missing where the answer ends, or the next call begins.
    following = after_space(text, end)
    if following < len(text) and not text.startswith(OPEN, following):
        raise NoCall(end)
    return part._replace(end=end)


def _unfinished(tools: Tools, text: str, place: int, error: NoCall) -> Part:
    """A call whose last brackets are missing before ``CLOSE``. Raises ``error`` if it is not one."""
    following = text.find(OPEN, place)
    end = text.find(CLOSE, place, following if following >= 0 else len(text))
    for brackets in ("}", "}}", "]", "}]") if end >= 0 else ():
        whole = text[place:end].rstrip() + brackets
        try:
            part = read_calls(tools, whole, 0)
        except NoCall:
            continue
        if part.end == len(whole):
            return part._replace(end=end + len(CLOSE))
    raise NoCall(max(error.place, end))
