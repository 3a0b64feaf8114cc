"""Makes runtime/gumba/tokenizer/unicode_sets.py: sets of characters as the tokenizers library has them.

    python tools/make_unicode_sets.py

Runs where tokenizers and regex are, on Python 3.11 or later (0.23.3 and 3.11 made the file).
The library carries tables of an older Unicode than Python's, which also
differs from one Python to the next: every code point is put through the library's own steps, and what it does is written
down as ranges.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import regex
import tokenizers
from tokenizers import normalizers, pre_tokenizers

TARGET = Path(__file__).parent.parent / "runtime" / "gumba" / "tokenizer" / "unicode_sets.py"
HEAD = '''"""Sets of characters as the tokenizers library has them, which are those of an older Unicode than Python's.

Written by tools/make_unicode_sets.py from tokenizers {version}. Each is a string of ranges in hexadecimal.
"""

from __future__ import annotations

import functools


@functools.cache
def characters(ranges: str) -> frozenset[int]:
    """The code points of a set below."""
    bounds = [[int(end, 16) for end in pair.split("-")] for pair in ranges.split()]
    return frozenset(point for pair in bounds for point in range(pair[0], pair[-1] + 1))


def inside_class(ranges: str) -> str:
    """A set below as the inside of a character class of a pattern."""
    return "".join("-".join(chr(int(end, 16)) for end in pair.split("-")) for pair in ranges.split())


#: What BertNormalizer's clean_text leaves out.
CLEANED = """
{cleaned}
"""
#: Nonspacing marks, which BertNormalizer's strip_accents leaves out.
NONSPACING = """
{nonspacing}
"""
#: Marks, which StripAccents leaves out.
MARKS = """
{marks}
"""
#: Characters that the library's older tables leave alone in all normal forms, unlike Python's.
NOT_NORMALIZED = """
{not_normalized}
"""
#: Capitals that Python 3.10 does not know yet, and their small letters: pairs of code points.
CAPITALS = """
{capitals}
"""
#: Characters that the regex library takes for parts of words, as it knows a newer Unicode.
NOT_OF_WORDS = """
{not_of_words}
"""
#: Punctuation of BertPreTokenizer and Punctuation, ASCII's symbols among it.
PUNCTUATION = """
{punctuation}
"""
'''


#: Capitals of Unicode 14, which this Python may know and Python 3.10 does not.
NEW_IN_14 = frozenset(map(chr, [0x2C2F, 0xA7C0, 0xA7D0, 0xA7D6, 0xA7D8, *range(0x10570, 0x10596)]))


def words(found: Iterable[str]) -> str:
    return "\n".join(textwrap.wrap(" ".join(found), 120, break_on_hyphens=False))


def ranges(taken: Callable[[str], bool]) -> str:
    found: list[list[int]] = []
    for point in range(0x110000):
        if 0xD800 <= point < 0xE000 or not taken(chr(point)):
            continue
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return words(f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in found)


def main() -> None:
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    clean = normalizers.BertNormalizer(**off | {"clean_text": True})
    accents = normalizers.BertNormalizer(**off | {"strip_accents": True})
    forms = {name: getattr(normalizers, name)() for name in ("NFC", "NFD", "NFKC", "NFKD")}
    lower = normalizers.Lowercase().normalize_str
    characters = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    capitals = [(c, lower(c)) for c in characters if lower(c) != (c if c in NEW_IN_14 else c.lower())]
    word = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]").match
    parted = pre_tokenizers.Whitespace()
    punctuation = pre_tokenizers.Punctuation()
    text = HEAD.format(
        version=tokenizers.__version__,
        cleaned=ranges(lambda c: not clean.normalize_str(c)),
        nonspacing=ranges(lambda c: accents.normalize_str("a" + c) == "a"),
        marks=ranges(lambda c: not normalizers.StripAccents().normalize_str(c)),
        not_normalized=ranges(
            lambda c: any(unicodedata.normalize(n, c) != f.normalize_str(c) for n, f in forms.items())
        ),
        capitals=words(f"{ord(c):x}-{ord(small):x}" for c, small in capitals),
        not_of_words=ranges(lambda c: bool(word(c)) and len(parted.pre_tokenize_str(f"a{c}")) == 2),
        punctuation=ranges(lambda c: len(punctuation.pre_tokenize_str(f"a{c}a")) == 3),
    )
    TARGET.write_text(text, encoding="utf-8")
    print(len(text), "characters")


if __name__ == "__main__":
    main()
