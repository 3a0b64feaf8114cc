"""The normalizer steps of a tokenizer.json, applied before pre-tokenization.

Each step does what the step of the same name in Hugging Face's tokenizers library does, whose tables of Unicode are older
than Python's (``unicode_sets``); normal forms and small letters are Python's.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gumba.errors import TokenizerError
from gumba.tokenizer.patterns import Pattern
from gumba.tokenizer.unicode_sets import CAPITALS, CLEANED, MARKS, NONSPACING, NOT_NORMALIZED, characters

#: (text, deadline of its patterns, see ``patterns``) -> the normalized text.
Normalizer = Callable[[str, float], str]

#: Unicode's White_Space.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_NMT_REMOVED = (*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F)
_NMT_SPACES = (9, 0xA, 0xC, 0xD, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD)
_NMT = dict.fromkeys(_NMT_REMOVED, "") | dict.fromkeys(_NMT_SPACES, " ")
_LONGEST_CONTENT = 1024  # characters
_LONG_RUN = 64  # runs of this many marks are sorted before normalization
_GROWTH, _SMALLEST_ROOM = 32, 1 << 16  # limits: growth as a factor, and in characters


def lowercased(text: str) -> str:
    """Lower case, character by character: no final sigma."""
    return text.lower() if text.isascii() else "".join(map(str.lower, text)).translate(_capitals())


@functools.cache
def _capitals() -> dict[int, int]:
    return dict(tuple(int(point, 16) for point in pair.split("-")) for pair in CAPITALS.split())  # type: ignore[misc]


class _Table(dict[int, str]):
    """A table for ``str.translate`` that computes the replacement of a character at its first use."""

    def __init__(self, replacement: Callable[[int], str]) -> None:
        self._made = replacement

    def __missing__(self, point: int) -> str:
        text = self[point] = self._made(point)
        return text


def cleaned(point: int) -> str:
    """A character after BertNormalizer's clean_text."""
    if point in (9, 10, 13):
        return " "
    if point in characters(CLEANED):
        return ""
    return " " if chr(point) in WHITE_SPACE else chr(point)


def is_ideograph(point: int) -> bool:
    """Whether BertNormalizer surrounds a character with spaces."""
    return any(first <= point <= last for first, last in IDEOGRAPHS)


def normalizer(step: Any, charsmap: Callable[[str], str] | None = None) -> Normalizer:
    """The function of a normalizer step of a tokenizer.json.

    Args:
        step: the step, as JSON has it. charsmap: what a Precompiled step does (its table stands apart in a GGUF file).

    Raises:
        TokenizerError: an unknown step, or one with a wrong option.
    """
    kind = step_kind(step)
    if kind == "Sequence":
        inner = step.get("normalizers")
        if not isinstance(inner, list):
            raise TokenizerError("a Sequence without normalizers")
        steps = [normalizer(step, charsmap) for step in inner]
        return functools.partial(_in_turn, steps)
    if kind == "Precompiled":
        if charsmap is None:
            raise TokenizerError("a Precompiled normalizer without its table")
        return _plain(charsmap)
    if kind not in _STEPS:
        raise TokenizerError(f"normalizer {step!s:.200} is not supported")
    function: Normalizer = _STEPS[kind](step)
    return function


