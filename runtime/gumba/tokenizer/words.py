"""The pre-tokenizer steps of a tokenizer.json, which split a text into words.

Each step cuts the pieces that the one before it left, as the step of the same name in Hugging Face's tokenizers library
does. A file whose chain of steps has a name (``tokenizer.ggml.pre``) does not need this: see ``pretokenize``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from gumba.errors import TokenizerError
from gumba.tokenizer.normalizers import WHITE_SPACE, byte_text, flag, pattern, step_kind, string
from gumba.tokenizer.patterns import WORD, Pattern
from gumba.tokenizer.unicode_sets import PUNCTUATION, characters

#: ByteLevel's (GPT-2's) pattern, with possessive quantifiers where backtracking cannot succeed.
BYTE_LEVEL_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s++"
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SPACE = "\u2581"


class Pieces(NamedTuple):
    """The pieces of a text; ``at_start``: the first piece begins at the start of the text."""

    texts: list[str]
    at_start: bool


#: (pieces, deadline of their patterns, see ``patterns``) -> the pieces that they are split into.
Cutter = Callable[[Pieces, float], Pieces]
#: Consecutive ranges that cover a text, each with whether it is a match.
_Ranges = list[tuple[int, int, bool]]


def cutter(step: Any) -> Cutter:
    """The function of a pre-tokenizer step of a tokenizer.json.

    Raises:
        TokenizerError: an unknown step, or one with a wrong option.
    """
    kind = step_kind(step)
    if kind == "Sequence":
        inner = step.get("pretokenizers")
        if not isinstance(inner, list):
            raise TokenizerError("a Sequence without pretokenizers")
        cutters = [cutter(step) for step in inner]

        def in_turn(pieces: Pieces, deadline: float) -> Pieces:
            for cut_pieces in cutters:
                pieces = cut_pieces(pieces, deadline)
            return pieces

        return in_turn
    if kind not in _STEPS:
        raise TokenizerError(f"pre-tokenizer {step!s:.200} is not supported")
    return _STEPS[kind](step)


def _behavior(step: Mapping[str, object], default: str | None = None) -> str:
    behavior = step.get("behavior", default)
    if behavior not in _BEHAVIORS:
        raise TokenizerError(f"{step['type']}: behavior {behavior!r:.80}; known are {', '.join(_BEHAVIORS)}")
    return str(behavior)


def _cut(spans: Callable[[str, float], Iterable[tuple[int, int]]], behavior: str, invert: bool = False) -> Cutter:
    def cut(pieces: Pieces, deadline: float) -> Pieces:
        texts: list[str] = []
        at_start = pieces.at_start
        for i, text in enumerate(pieces.texts):
            kept = _kept(_ranges(spans(text, deadline), len(text), invert), behavior)
            filled = [(first, last) for first, last in kept if last > first]
            if i == 0:
                at_start = at_start and bool(filled) and filled[0][0] == 0
            texts += [text[first:last] for first, last in filled]
        return Pieces(texts, at_start)

    return cut


def _ranges(spans: Iterable[tuple[int, int]], length: int, invert: bool) -> _Ranges:
    ranges: _Ranges = []
    begin = 0
    for first, last in spans:
        if first > begin:
            ranges.append((begin, first, invert))
        ranges.append((first, last, not invert))
        begin = last
    if begin < length:
        ranges.append((begin, length, invert))
    return ranges


def _kept(ranges: _Ranges, behavior: str) -> Iterable[tuple[int, int]]:
    """Group ranges into pieces according to a behavior."""
    if behavior in ("Removed", "Isolated"):
        return [(first, last) for first, last, match in ranges if behavior == "Isolated" or not match]
    backwards = behavior == "MergedWithNext"
    kept: list[tuple[int, int]] = []
    before = False
    for first, last, match in reversed(ranges) if backwards else ranges:
        joins = match == before if behavior == "Contiguous" else match and not before
        if not joins or not kept:
            kept.append((first, last))
        elif backwards:
            kept[-1] = (first, kept[-1][1])
        else:
            kept[-1] = (kept[-1][0], last)
        before = match
    return reversed(kept) if backwards else kept


def _single(taken: Callable[[str], bool]) -> Callable[[str, float], Iterable[tuple[int, int]]]:
    """Matches of single characters, cached per character."""
    known: dict[str, bool] = {}

    def spans(text: str, deadline: float) -> Iterable[tuple[int, int]]:
        for character in set(text) - known.keys():
            known[character] = taken(character)
        return [(i, i + 1) for i, character in enumerate(text) if known[character]]

    return spans


def _is_punctuation(character: str) -> bool:
    return ord(character) in characters(PUNCTUATION)


def _bert(step: Mapping[str, object]) -> Cutter:
    spaces = _cut(_single(WHITE_SPACE.__contains__), "Removed")
    marks = _cut(_single(_is_punctuation), "Isolated")
    return lambda pieces, deadline: marks(spaces(pieces, deadline), deadline)


def _byte_level(step: Mapping[str, object]) -> Cutter:
    prefix = flag(step, "add_prefix_space", True)
    words = _cut(Pattern(BYTE_LEVEL_WORDS).spans, "Isolated") if flag(step, "use_regex", True) else None

    def cut(pieces: Pieces, deadline: float) -> Pieces:
        if prefix:
            pieces = Pieces([text if text.startswith(" ") else " " + text for text in pieces.texts], pieces.at_start)
        pieces = pieces if words is None else words(pieces, deadline)
        return Pieces([byte_text(text) for text in pieces.texts], pieces.at_start)

    return cut


def _digits(step: Mapping[str, object]) -> Cutter:
    alone = flag(step, "individual_digits", False)
    return _cut(_single(lambda c: unicodedata.category(c)[0] == "N"), "Isolated" if alone else "Contiguous")


def metaspace_options(step: Mapping[str, object]) -> tuple[str, str, bool]:
    """Replacement, prepend_scheme and split of a Metaspace step. Raises TokenizerError for an invalid one."""
    replacement = string(step, "replacement") if "replacement" in step else _SPACE
    scheme = step.get("prepend_scheme", "always")
    if scheme not in ("always", "first", "never") or len(replacement) != 1:
        raise TokenizerError(f"Metaspace: prepend_scheme {scheme!r:.80}, replacement {replacement!r:.80}")
    if step.get("add_prefix_space", True) is False:  # the older spelling
        scheme = "never"
    return replacement, str(scheme), flag(step, "split", True)


def _metaspace(step: Mapping[str, object]) -> Cutter:
    mark, scheme, split = metaspace_options(step)
    words = _cut(Pattern(mark, literal=True).spans, "MergedWithNext")

    def cut(pieces: Pieces, deadline: float) -> Pieces:
        texts = [text.replace(" ", mark) for text in pieces.texts]
        for i, text in enumerate(texts):
            if not text.startswith(mark) and (scheme == "always" or (scheme == "first" and i == 0 and pieces.at_start)):
                texts[i] = mark + text
        pieces = Pieces(texts, pieces.at_start)
        return words(pieces, deadline) if split else pieces

    return cut


def _words_or_not(step: Mapping[str, object]) -> Cutter:
    return _cut(Pattern(rf"{WORD}++|[^{WORD}\s]++").spans, "Removed", invert=True)


def _split(step: Mapping[str, object]) -> Cutter:
    return _cut(pattern(step).spans, _behavior(step), flag(step, "invert", False))


def _delimiter(step: Mapping[str, object]) -> Cutter:
    delimiter = string(step, "delimiter")
    if len(delimiter) != 1:
        raise TokenizerError(f"CharDelimiterSplit: delimiter {delimiter!r:.80}, expected one character")
    return _cut(_single(delimiter.__eq__), "Removed")


def _fixed_length(step: Mapping[str, object]) -> Cutter:
    length = step.get("length", 5)
    if type(length) is not int or length < 1:
        raise TokenizerError(f"FixedLength: length {length!r:.80}, expected a number above 0")
    return lambda pieces, deadline: Pieces(
        [text[i : i + length] for text in pieces.texts for i in range(0, len(text), length)], pieces.at_start
    )


_STEPS: Mapping[str, Callable[[Mapping[str, Any]], Cutter]] = {
    "BertPreTokenizer": _bert,
    "ByteLevel": _byte_level,
    "CharDelimiterSplit": _delimiter,
    "Digits": _digits,
    "FixedLength": _fixed_length,
    "Metaspace": _metaspace,
    "Punctuation": lambda step: _cut(_single(_is_punctuation), _behavior(step, "Isolated")),
    "Split": _split,
    "Whitespace": _words_or_not,
    "WhitespaceSplit": lambda step: _cut(_single(WHITE_SPACE.__contains__), "Removed"),
}
