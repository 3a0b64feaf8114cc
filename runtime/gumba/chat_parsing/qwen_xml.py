"""Qwen3-Coder's and Qwen3.5's calls.

::

    <tool_call>
    <function=weather>
    <parameter=city>
    Bonn
    </parameter>
    </function>
    </tool_call>

Llama 3.1's custom calls and Functionary's have JSON instead of the parameters: ``<function=weather>{"city": "Bonn"}</function>``.
"""

from __future__ import annotations

from typing import Any

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, make_call, read_at, scan

_FUNCTION, _FUNCTION_END, _PARAMETER, _PARAMETER_END = "<function=", "</function>", "<parameter=", "</parameter>"


class QwenXML(ToolFormat):
    """Parameters in tags; the outer tag (Seed-OSS has another one) is sometimes left out."""

    def __init__(self, opening: str = "<tool_call>", closing: str = "</tool_call>") -> None:
        self.markers, self.texts = (opening, _FUNCTION), (closing,)

    def parse(self, text: str, tools: Tools) -> Found:
        def read(text: str, place: int) -> tuple[list[Call], int] | None:
            return _read(text, place, tools)

        calls, rest = scan(text, _FUNCTION, read)
        return calls, rest.replace(self.markers[0], "").replace(self.texts[0], "") if calls else rest


def _read(text: str, place: int, tools: Tools) -> tuple[list[Call], int] | None:
    """A call whose name begins at ``place``."""
    end = text.find(">", place)
    if end < 0:
        return None
    name, place = text[place:end].strip(), end + 1
    arguments: Any = {}
    if text.startswith("{", after_space(text, place)) and (found := read_at(text, place)) is not None:
        arguments, place = found
    while text.startswith(_PARAMETER, start := after_space(text, place)):
        start += len(_PARAMETER)
        middle = text.find(">", start)
        stop = text.find(_PARAMETER_END, middle)
        if middle < 0 or stop < 0:
            return None
        key, value = text[start:middle].strip(), text[middle + 1 : stop]
        arguments[key] = tools.typed(name, key, value.removeprefix("\n").removesuffix("\n"))
        place = stop + len(_PARAMETER_END)
    end = after(text, place, _FUNCTION_END)
    call = make_call(name, arguments)
    if call is None or (end == place and text[place:].strip()):
        return None
    return [call], end
