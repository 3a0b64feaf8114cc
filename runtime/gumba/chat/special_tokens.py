"""Keeps the texts of control tokens inside messages from becoming control tokens.

A mark, one of Unicode's noncharacters, goes between the first and the second character of every such text, and to the end
of every string that ends like the beginning of one. It stays there while the template runs; the tokenizer leaves it out
after it has looked for control tokens (``Tokenizer.encode``, ``shield``).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gumba.errors import RequestError

#: Noncharacters, which no text to be exchanged contains (The Unicode Standard, section 23.7).
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


def shielded(value: Any, texts: tuple[str, ...], source: str) -> tuple[Any, str]:
    """``value`` with marks in the strings of all its lists, tuples and mappings, and the mark used.

    ``texts``: those of the control tokens; ``source``: the template's, in which the mark must not occur either. Raises
    RequestError for what is nested too deeply, or holds every noncharacter there is.
    """
    strings: list[str] = [source]

    def collect(text: str) -> str:
        strings.append(text)
        return text

    try:
        _mapped(value, collect)
        mark = next((mark for mark in MARKS if not any(_shows(mark, text) for text in strings)), None)
        if mark is None:
            raise RequestError("messages: they contain all of the noncharacters from U+FDD0 to U+FDEF")
        return _mapped(value, lambda text: _marked(text, texts, mark)), mark
    except RecursionError:
        raise RequestError("messages: nested too deeply, or within themselves") from None


def _shows(mark: str, text: str) -> bool:
    return mark in text or f"\\u{ord(mark):04x}" in text


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    """``value`` with ``function`` applied to every string in it; what is no container stays the same object."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_mapped(key, function): _mapped(each, function) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(each, function) for each in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        return [_mapped(each, function) for each in value]
    return value


@functools.lru_cache(maxsize=8)
def _beginnings(texts: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """Proper beginnings of texts, and the length of the longest. Not of those that begin like a word: names end so."""
    found = {text[:n] for text in texts if not text[0].isalnum() for n in range(1, len(text))}
    return frozenset(found), max(map(len, found), default=0)


def _marked(text: str, texts: tuple[str, ...], mark: str) -> str:
    places = set()
    for each in texts:
        if len(each) < 2:
            continue
        start = text.find(each)
        while start >= 0:
            places.add(start + 1)
            start = text.find(each, start + 1)
    # A template may strip the text before it puts another next to it.
    end = len(text.rstrip())
    beginnings, longest = _beginnings(texts)
    if any(text[end - n : end] in beginnings for n in range(1, min(longest, end) + 1)):
        places.add(end)
    if not places:
        return text
    cuts = [0, *sorted(places), len(text)]
    return mark.join(text[start:stop] for start, stop in itertools.pairwise(cuts))
