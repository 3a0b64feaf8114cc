"""Calls as JSON behind a marker of their own.

Granite 3 and Phi-4-mini (<|tool_call|>), Command R7B and A (<|START_ACTION|>), Apriel (<tool_calls>), GigaChat
(<|function_call|>).
"""

from __future__ import annotations

from gumba.chat.tool_parsers.base import Found, Part, ToolFormat, Tools, read_calls, scan
from gumba.chat.tool_parsers.values import after


class MarkedJSON(ToolFormat):
    """``opening`` JSON ``closing``, of which the latter may be missing."""

    def __init__(self, opening: str, closing: str) -> None:
        self.markers, self.closing = (opening,), (closing,)
        self.texts = self.closing

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Found:
        def read(text: str, place: int) -> Part:
            found = read_calls(tools, text, place)
            return found._replace(end=after(text, found.end, *self.closing))

        return scan(text, self.markers[0], read)
