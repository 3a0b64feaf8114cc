"""Hermes 2 Pro's calls, which Qwen2.5, Qwen3, SmolLM3, Granite 4 and others write too.

::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bonn"}}
    </tool_call>
"""

from __future__ import annotations

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, json_calls, read_at, scan

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ToolFormat):
    """JSON in <tool_call>."""

    markers = (OPEN,)
    texts = (CLOSE,)

    def parse(self, text: str, tools: Tools) -> Found:
        return scan(text, OPEN, _read)


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    found = read_at(text, place)
    calls = None if found is None else json_calls(found[0])
    if found is None or calls is None:
        return None
    end = after(text, found[1], CLOSE)
    # The end may be missing where the answer ends, or the next call begins.
    following = after_space(text, end)
    if end == found[1] and following < len(text) and not text.startswith(OPEN, following):
        return None
    return calls, end
