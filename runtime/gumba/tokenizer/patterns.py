r"""Regular expressions of tokenizer.json files, run with a time limit.

tokenizer.json is written for Oniguruma in Ruby's spelling, the patterns run here on the ``regex`` library: ``$`` and ``^``
are ends of lines, ``(?m:`` lets the dot match newlines, ``\h`` is a hexadecimal digit, ``\w`` and ``\b`` leave joiners out
and, outside of classes, count superscript digits and fractions of Latin-1 in; ``{1,3}+`` is a repetition, and POSIX's names
are Unicode's. A pattern comes from an untrusted file and may take exponential time: every search has a deadline
(``PATIENCE`` seconds and a little for each character of the text).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from gumba.errors import TokenizerError
from gumba.tokenizer.unicode_sets import NOT_OF_WORDS, inside_class

LONGEST_PATTERN = 20_000  # characters
PATIENCE, PER_CHARACTER = 2.0, 2e-5  # seconds allowed per text, and per character

#: A word character: letters, marks, digits, connectors, joiners. Brackets nest in character classes.
WORD = rf"[\p{{Alphabetic}}\p{{M}}\p{{Nd}}\p{{Pc}}\u200c\u200d&&[^{inside_class(NOT_OF_WORDS)}]]"
_WORD_IN_CLASS = r"[\w--[\u200c\u200d]]"
_WORD = r"[[\w\xb2\xb3\xb9\xbc-\xbe]--[\u200c\u200d]]"
_NO_WORD = f"[^{_WORD}]"
#: Escapes outside of character classes that have the same meaning in both libraries, or an equivalent here.
_SAME = frozenset("dDsSnrtfvapPAXuxRt0123456789")
_OTHER = {
    "h": "[0-9A-Fa-f]",
    "H": "[^0-9A-Fa-f]",
    "z": r"\Z",
    "Z": r"(?=\n?\Z)",
    "e": r"\x1b",
    "w": _WORD,
    "W": _NO_WORD,
}
_OTHER["b"] = f"(?:(?<={_WORD})(?!{_WORD})|(?<!{_WORD})(?={_WORD}))"
_OTHER["B"] = f"(?:(?<={_WORD})(?={_WORD})|(?<!{_WORD})(?!{_WORD}))"
#: The same inside character classes, and POSIX names.
_IN_CLASS = {"h": "0-9A-Fa-f", "w": _WORD_IN_CLASS, "W": f"[^{_WORD_IN_CLASS}]", "b": r"\x08"}
_POSIX = {
    "[:digit:]": r"\p{Nd}", "[:alnum:]": r"\p{Alphabetic}\p{Nd}", "[:punct:]": r"\p{P}\p{S}", "[:word:]": _WORD_IN_CLASS,
}  # fmt: skip
#: Escapes of more than one letter.
_LONGER = re.compile(r"\\(?:[pP]\{\^?\w+\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{1,2})")
#: An interval and what may follow it.
_INTERVAL = re.compile(r"(\{(?:\d+(?:,\d*)?|,\d+)\})([+?]?)")


def deadline_of(text: str) -> float:
    """The time (``time.monotonic``) by which the patterns of a text must finish."""
    return time.monotonic() + PATIENCE + PER_CHARACTER * len(text)


class Pattern:
    """A compiled pattern. Raises TokenizerError if it is too long, invalid, or uses unsupported constructs."""

    def __init__(self, source: str, *, literal: bool = False) -> None:
        import regex

        if len(source) > LONGEST_PATTERN:
            raise TokenizerError(f"a pattern of {len(source)} characters; the limit is {LONGEST_PATTERN}")
        self._source = source
        try:
            translated = regex.escape(source, literal_spaces=True) if literal else _translated(source)
            self._regex: Any = regex.compile(translated, regex.VERSION1 | regex.MULTILINE)
        except (regex.error, RecursionError, OverflowError, ValueError) as error:
            raise TokenizerError(f"the pattern {source!r:.200} is not supported: {error!s:.200}") from None

    def spans(self, text: str, deadline: float) -> Iterator[tuple[int, int]]:
        """The spans of all matches, without empty matches right after a match, as in Oniguruma.

        Raises TokenizerError when the deadline passes.
        """
        last = -1
        try:
            for match in self._regex.finditer(text, timeout=max(deadline - time.monotonic(), 1e-3)):
                first, end = match.span()
                if first == end == last:
                    continue
                last = end
                yield first, end
        except TimeoutError:
            raise TokenizerError(f"the pattern {self._source!r:.200} takes too long on this text") from None


def _translated(source: str) -> str:
    """Translate a pattern to the syntax of the ``regex`` library. Raises ValueError for unsupported constructs."""
    out: list[str] = []
    depth, i = 0, 0  # depth of nested character classes
    atom, groups = 0, [0]  # where in ``out`` the last atom, and each open group, begins
    while i < len(source):
        character = source[i]
        interval = _INTERVAL.match(source, i) if depth == 0 else None
        if interval is not None:
            out.append(interval[1])
            if interval[2] == "+" or (interval[2] == "?" and "," not in interval[1]):
                out.insert(atom, "(?:")  # in Ruby this repeats the repetition; it is neither possessive nor lazy
                out.append(")")
            out.append(interval[2])
            i = interval.end()
            continue
        if depth == 0 and character not in "+*?)":
            atom = len(out)
        if character == "\\":
            translated, i = _escape(source, i, depth > 0)
            out.append(translated)
            continue
        if depth == 0 and source.startswith("(?", i):
            translated, i = _group(source, i)
            if not translated.endswith(")"):
                groups.append(atom)
            out.append(translated)
            continue
        if depth and source[i : i + 2] in ("--", "||", "~~"):
            if source[i : i + 2] == "--":
                raise ValueError("a range that begins or ends with '-'")
            out.append("\\" + character)
        elif character == "[":
            out.append("[")
            depth += 1
            if source.startswith("[:", i) and depth > 1 and (end := source.find(":]", i)) > 0:
                out[-1] = _posix(source[i : end + 2])
                depth, i = depth - 1, end + 1
        elif character == "]" and depth:
            out.append("]")
            depth -= 1
        else:
            out.append(character)
            if depth == 0 and character == "(":
                groups.append(atom)
            elif depth == 0 and character == ")" and len(groups) > 1:
                atom = groups.pop()
        i += 1
    if depth:
        raise ValueError("unterminated character class")
    return "".join(out)


def _escape(source: str, i: int, in_class: bool) -> tuple[str, int]:
    """The translation of an escape, and its end."""
    letter = source[i + 1 : i + 2]
    if not letter:
        raise ValueError("it ends with a backslash")
    if letter == "x" and source.startswith("{", i + 2):
        end = source.find("}", i)
        point = int(source[i + 3 : end], 16) if end > 0 else -1
        if not 0 <= point < 0x110000:
            raise ValueError(f"{source[i : i + 12]!r}")
        return (f"\\U{point:08x}", end + 1)
    if in_class and letter in _IN_CLASS:
        return (_IN_CLASS[letter], i + 2)
    if letter in _OTHER and not (in_class and letter in "zZB"):
        return (_OTHER[letter], i + 2)
    if letter in _SAME or not (letter.isascii() and letter.isalnum()):
        longer = _LONGER.match(source, i)
        end = i + 2 if longer is None else longer.end()
        return (source[i:end], end)
    raise ValueError(f"the escape \\{letter}")


def _posix(name: str) -> str:
    """The translation of a POSIX class inside a character class."""
    characters = _POSIX.get(name.replace("^", "", 1))
    if characters is None:
        return name
    return f"[^{characters}]" if "^" in name else characters


def _group(source: str, i: int) -> tuple[str, int]:
    """The translation of the start of a group with its options, and its end."""
    if source[i + 2 : i + 3] in (":", "=", "!", ">", "#") or source.startswith(("(?<=", "(?<!"), i):
        return source[i : i + 3], i + 3
    if source.startswith("(?<", i):
        return "(?P<", i + 3
    end = i + 2
    while source[end : end + 1] in ("m", "i", "x", "-"):
        end += 1
    options, after = source[i + 2 : end], source[end : end + 1]
    if not options or after not in (":", ")"):
        raise ValueError(f"the group {source[i : i + 8]!r}")
    return f"(?{options.replace('m', 's')}{after}", end + 1
