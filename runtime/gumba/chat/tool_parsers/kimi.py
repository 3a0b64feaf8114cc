"""Kimi K2's calls.

::

    <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Bonn"}
    <|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, make_call, read_arguments, scan
from gumba.chat.tool_parsers.values import NoCall, after

BEGIN, _END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END, _ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"
_HEAD = re.compile(r"\s*([^\s<]{1,500}?)(:\d+)?\s*" + re.escape(_ARGUMENTS))


class Kimi(ToolParser):
    """Ids are of the model's making: ``functions.weather:0``."""

    template_markers = (BEGIN,)
    markers = (BEGIN, _CALL)
    closing = (_END, _CALL_END)
    texts = (_END, _CALL_END, _ARGUMENTS)

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        calls, rest = scan(text, _CALL, lambda text, place: _read(tools, text, place))
        return calls, rest.replace(BEGIN, "").replace(_END, "") if calls else rest


def _read(tools: Tools, text: str, place: int) -> Part:
    head = _HEAD.match(text, place)
    if head is None:
        raise NoCall(place)
    arguments, end = read_arguments(text, head.end(), _CALL_END)
    call = make_call(tools, head[1], arguments, head[1] + (head[2] or ""))
    if call is None:
        raise NoCall(end)
    return Part([call], after(text, end, _CALL_END))
