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

import re
from typing import Any

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, make_call, outer_ends
from gumba.chat.tool_parsers.hermes import read_hermes
from gumba.chat.tool_parsers.values import JsonObject, NoCall, after, after_space, read_at

_ATTRIBUTE = re.compile(r"\s*(?:name\s*)?=\s*(?:\"([^\"]+)\"|'([^']+)'|([^\s]+))")


class QwenXML(ToolParser):
    """Parameters in tags; the outer tag (Seed-OSS has another one) is sometimes left out.

    Closing tags are forgotten: a value ends where the next tag of the call begins.
    """

    def __init__(self, opening: str = "<tool_call>", closing: str = "</tool_call>") -> None:
        self._open, self._close = opening, closing
        self.template_markers = ("<function=",) if opening == "<tool_call>" else (opening,)
        self.markers, self.closing, self.texts = (
            (opening, "<function=", "<function name="),
            (closing, "</function>"),
            (closing,),
        )
        self._tag = re.compile(
            rf"(?P<outer>{re.escape(opening)})|(?P<outer_end>{re.escape(closing)})|(?P<function_end></function>)"
            r"|(?P<value_end></parameter>)|<(?P<kind>function|parameter)(?P<name>[\s=][^<>]*)>"
        )

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        reader = _Reader(text, tools, list(self._tag.finditer(text)), cut)
        return reader.read_all(self._close)


class _Reader:
    """Reads the calls of one answer, whose tags are ``tags``."""

    def __init__(self, text: str, tools: Tools, tags: list[re.Match[str]], cut: bool) -> None:
        self._text, self._tools, self._tags, self._cut = text, tools, tags, cut
        self._kinds = [tag.lastgroup if tag["kind"] is None else tag["kind"] for tag in tags]
        self._at = 0  # the tag that comes next
        keys = frozenset().union(*map(tools.keys, tools.names))
        known = [
            "" if kind == "parameter" and keys and _name(tag) not in keys else kind
            for kind, tag in zip(self._kinds, tags, strict=True)
        ]
        self._outer_ends = outer_ends(known, "parameter", "value_end", ("function_end", "parameter"))

    def read_all(self, outer_end: str) -> Parsed:
        """All calls, and the rest of the text."""
        calls, rest, place = [], list[str](), 0
        while self._at < len(self._tags):
            first, kind = self._at, self._kinds[self._at]
            opened = kind == "outer"
            start = self._tags[first].start()
            try:
                if opened and self._text.startswith(("{", "["), after_space(self._text, self._tags[first].end())):
                    part = read_hermes(self._tools, self._text, self._tags[first].end())
                else:
                    self._at += opened and self._kind() == "function" and self._blank(first)
                    part = self._function()
            except NoCall:
                self._at = first + 1
                continue
            rest += (self._text[place:start], part.rest)
            calls += part.calls
            place = after(self._text, part.end, outer_end)
            while self._at < len(self._tags) and self._tags[self._at].start() < place:
                self._at += 1
        return calls, "".join([*rest, self._text[place:]])

    def _kind(self, ahead: int = 1) -> str | None:
        at = self._at + ahead
        return self._kinds[at] if at < len(self._kinds) else None

    def _blank(self, tag: int) -> bool:
        """Whether only white space is between ``tag`` and the next one."""
        return after_space(self._text, self._tags[tag].end()) == self._tags[tag + 1].start()

    def _function(self) -> Part:
        """Parse the call whose opening tag comes next."""
        tag = self._tags[self._at]
        name = self._tools.offered(_name(tag)) if tag["kind"] == "function" else None
        if name is None:
            raise NoCall(tag.end())
        place = tag.end()
        self._at += 1
        arguments: Any = {}
        if self._text.startswith("{", after_space(self._text, place)):
            arguments, place = read_at(self._text, place)
            while self._at < len(self._tags) and self._tags[self._at].start() < place:
                self._at += 1
        while self._at < len(self._tags) and self._tags[self._at].start() == after_space(self._text, place):
            kind = self._kinds[self._at]
            if kind == "value_end":  # once too often
                place = self._tags[self._at].end()
                self._at += 1
            elif kind == "parameter":
                key, place = _name(self._tags[self._at]), self._tags[self._at].end()
                self._at += 1
                if not key:
                    raise NoCall(place)
                end = self._value_end(name, arguments)
                value = self._text[place:end].removeprefix("\n").removesuffix("\n")
                arguments[key] = self._tools.typed(name, key, value)
                place = end
                if self._at < len(self._tags) and self._kinds[self._at] == "value_end":
                    place = self._tags[self._at].end()
                    self._at += 1
            else:
                break
        closed = self._at < len(self._tags) and self._tags[self._at].start() == after_space(self._text, place)
        if closed and self._kinds[self._at] == "function_end":
            place = self._tags[self._at].end()
        ends = after_space(self._text, place) == len(self._text)
        call = make_call(self._tools, name, arguments)
        if call is None or not (closed or (ends and not self._cut) or (arguments and not ends)):
            raise NoCall(place)
        return Part([call], place)

    def _value_end(self, name: str, given: JsonObject) -> int:
        """The end of the value that begins at the last tag; the next tag ends it."""
        keys = self._tools.keys(name)
        while self._at < len(self._tags):
            tag, kind = self._tags[self._at], self._kinds[self._at]
            if kind == "value_end":
                ends = self._kind() != "value_end" or self._blank(self._at)
            elif kind == "parameter":
                key = _name(tag)
                ends = bool(key) and key not in given and (not keys or key in keys)
            else:
                ends = kind in ("function_end", "outer_end") or self._offers(tag)
                outer = self._outer_ends[self._at + 1]
                if ends and outer >= 0:  # a whole call or its end, in a value that is closed behind it
                    self._at = outer
                    continue
            if ends:
                return tag.start()
            self._at += 1
        if self._cut:
            raise NoCall(len(self._text))
        return len(self._text.rstrip())

    def _offers(self, tag: re.Match[str]) -> bool:
        """Whether another call begins at ``tag``, or at the next one."""
        if tag["kind"] is None and self._kind() == "function" and self._blank(self._at):
            tag = self._tags[self._at + 1]
        return tag["kind"] == "function" and self._tools.offered(_name(tag)) is not None


def _name(tag: re.Match[str]) -> str:
    """The name in an opening tag, possibly quoted or as the attribute ``name``."""
    match = _ATTRIBUTE.match(tag["name"])
    return "" if match is None else (match[1] or match[2] or match[3]).strip()
