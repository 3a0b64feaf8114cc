"""LFM2's calls, which look like Python's: ``<|tool_call_start|>[weather(city="Bonn", days=3)]<|tool_call_end|>``.

They are read, never run.
"""

from __future__ import annotations

import re
from typing import Any

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, make_call, scan

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\\": "\\", '"': '"', "'": "'", "\n": ""}
_CODE = re.compile("u([0-9a-fA-F]{4})")
#: What stands in a string up to a backslash or its end.
_PLAIN = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_MOST_NESTED = 100


class Pythonic(ToolFormat):
    """A list of calls with keywords. Without the marker only of known names."""

    markers = (OPEN,)
    texts = (CLOSE,)

    def starts(self, text: str, tools: Tools) -> bool | None:
        if not text.startswith("["):
            return False
        name, bracket, _ = text[1:].lstrip().partition("(")
        if bracket:
            return name in tools.names
        return None if any(each.startswith(name) for each in tools.names) else False

    def parse(self, text: str, tools: Tools) -> Found:
        if OPEN in text:
            return scan(text, OPEN, _read)
        found = _read(text, 0)
        if found is None or not all(call.name in tools.names for call in found[0]):
            return [], text
        return found[0], text[found[1] :]


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    place = after_space(text, place)
    if not text.startswith("[", place):
        return None
    calls: list[Call] = []
    place = after_space(text, place + 1)
    while name := _NAME.match(text, place):
        found = _keywords(text, name.end())
        call = None if found is None else make_call(name[0], found[0])
        if found is None or call is None:
            return None
        calls.append(call)
        place = after_space(text, after(text, found[1], ","))
    if not calls or not text.startswith("]", place):
        return None
    return calls, after(text, place + 1, CLOSE)


def _keywords(text: str, place: int) -> tuple[dict[str, Any], int] | None:
    """``(key=value, ...)`` and where it ends."""
    if not text.startswith("(", place):
        return None
    found: dict[str, Any] = {}
    place = after_space(text, place + 1)
    while key := _NAME.match(text, place):
        place = after_space(text, key.end())
        value = _literal(text, place + 1, 0) if text.startswith("=", place) else None
        if value is None:
            return None
        found[key[0]] = value[0]
        place = after_space(text, after(text, value[1], ","))
    return (found, place + 1) if text.startswith(")", place) else None


def _literal(text: str, place: int, depth: int) -> tuple[Any, int] | None:
    """The value at ``place`` and where it ends; None for what is no literal."""
    place = after_space(text, place)
    first = text[place : place + 1]
    if first in ("'", '"'):
        return _string(text, place)
    if first in ("[", "(", "{") and depth < _MOST_NESTED:
        return _container(text, place, depth + 1)
    if number := _NUMBER.match(text, place):
        try:
            return (int if number[0].lstrip("-").isdigit() else float)(number[0]), number.end()
        except ValueError:  # thousands of digits
            return None
    word = _NAME.match(text, place)
    return (_WORDS[word[0]], word.end()) if word and word[0] in _WORDS else None


def _string(text: str, place: int) -> tuple[str, int] | None:
    quote = text[place]
    pieces: list[str] = []
    place += 1
    while found := _PLAIN[quote].match(text, place):
        pieces.append(found[0])
        place = found.end()
        if text.startswith(quote, place):
            return "".join(pieces), place + 1
        escape = text[place + 1 : place + 2]  # behind a backslash
        if not escape:
            return None
        code = _CODE.match(text, place + 1)
        pieces.append(chr(int(code[1], 16)) if code else _ESCAPES.get(escape, "\\" + escape))
        place = code.end() if code else place + 2
    return None


def _container(text: str, place: int, depth: int) -> tuple[Any, int] | None:
    """A list, a tuple (as a list) or a dictionary."""
    closing = {"[": "]", "(": ")", "{": "}"}[text[place]]
    items: list[Any] = []
    table: dict[str, Any] = {}
    place = after_space(text, place + 1)
    while not text.startswith(closing, place):
        found = _literal(text, place, depth)
        if found is None:
            return None
        item, place = found
        if closing == "}":
            place = after_space(text, place)
            value = _literal(text, place + 1, depth) if text.startswith(":", place) and isinstance(item, str) else None
            if value is None:
                return None
            table[item], place = value
        items.append(item)
        place = after_space(text, place)
        if text.startswith(",", place):
            place = after_space(text, place + 1)
        elif not text.startswith(closing, place):
            return None
    return (table if closing == "}" else items), place + 1
