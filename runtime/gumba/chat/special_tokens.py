"""Prevents the texts of control tokens inside messages from being parsed as control tokens.

A mark, one of Unicode's noncharacters, is inserted between the first and the second character of every such text, and at the
end of every string that ends with a prefix of one. It stays there while the template runs; the tokenizer removes it after it
has matched control tokens (``Tokenizer.encode``, ``shield``).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gumba.errors import RequestError

#: Noncharacters, which are not for text interchange (The Unicode Standard, section 23.7).
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


def shielded(value: object, texts: tuple[str, ...], source: str) -> tuple[Any, str]:
    """``value`` with marks inserted into all strings of its lists, tuples and mappings, and the mark.

    ``texts``: the control tokens' texts; ``source``: the template's text, which must not contain the mark. Raises RequestError
    for a value that is nested too deeply or contains all of the noncharacters.
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


def _mapped(value: object, function: Callable[[str], str]) -> Any:
    """``value`` with ``function`` applied to every string in it; other values stay the same objects."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_mapped(key, function): _mapped(item, function) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        return [_mapped(item, function) for item in value]
    return value


@functools.lru_cache(maxsize=8)
def _prefixes(texts: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """Proper prefixes of texts, and the length of the longest; not of texts that begin with a letter, as names may end so."""
    prefixes = {text[:n] for text in texts if not text[0].isalnum() for n in range(1, len(text))}
    return frozenset(prefixes), max(map(len, prefixes), default=0)


def _marked(text: str, texts: tuple[str, ...], mark: str) -> str:
    places = set()
    for control in texts:
        if len(control) < 2:
            continue
        start = text.find(control)
        while start >= 0:
            places.add(start + 1)
            start = text.find(control, start + 1)
    # A template may strip the text before it appends another.
    end = len(text.rstrip())
    prefixes, longest = _prefixes(texts)
    if any(text[end - n : end] in prefixes for n in range(1, min(longest, end) + 1)):
        places.add(end)
    if not places:
        return text
    cuts = [0, *sorted(places), len(text)]
    return mark.join(text[start:stop] for start, stop in itertools.pairwise(cuts))
