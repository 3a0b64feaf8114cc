"""Kimi K2's calls.

::

    <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Bonn"}
    <|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, make_call, read_at, scan

BEGIN, _END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END, _ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"
_HEAD = re.compile(r"\s*((?:functions\.)?([\w.-]+?)(?::\d+)?)\s*" + re.escape(_ARGUMENTS))


class Kimi(ToolFormat):
    """Ids are of the model's making: ``functions.weather:0``."""

    markers = (BEGIN,)
    texts = (_END, _CALL, _CALL_END, _ARGUMENTS)

    def parse(self, text: str, tools: Tools) -> Found:
        calls, rest = scan(text, _CALL, _read)
        return calls, rest.replace(BEGIN, "").replace(_END, "") if calls else rest


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    head = _HEAD.match(text, place)
    found = None if head is None else read_at(text, head.end())
    call = None if head is None or found is None else make_call(head[2], found[0], head[1])
    return None if call is None or found is None else ([call], after(text, found[1], _CALL_END))
