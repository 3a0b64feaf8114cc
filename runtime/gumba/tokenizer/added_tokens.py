r"""Added tokens, matched in a text before all other steps, by the rules of Hugging Face's tokenizers library.

Tokens that are not ``normalized`` are matched in the text itself, then the others (normalized themselves) in the normalized
text between them. The leftmost match wins, and the longest at a position. ``single_word``: matches no part of a word;
``lstrip``, ``rstrip``: strips whitespace before or after the token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gumba.tokenizer.normalizers import WHITE_SPACE
from gumba.tokenizer.patterns import WORD

#: Bits of ``gumba.tokenizer.added_token_flags``; SPACES: the token has U+2581 where the vocabulary's text has spaces.
LSTRIP, RSTRIP, SINGLE_WORD, NORMALIZED, SPACES = 1, 2, 4, 8, 16
ALL_FLAGS = LSTRIP | RSTRIP | SINGLE_WORD | NORMALIZED | SPACES

LONGEST_TOKEN = 1000  # characters of an added token; every position of a text may be compared with this many
_DEEPEST = 50  # nested groups in one pattern


class AddedToken(NamedTuple):
    """One added token; ``flags``: the bits above; ``special``: matched only where control tokens are parsed."""

    id: int
    text: str
    flags: int
    special: bool


class Matcher:
    """Finds tokens in a text: the leftmost match, and the longest at that position."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        import regex

        self._tokens: dict[str, AddedToken] = {}
        for token in tokens:
            self._tokens.setdefault(token.text, token)  # the first of equal texts wins
        self._find = re.compile(_alternatives(list(self._tokens))).finditer if self._tokens else None
        self._word: Any = regex.compile(WORD, regex.VERSION1).match

    def cut(self, text: str, parse_special: bool) -> list[str | int]:
        """Split a text into token ids and the texts between them, without empty texts."""
        if self._find is None:
            return [text] if text else []
        cut: list[str | int] = []
        begin = 0
        for match in self._find(text):
            token = self._tokens[match[0]]
            first, last = match.span()
            if token.special and not parse_special:
                continue
            if token.flags & SINGLE_WORD and (
                self._is_word(text[first - 1 : first]) or self._is_word(text[last : last + 1])
            ):
                continue
            if token.flags & LSTRIP:
                first = begin + len(text[begin:first].rstrip(WHITE_SPACE))
            if token.flags & RSTRIP:
                while last < len(text) and text[last] in WHITE_SPACE:
                    last += 1
            if begin < first:
                cut.append(text[begin:first])
            cut.append(token.id)
            begin = last
        if begin < len(text):
            cut.append(text[begin:])
        return cut

    def _is_word(self, character: str) -> bool:
        return bool(character) and self._word(character) is not None


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern that matches the longest of ``texts``, with shared prefixes merged, as thousands share them."""
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return (
        _of_trie(trie)
        if _branchings(trie) <= _DEEPEST
        else "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    )


def _branchings(trie: dict[str, Any]) -> int:
    """The maximum number of nested nodes with alternatives."""
    deepest, level = 0, [(trie, 0)]
    while level:
        deepest = max(deepest, *(depth for _, depth in level))
        level = [(node[key], depth + (len(node) > 1)) for node, depth in level for key in node]
    return deepest


def _of_trie(node: dict[str, Any]) -> str:
    written = []
    for character, below in node.items():
        if character:
            run = [character]
            while len(below) == 1 and "" not in below:
                ((character, below),) = below.items()
                run.append(character)
            written.append(re.escape("".join(run)) + _of_trie(below))
    if not written:
        return ""
    whole = written[0] if len(written) == 1 and "" not in node else f"(?:{'|'.join(written)})"
    return whole + ("?" if "" in node else "")
