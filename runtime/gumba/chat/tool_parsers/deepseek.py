"""DeepSeek V3's, R1's and V3.1's calls; the latter without ``function`` and the fence.

::

    <|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>weather
    ```json
    {"city": "Bonn"}
    ```<|tool▁call▁end|><|tool▁calls▁end|>
    <|tool▁calls▁begin|><|tool▁call▁begin|>weather<|tool▁sep|>{"city": "Bonn"}<|tool▁call▁end|><|tool▁calls▁end|>

(The bars are U+FF5C in fact.)
"""

from __future__ import annotations

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, make_call, read_arguments, scan
from gumba.chat.tool_parsers.values import NoCall, after, after_space


def _mark(name: str) -> str:
    return f"<\uff5ctool▁{name}\uff5c>"


BEGIN, END = _mark("calls▁begin"), _mark("calls▁end")
_CALL, _CALL_END, _SEPARATOR = _mark("call▁begin"), _mark("call▁end"), _mark("sep")
#: Characters within which the name of a function ends.
_MOST_NAME = 500


class DeepSeek(ToolParser):
    """Both forms; the outer marks are sometimes left out."""

    template_markers = (BEGIN,)
    markers = (BEGIN, _CALL)
    closing = (END, _CALL_END)
    texts = (END, _CALL_END, _SEPARATOR)

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        calls, rest = scan(text, _CALL, lambda text, place: _read(tools, text, place))
        return calls, rest.replace(BEGIN, "").replace(END, "") if calls else rest


def _read(tools: Tools, text: str, place: int) -> Part:
    middle = text.find(_SEPARATOR, place, place + _MOST_NAME)
    if middle < 0:
        raise NoCall(place + _MOST_NAME)
    name, start = text[place:middle].strip(), middle + len(_SEPARATOR)
    if name == "function" and not text.startswith("{", after_space(text, start)):
        newline = text.find("\n", start, start + _MOST_NAME)
        if newline < 0:
            raise NoCall(start + _MOST_NAME)
        name, start = text[start:newline].strip(), newline
    arguments, end = read_arguments(text, after(text, start, "```json", "```"), "```", _CALL_END)
    call = make_call(tools, name, arguments)
    if call is None:
        raise NoCall(end)
    end = after(text, end, "```")
    closed = after(text, end, _CALL_END)
    following = after_space(text, end)
    if closed == end and following < len(text) and not text.startswith((END, _CALL), following):
        raise NoCall(end)
    return Part([call], closed)
