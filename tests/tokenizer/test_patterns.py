"""Patterns of tokenizer.json: what Split(Regex(...), "isolated") of the tokenizers library (0.23.3) cuts."""

from __future__ import annotations

import pytest

from gumba.tokenizer.patterns import deadline_of
from gumba.tokenizer.words import Pieces, cutter

TEXT = "x² a\u200db ๑2 ⓐ$ fox½ 1234567 ooo"
PIECES = [
    (r"\w+", ["x²", " ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox½", " ", "1234567", " ", "ooo"]),
    (r"\W+", ["x²", " ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox½", " ", "1234567", " ", "ooo"]),
    (r"[\w]+", ["x", "² ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox", "½ ", "1234567", " ", "ooo"]),
    (r"[^\W\d]+", ["x", "² ", "a", "\u200d", "b", " ๑2 ", "ⓐ", "$ ", "fox", "½ 1234567 ", "ooo"]),
    (r"\b", ["x²", " ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox½", " ", "1234567", " ", "ooo"]),
    (r"\B", ["x", "² a\u200db ๑", "2 ⓐ$", " f", "o", "x", "½ 1", "2", "3", "4", "5", "6", "7 o", "o", "o"]),
    (r"[[:digit:]]+", ["x² a\u200db ", "๑2", " ⓐ$ fox½ ", "1234567", " ooo"]),
    (r"[[:^digit:]]+", ["x² a\u200db ", "๑2", " ⓐ$ fox½ ", "1234567", " ooo"]),
    (r"[[:alnum:]]+", ["x", "² ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox", "½ ", "1234567", " ", "ooo"]),
    (r"[[:punct:]]+", ["x² a\u200db ๑2 ", "ⓐ$", " fox½ 1234567 ooo"]),
    (r"[[:^word:]]+", ["x", "² ", "a", "\u200d", "b", " ", "๑2", " ", "ⓐ", "$ ", "fox", "½ ", "1234567", " ", "ooo"]),
    (r"\p{N}{1,3}+", ["x", "²", " a\u200db ", "๑2", " ⓐ$ fox", "½", " ", "1234567", " ooo"]),
    (r"o{2}?", [*TEXT[:-3], "oo", "o"]),
    (r"(?:[a-z]|\d){2}+", ["x² a\u200db ", "๑2", " ⓐ$ ", "fo", "x½ ", "123456", "7 ", "oo", "o"]),
    (r"o{1,2}?", ["x² a\u200db ๑2 ⓐ$ f", "o", "x½ 1234567 ", "o", "o", "o"]),
    (r"[\b]", ["x² a\u200db ๑2 ⓐ$ fox½ 1234567 ooo"]),
    (r"\x31{1,2}+", ["x² a\u200db ๑2 ⓐ$ fox½ ", "1", "234567 ooo"]),
]


@pytest.mark.parametrize(("pattern", "pieces"), PIECES)
def test_pieces_of_the_tokenizers_library(pattern: str, pieces: list[str]) -> None:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    assert cutter(step)(Pieces([TEXT], True), deadline_of(TEXT)).texts == pieces
