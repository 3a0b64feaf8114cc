"""Calls as JSON behind a marker of their own.

Granite 3 and Phi-4-mini (<|tool_call|>), Command R7B and A (<|START_ACTION|>), Apriel (<tool_calls>), GigaChat
(<|function_call|>).
"""

from __future__ import annotations

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, read_calls, scan
from gumba.chat.tool_parsers.values import after


class MarkedJSON(ToolParser):
    """JSON between ``opening`` and ``closing``, which may be missing."""

    def __init__(self, opening: str, closing: str) -> None:
        self.template_markers = self.markers = (opening,)
        self.closing = (closing,)
        self.texts = self.closing

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        def read(text: str, place: int) -> Part:
            part = read_calls(tools, text, place)
            return part._replace(end=after(text, part.end, *self.closing))

        return scan(text, self.markers[0], read)
