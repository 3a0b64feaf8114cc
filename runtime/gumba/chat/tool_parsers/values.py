"""Parses argument values of calls: JSON, or what models write instead, such as Python literals.

Values that JSON cannot express are kept as text: NaN, Infinity, numbers beyond a double (1e400), and containers nested deeper
than ``MAX_NESTING``, which parsers of other languages reject.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeAlias

#: A JSON object.
JsonObject: TypeAlias = "dict[str, Any]"
#: Maximum nesting; a deeper container is kept as text. (serde_json rejects more than 127 levels.)
MAX_NESTING = 100

_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])")
_LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
_WORD = re.compile(r"[+-]?[A-Za-z_]\w*")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_NO_NUMBERS = frozenset(sign + word for sign in ("", "+", "-") for word in ("NaN", "nan", "Infinity", "inf"))
#: A string up to its quote or the end of the text, by the quote that opens it.
_STRINGS = {
    quote: re.compile(
        rf"{quote}((?:(?!{quote})[^\\])*(?:\\.(?:(?!{quote})[^\\])*)*)({quote}|\Z)"
        if len(quote) == 3
        else rf"{quote}([^{quote}\\]*(?:\\.[^{quote}\\]*)*)({quote}|\Z)",
        re.DOTALL,
    )
    for quote in ('"""', "'''", '"', "'")
}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""} | {c: c for c in "\\\"'/"}
#: A string, terminated or not, or a bracket outside of strings.
_BRACKETS = re.compile("|".join(string.pattern for string in _STRINGS.values()) + r"|[][(){}]", re.DOTALL)
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class NoCall(Exception):
    """A text is not a value, or not a call to an offered function; ``place``: how far it was read."""

    def __init__(self, place: int = 0) -> None:
        self.place = place


def _number(text: str) -> int | float | str:
    """The number, or ``text`` itself if it is out of a double's range."""
    if not math.isfinite(value := float(text)):
        return text
    return int(text) if text.lstrip("+-").isdigit() else value


_DECODER = json.JSONDecoder(strict=False, parse_int=_number, parse_float=_number, parse_constant=str)


def read_at(text: str, place: int) -> tuple[Any, int]:
    """The value at ``place`` (after optional white space) and its end. Raises NoCall if there is none."""
    place = after_space(text, place)
    if not text.startswith(("{", "["), place):
        return read_literal(text, place)
    whole, end = read_nested(text, place)
    try:
        value = _DECODER.decode(whole)  # a slice, because an error of json counts all lines before it
    except (ValueError, RecursionError):
        value = None
    if value is not None and _is_shallow(value):
        return value, end
    try:
        return read_literal(text, place)
    except NoCall as error:
        raise NoCall(max(error.place, end)) from None


def read_whole(text: str) -> Any:
    """The value of the whole ``text``. Raises NoCall if it is not one."""
    value, end = read_at(text, 0)
    if after_space(text, end) < len(text):  # a text that begins like JSON may be a Python literal
        value, end = read_literal(text, 0)
    if after_space(text, end) < len(text):
        raise NoCall(end)
    return value


def after_space(text: str, place: int) -> int:
    """The end of the white space at ``place``."""
    match = _SPACE.match(text, place)
    return place if match is None else match.end()


def after(text: str, place: int, *ends: str) -> int:
    """The position after the first of ``ends`` that follows (after optional white space); else ``place``."""
    start = after_space(text, place)
    return next((start + len(end) for end in ends if text.startswith(end, start)), place)


def unescaped(text: str) -> str:
    """The content of a quoted string, with JSON's and Python's escapes resolved."""

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        return chr(int(code, 16)) if code else _ESCAPES.get(match[3], match[0])

    return _ESCAPE.sub(character, text) if "\\" in text else text


def read_string(text: str, place: int) -> tuple[str, int]:
    """The quoted string at ``place`` and its end. Raises NoCall if it is not terminated."""
    quote = text[place : place + 3] if text.startswith(('"""', "'''"), place) else text[place]
    match = _STRINGS[quote].match(text, place)
    if match is None or not match[2]:
        raise NoCall(len(text))
    return unescaped(match[1]), match.end()


def read_nested(text: str, place: int) -> tuple[str, int]:
    """The text of the container at ``place``, unparsed, and its end. Raises NoCall if it is not terminated."""
    depth = 0
    for match in _BRACKETS.finditer(text, place):
        if match[0] in ("[", "(", "{"):
            depth += 1
        elif match[0] in ("]", ")", "}"):
            depth -= 1
        if depth == 0:
            return text[place : match.end()], match.end()
    raise NoCall(len(text))


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return True
    return False


def read_literal(text: str, place: int, depth: int = 0) -> tuple[Any, int]:
    """The value at ``place`` in JSON or Python syntax, or a mixture. Raises NoCall if there is none."""
    place = after_space(text, place)
    first = text[place : place + 1]
    if first in ("'", '"'):
        return read_string(text, place)
    if first in _CLOSING:
        return _container(text, place, depth + 1) if depth < MAX_NESTING else read_nested(text, place)
    if number := _NUMBER.match(text, place):
        return number[0] if _LEADING_ZERO.match(number[0]) else _number(number[0]), number.end()
    word = _WORD.match(text, place)
    if word is None or (word[0] not in _WORDS and word[0] not in _NO_NUMBERS):
        raise NoCall(place)
    return _WORDS.get(word[0], word[0]), word.end()


def _container(text: str, place: int, depth: int) -> tuple[object, int]:
    """A list, a tuple (as a list) or a dictionary; a comma may follow the last item."""
    closing = _CLOSING[text[place]]
    items: list[object] = []
    table: JsonObject = {}
    place = after_space(text, place + 1)
    while not text.startswith(closing, place):
        if closing == "}":
            key, place = _key(text, place, depth)
            table[key], place = read_literal(text, place, depth)
        else:
            item, place = read_literal(text, place, depth)
            items.append(item)
        place = after_space(text, place)
        if text.startswith(",", place):
            place = after_space(text, place + 1)
        elif not text.startswith(closing, place):
            raise NoCall(place)
    return (table if closing == "}" else items), place + 1


def _key(text: str, place: int, depth: int) -> tuple[str, int]:
    """A key, possibly without quotes, and the position after its colon."""
    word = _WORD.match(text, place)
    key, end = (word[0], word.end()) if word and word[0] not in _WORDS else read_literal(text, place, depth)
    end = after_space(text, end)
    if not text.startswith(":", end) or isinstance(key, list | dict):
        raise NoCall(end)
    return key if isinstance(key, str) else json.dumps(key), end + 1
