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

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, make_call, read_at, scan


def _mark(name: str) -> str:
    return f"<\uff5ctool▁{name}\uff5c>"


BEGIN, END = _mark("calls▁begin"), _mark("calls▁end")
_CALL, _CALL_END, _SEPARATOR = _mark("call▁begin"), _mark("call▁end"), _mark("sep")


class DeepSeek(ToolFormat):
    """Both forms; the outer marks are sometimes left out."""

    markers = (BEGIN, _CALL)
    texts = (END, _CALL_END, _SEPARATOR)

    def parse(self, text: str, tools: Tools) -> Found:
        calls, rest = scan(text, _CALL, _read)
        return calls, rest.replace(BEGIN, "").replace(END, "") if calls else rest


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    middle = text.find(_SEPARATOR, place)
    if middle < 0:
        return None
    name, start = text[place:middle].strip(), middle + len(_SEPARATOR)
    if name == "function":
        newline = text.find("\n", start)
        if newline < 0:
            return None
        name, start = text[start:newline].strip(), newline
    fenced = after(text, start, "```json")
    found = read_at(text, fenced)
    call = None if found is None else make_call(name, found[0])
    if call is None or found is None:
        return None
    end = after(text, found[1], "```")
    closed = after(text, end, _CALL_END)
    return None if closed == end and after_space(text, end) < len(text) else ([call], closed)
