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

import re

from gumba.chat.tool_parsers.base import Call, Parsed, Part, ToolParser, Tools, make_call, outer_ends, scan
from gumba.chat.tool_parsers.hermes import CLOSE as _CLOSE
from gumba.chat.tool_parsers.hermes import OPEN as _OPEN
from gumba.chat.tool_parsers.hermes import read_hermes
from gumba.chat.tool_parsers.values import JsonObject, NoCall, after, after_space, read_at

_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_TAG = re.compile("|".join((_OPEN, _CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)))


class GLM4(ToolParser):
    """Only an offered function's name on the first line, with an object after it, is a call."""

    template_markers = ("[gMASK]",)

    def starts(self, text: str, tools: Tools) -> bool | None:
        line, newline, rest = text.partition("\n")
        if not newline:
            return None if any(name.startswith(line.rstrip()) for name in tools.names) else False
        if line.strip() not in tools.names:
            return False
        return rest.lstrip().startswith("{") if rest.strip() else None

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        calls: list[Call] = []
        place = 0
        while (newline := text.find("\n", place)) >= 0:
            name = text[place:newline].strip()
            try:
                arguments, end = read_at(text, newline) if name in tools.names else (None, place)
            except NoCall:
                break
            call = make_call(tools, name, arguments)
            if call is None:
                break
            calls.append(call)
            place = after_space(text, end)
        return calls, text[place:]


class GLM45(ToolParser):
    """Tags. Some of them are forgotten: a value ends where the next tag begins."""

    template_markers = (_KEY,)
    markers = (_OPEN,)
    closing = (_CLOSE,)
    texts = (_CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        tags = list(_TAG.finditer(text))
        ends = outer_ends([tag[0] for tag in tags], _VALUE, _VALUE_END, (_KEY, _CLOSE))
        places = {tag.end(): i for i, tag in enumerate(tags)}

        def read(text: str, place: int) -> Part:
            if text.startswith(("{", "["), after_space(text, place)):
                return read_hermes(tools, text, place)
            return _read(text, tools, tags, ends, places[place], cut)

        return scan(text, _OPEN, read)


def _read(text: str, tools: Tools, tags: list[re.Match[str]], ends: list[int], at: int, cut: bool) -> Part:
    """The call that the tag number ``at`` opens; ``ends``: see ``outer_ends``."""

    def kind(i: int) -> str:
        return tags[i][0] if i < len(tags) else ""

    def until(i: int) -> int:
        return tags[i].start() if i < len(tags) else len(text)

    def value_end(i: int) -> int:
        """The tag that ends the value behind which the tag number ``i`` stands."""
        while i < len(tags):
            if kind(i) in (_OPEN, _CLOSE) and ends[i + 1] >= 0:  # a whole call, or its end, in a value closed behind it
                i = ends[i + 1]
            elif kind(i) == kind(i + 1) == _VALUE_END and after_space(text, tags[i].end()) < until(i + 1):
                i += 1
            else:
                break
        return i

    head = text[tags[at].end() : until(at + 1)].strip()
    at += 1
    name, key = _split(tools, head, kind(at) in (_KEY_END, _VALUE))
    if name is None:
        raise NoCall(until(at))
    arguments: JsonObject = {}
    place = until(at)
    while key is not None or (kind(at) == _KEY and (not arguments or after_space(text, place) == until(at))):
        if key is None:
            key = text[tags[at].end() : until(at + 1)].strip()
            at += 1
        at += kind(at) == _KEY_END
        if kind(at) != _VALUE:
            raise NoCall(until(at))
        start = tags[at].end()
        at = value_end(at + 1)
        if at == len(tags) and cut:
            raise NoCall(len(text))
        value = text[start : until(at)]
        arguments[key] = tools.typed(name, key, value if kind(at) == _VALUE_END else value.rstrip())
        place = tags[at].end() if kind(at) == _VALUE_END else until(at)
        at += kind(at) == _VALUE_END
        key = None
    call, end = make_call(tools, name, arguments), after(text, place, _CLOSE)
    following = after_space(text, end)
    complete = end > place or text.startswith(_OPEN, following) or (following == len(text) and not cut)
    if call is None or not complete or (end == place and not arguments):
        raise NoCall(end)
    return Part([call], end)


def _split(tools: Tools, head: str, key_too: bool) -> tuple[str | None, str | None]:
    """The function that ``head`` names; with ``key_too`` also the first key, whose opening tag was forgotten."""
    name, _, key = head.partition("\n")
    if not key_too:
        return tools.offered(name), None
    if key.strip():
        return tools.offered(name), key.strip()
    candidates = [(name, head[len(name) :].strip()) for name in tools.names if head.startswith(name)]
    return next(((name, key) for name, key in candidates if key in tools.keys(name)), (None, None))
