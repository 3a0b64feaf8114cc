"""GLM's calls. GLM-4-9B and GLM-4-0414 write the name on a line of its own and JSON below it::

    weather
    {"city": "Bonn"}

GLM-4.5 and later tags::

    <tool_call>weather
    <arg_key>city</arg_key>
    <arg_value>Bonn</arg_value>
    </tool_call>
"""

from __future__ import annotations

from typing import Any

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, make_call, read_at, scan

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GLM4(ToolFormat):
    """A known name on the first line and an object behind it are a call, and nothing else is."""

    def starts(self, text: str, tools: Tools) -> bool | None:
        line, newline, rest = text.partition("\n")
        if not newline:
            return None if any(name.startswith(line) for name in tools.names) else False
        if line.strip() not in tools.names:
            return False
        return rest.lstrip().startswith("{") if rest.strip() else None

    def parse(self, text: str, tools: Tools) -> Found:
        calls: list[Call] = []
        place = 0
        while (newline := text.find("\n", place)) >= 0:
            name, found = text[place:newline].strip(), read_at(text, newline)
            call = None if found is None or name not in tools.names else make_call(name, found[0])
            if found is None or call is None:
                break
            calls.append(call)
            place = after_space(text, found[1])
        return calls, text[place:]


class GLM45(ToolFormat):
    """Tags."""

    markers = (_OPEN,)
    texts = (_CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def parse(self, text: str, tools: Tools) -> Found:
        def read(text: str, place: int) -> tuple[list[Call], int] | None:
            return _read(text, place, tools)

        return scan(text, _OPEN, read)


def _read(text: str, place: int, tools: Tools) -> tuple[list[Call], int] | None:
    stops = [at for mark in (_KEY, _CLOSE, "\n") if (at := text.find(mark, place)) >= 0]
    if not stops:
        return None
    name, place = text[place : min(stops)].strip(), min(stops)
    arguments: dict[str, Any] = {}
    while text.startswith(_KEY, start := after_space(text, place)):
        start += len(_KEY)
        middle = text.find(_KEY_END, start)
        opened = after(text, middle + len(_KEY_END), _VALUE)
        stop = text.find(_VALUE_END, opened)
        if middle < 0 or opened == middle + len(_KEY_END) or stop < 0:
            return None
        key = text[start:middle].strip()
        arguments[key] = tools.typed(name, key, text[opened:stop])
        place = stop + len(_VALUE_END)
    call, end = make_call(name, arguments), after(text, place, _CLOSE)
    return None if call is None or end == place else ([call], end)
