"""Hermes 2 Pro's calls, which Qwen2.5, Qwen3, SmolLM3, Granite 4 and others write too.

::

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bonn"}}
    </tool_call>
"""

from __future__ import annotations

from gumba.chat_parsing.tools import Found, Part, ToolFormat, Tools, read_calls, scan
from gumba.chat_parsing.values import NoCall, after, after_space

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ToolFormat):
    """JSON in <tool_call>."""

    markers = (OPEN,)
    closing = texts = (CLOSE,)

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Found:
        return scan(text, OPEN, lambda text, place: read_hermes(tools, text, place))


def read_hermes(tools: Tools, text: str, place: int) -> Part:
    """Calls behind ``OPEN``."""
    found = read_calls(tools, text, place)
    end = after(text, found.end, CLOSE)
    # The end may be missing where the answer ends, or the next call begins.
    following = after_space(text, end)
    if end == found.end and following < len(text) and not text.startswith(OPEN, following):
        raise NoCall(end)
    return found._replace(end=end)