def step_kind(step: object) -> str:
    """The type of a step; "" if it is not a step."""
    kind = step.get("type") if isinstance(step, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _in_turn(steps: Sequence[Normalizer], text: str, deadline: float) -> str:
    room = _SMALLEST_ROOM + _GROWTH * len(text)
    for step in steps:
        text = step(text, deadline)
        if len(text) > room:
            raise TokenizerError(f"the normalizer makes a text more than {_GROWTH} times as long")
    return text


def flag(step: Mapping[str, object], name: str, default: bool) -> bool:
    """A boolean option of a step. Raises TokenizerError for another type."""
    value = step.get(name, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"{step.get('type')}: {name} is {value!r:.80}, expected true or false")
    return value


def string(step: Mapping[str, object], name: str, longest: int = _LONGEST_CONTENT) -> str:
    """A string option of a step. Raises TokenizerError for another type, or a string that is too long."""
    value = step.get(name)
    if not isinstance(value, str) or len(value) > longest:
        raise TokenizerError(
            f"{step.get('type')}: {name} is {value!r:.80}, expected a text of at most {longest} characters"
        )
    return value


def pattern(step: Mapping[str, object]) -> Pattern:
    """The pattern of a step, {"String": text} or {"Regex": expression}. Raises TokenizerError for anything else."""
    spec = step.get("pattern")
    for name, literal in (("String", True), ("Regex", False)):
        if isinstance(spec, Mapping) and list(spec) == [name] and isinstance(spec[name], str):
            return Pattern(spec[name], literal=literal)
    raise TokenizerError(f"{step.get('type')}: pattern {spec!s:.200} is neither a String nor a Regex")


def _plain(function: Callable[[str], str]) -> Normalizer:
    return lambda text, deadline: function(text)


def normal_form(kind: Any, text: str) -> str:
    """``unicodedata.normalize`` in linear time.

    Python's sorts the marks after a letter by insertion: 20,000 of them take a second, twice as many four. Long runs of
    marks are sorted here beforehand, which changes no normal form.
    """
    return unicodedata.normalize(kind, text if text.isascii() else _long_runs().sub(_sorted_marks, text))


@functools.cache
def _long_runs() -> Any:
    import regex

    return regex.compile(rf"\p{{M}}{{{_LONG_RUN},}}+")


def _sorted_marks(run: Any) -> str:
    """The marks of a run in order, sorted by combining class between marks of class 0."""
    ordered: list[str] = []
    marks: list[str] = []
    for mark in itertools.chain.from_iterable(unicodedata.normalize("NFD", character) for character in run[0]):
        if unicodedata.combining(mark):
            marks.append(mark)
        else:
            ordered += [*sorted(marks, key=unicodedata.combining), mark]
            marks = []
    return "".join([*ordered, *sorted(marks, key=unicodedata.combining)])


def _form(step: Mapping[str, object]) -> Normalizer:
    import regex

    kind: Any = step["type"]
    points = characters(NOT_NORMALIZED)
    alone: Any = regex.compile(f"([{''.join(map(chr, sorted(points)))}])").split

    def normalized(text: str) -> str:
        if text.isascii() or unicodedata.is_normalized(kind, text):
            return text
        return "".join(part if i % 2 else normal_form(kind, part) for i, part in enumerate(alone(text)))

    return _plain(normalized)


def _strip(step: Mapping[str, object]) -> Normalizer:
    left, right = flag(step, "strip_left", True), flag(step, "strip_right", True)

    def stripped(text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if left else text
        return text.rstrip(WHITE_SPACE) if right else text

    return _plain(stripped)


def _without_marks(step: Mapping[str, object]) -> Normalizer:
    table = dict.fromkeys(characters(MARKS), "")
    return _plain(lambda text: text if text.isascii() else text.translate(table))


def _replace(step: Mapping[str, object]) -> Normalizer:
    match_pattern, content = pattern(step), string(step, "content")

    def replaced(text: str, deadline: float) -> str:
        parts, begin, room = [], 0, _SMALLEST_ROOM + _GROWTH * len(text)
        for first, last in match_pattern.spans(text, deadline):
            parts += [text[begin:first], content]
            begin, room = last, room - len(content)
            if room < 0:
                raise TokenizerError(f"Replace: the text grows to more than {_GROWTH} times its length")
        return "".join([*parts, text[begin:]]) if parts else text

    return replaced


def _prepend(step: Mapping[str, object]) -> Normalizer:
    before = string(step, "prepend")
    return _plain(lambda text: before + text if text else text)


def _bert(step: Mapping[str, object]) -> Normalizer:
    lowercase = flag(step, "lowercase", True)
    strip = lowercase if step.get("strip_accents") is None else flag(step, "strip_accents", True)
    clean, ideographs = flag(step, "clean_text", True), flag(step, "handle_chinese_chars", True)
    accents = dict.fromkeys(characters(NONSPACING), "")

    def replacement(point: int) -> str:
        text = cleaned(point) if clean else chr(point)
        return f" {text} " if ideographs and is_ideograph(point) else text

    table = _Table(replacement)

    def normalized(text: str) -> str:
        text = text.translate(table)
        if strip and not text.isascii():
            text = normal_form("NFD", text).translate(accents)
        return lowercased(text) if lowercase else text

    return _plain(normalized)


def byte_text(text: str) -> str:
    """The bytes of a text as printable characters, in GPT-2's mapping (see ``byte_bpe``)."""
    from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER

    return text.encode().decode("latin-1").translate(BYTE_TO_CHARACTER)


_STEPS: Mapping[str, Callable[[Mapping[str, object]], Normalizer]] = {
    "Lowercase": lambda step: _plain(lowercased),
    "NFC": _form,
    "NFD": _form,
    "NFKC": _form,
    "NFKD": _form,
    "Nmt": lambda step: _plain(lambda text: text.translate(_NMT)),
    "Strip": _strip,
    "StripAccents": _without_marks,
    "Replace": _replace,
    "Prepend": _prepend,
    "BertNormalizer": _bert,
    "ByteLevel": lambda step: _plain(byte_text),
}
