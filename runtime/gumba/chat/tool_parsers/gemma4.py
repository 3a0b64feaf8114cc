"""Gemma 4's calls: ``<|tool_call>call:weather{city:<|"|>Bonn<|"|>,days:3}<tool_call|>``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from gumba.chat.tool_parsers.base import Parsed, Part, ToolParser, Tools, make_call, scan
from gumba.chat.tool_parsers.values import (
    MAX_NESTING,
    JsonObject,
    NoCall,
    after,
    after_space,
    read_nested,
    read_whole,
    unescaped,
)

#: Makes a value of a key and a word without quotes.
_Typed: TypeAlias = Callable[[str, str], object]

OPEN, _CLOSE, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = re.compile(r"\s*call:\s*([^\s{}<>]{1,500})\s*(?=\{)")
#: A key: between quotes of any kind, or bare.
_KEY = re.compile(
    r"""\s*(?:<\|"\|>(.{1,500}?)<\|"\|>|"([^"]{1,500})"|'([^']{1,500})\'"""
    r"""|([^\s:{}\[\],"'<>][^:{}\[\],"'<>]{0,499}))\s*:""",
    re.DOTALL,
)
#: What ends a bare value: a bracket, or a comma.
_STOP = re.compile(r"[,{}\[\]]|<tool_call\|>")
#: What may follow the quote at the end of a string.
_DELIMITER = re.compile(r"\s*(?:[,:}\]]|<tool_call\|>|\Z)")


class Gemma4(ToolParser):
    """Keys are bare, texts stand between quotes of their own, or of JSON. Without the marker only of offered functions."""

    template_markers = (OPEN,)
    markers = (OPEN,)
    closing = (_CLOSE,)
    texts = (_CLOSE, _QUOTE)

    def starts(self, text: str, tools: Tools) -> bool | None:
        if not text.startswith("call:"):
            return None if "call:".startswith(text) else False
        head = _HEAD.match(text)
        if head is not None:
            return _offered(tools, head[1]) is not None
        return None if re.fullmatch(r"call:\s*[^\s{}<>]*\s*", text) else False

    def parse(self, text: str, tools: Tools, cut: bool = False) -> Parsed:
        if OPEN in text:
            return scan(text, OPEN, lambda text, place: _read(tools, text, place))
        return scan(text, "call:", lambda text, place: _read(tools, text, place - len("call:")))


def _offered(tools: Tools, name: str) -> str | None:
    """The function ``name``, behind namespaces perhaps (``google:mcp:weather``)."""
    return tools.offered(name) or tools.offered(name.rpartition(":")[2])


def _read(tools: Tools, text: str, place: int) -> Part:
    head = _HEAD.match(text, place)
    name = None if head is None else _offered(tools, head[1])
    if head is None or name is None:
        raise NoCall(place if head is None else head.end())

    def typed(key: str, word: str) -> object:
        return tools.typed(name, key, word, quotes=True)

    arguments, end = _container(text, head.end(), 1, typed)
    call = make_call(tools, name, arguments)
    if call is None:
        raise NoCall(end)
    return Part([call], after(text, end, _CLOSE))


def _untyped(key: str, word: str) -> object:
    try:
        return read_whole(word)
    except NoCall:
        return word


def _value(text: str, place: int, depth: int, key: str, typed: _Typed, in_object: bool) -> tuple[object, int]:
    """The value at ``place`` and where it ends."""
    place = after_space(text, place)
    if text.startswith(_QUOTE, place):
        start = place + len(_QUOTE)
        end = text.find(_QUOTE, start)
        if end < 0:
            raise NoCall(len(text))
        return text[start:end], end + len(_QUOTE)
    if text.startswith(('"', "'"), place):
        return _string(text, place)
    if text.startswith(("{", "["), place):
        return _container(text, place, depth + 1, _untyped) if depth < MAX_NESTING else read_nested(text, place)
    return _bare(text, place, key, typed, in_object)


def _string(text: str, place: int) -> tuple[str, int]:
    """A text between quotes, which may have the same quotes inside: the last one is followed by a comma or bracket."""
    quote, start = text[place], place + 1
    end = start
    while (end := text.find(quote, end)) >= 0:
        first = end  # of the backslashes in front of it
        while text[first - 1] == "\\":
            first -= 1
        if (end - first) % 2 == 0 and _DELIMITER.match(text, end + 1):
            return unescaped(text[start:end]), end + 1
        end += 1
    raise NoCall(len(text))


def _bare(text: str, place: int, key: str, typed: _Typed, in_object: bool) -> tuple[object, int]:
    """A value without quotes; in an object, a comma that no key follows is part of it."""
    end = place
    while (stop := _STOP.search(text, end)) is not None:
        end = stop.start()
        if stop[0] != "," or not in_object or _KEY.match(text, end + 1):
            break
        end += 1
    if stop is None or end == place:
        raise NoCall(end)
    return typed(key, text[place:end].strip()), end


def _container(text: str, place: int, depth: int, typed: _Typed) -> tuple[object, int]:
    """A list or an object; ``typed`` makes a value of a key and a bare word."""
    closing = "}" if text[place] == "{" else "]"
    items: list[object] = []
    table: JsonObject = {}
    place = after_space(text, place + 1)
    while not text.startswith(closing, place):
        key = _KEY.match(text, place) if closing == "}" else None
        if closing == "}" and key is None:
            raise NoCall(place)
        name = "" if key is None else next(filter(None, key.groups())).strip()
        value, place = _value(text, place if key is None else key.end(), depth, name, typed, key is not None)
        if key is None:
            items.append(value)
        else:
            table[name] = value
        place = after_space(text, place)
        if text.startswith(",", place):
            place = after_space(text, place + 1)
        elif not text.startswith(closing, place):
            raise NoCall(place)
    return (table if closing == "}" else items), place + 1
