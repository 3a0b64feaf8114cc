"""Gemma 4's calls: ``<|tool_call>call:weather{city:<|"|>Bonn<|"|>,days:3}<tool_call|>``."""

from __future__ import annotations

import re
from typing import Any

from gumba.chat_parsing.tools import Call, Found, ToolFormat, Tools, after, after_space, make_call, read_json, scan

OPEN, _CLOSE, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = re.compile(r"\s*call:([\w.-]+)\s*(?=\{)")
_KEY = re.compile(r"([^:{}\[\],]+):")
_BARE = re.compile(r"[^,{}\[\]]+")
_MOST_NESTED = 100


class Gemma4(ToolFormat):
    """Keys are bare, texts stand between quotes of their own."""

    markers = (OPEN,)
    texts = (_CLOSE, _QUOTE)

    def parse(self, text: str, tools: Tools) -> Found:
        return scan(text, OPEN, _read)


def _read(text: str, place: int) -> tuple[list[Call], int] | None:
    head = _HEAD.match(text, place)
    found = None if head is None else _value(text, head.end(), 0)
    call = None if head is None or found is None else make_call(head[1], found[0])
    return None if call is None or found is None else ([call], after(text, found[1], _CLOSE))


def _value(text: str, place: int, depth: int) -> tuple[Any, int] | None:
    """The value at ``place`` and where it ends."""
    place = after_space(text, place)
    if text.startswith(_QUOTE, place):
        start = place + len(_QUOTE)
        end = text.find(_QUOTE, start)
        return None if end < 0 else (text[start:end], end + len(_QUOTE))
    if text.startswith(("{", "["), place):
        return None if depth >= _MOST_NESTED else _container(text, place, depth + 1)
    bare = _BARE.match(text, place)
    if bare is None:
        return None
    word = bare[0].strip()
    value = read_json(word)
    return (word if value is None and word != "null" else value), bare.end()


def _container(text: str, place: int, depth: int) -> tuple[Any, int] | None:
    closing = "}" if text[place] == "{" else "]"
    items: list[Any] = []
    table: dict[str, Any] = {}
    place = after_space(text, place + 1)
    while not text.startswith(closing, place):
        key = _KEY.match(text, place) if closing == "}" else None
        if closing == "}" and key is None:
            return None
        found = _value(text, place if key is None else key.end(), depth)
        if found is None:
            return None
        if key is None:
            items.append(found[0])
        else:
            table[key[1].strip().removeprefix(_QUOTE).removesuffix(_QUOTE)] = found[0]
        place = after_space(text, found[1])
        if text.startswith(",", place):
            place = after_space(text, place + 1)
        elif not text.startswith(closing, place):
            return None
    return (table if closing == "}" else items), place + 1
