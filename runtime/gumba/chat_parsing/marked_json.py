"""Calls as JSON behind a marker of their own.

Granite 3 and Phi-4-mini (<|tool_call|>), Command R7B and A (<|START_ACTION|>), Apriel (<tool_calls>), GigaChat
(<|function_call|>).
"""

from __future__ import annotations

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, json_calls, read_at, scan


class MarkedJSON(ToolFormat):
    """``opening`` JSON ``closing``, of which the latter may be missing."""

    def __init__(self, opening: str, closing: str) -> None:
        self.markers, self.texts = (opening,), (closing,)

    def parse(self, text: str, tools: Tools) -> Found:
        return scan(text, self.markers[0], self._read)

    def _read(self, text: str, place: int) -> tuple[list[Call], int] | None:
        found = read_at(text, place)
        calls = None if found is None else json_calls(found[0])
        return None if found is None or calls is None else (calls, after(text, found[1], self.texts[0]))
