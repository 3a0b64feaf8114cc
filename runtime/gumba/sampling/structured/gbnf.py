"""Parser of GBNF, llama.cpp's grammar notation.

``name ::= alternatives``, one rule after another, ``root`` is the text; ``#`` starts a comment. An alternative is a sequence
of ``"text"``, ``[a-z]``, ``[^a-z]``, ``.`` (any character), names and groups ``( )``, each with ``*``, ``+``, ``?``, ``{m}``,
``{m,}`` or ``{m,n}`` after it. Escapes: ``\\n \\r \\t \\\\ \\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from gumba.errors import RequestError
from gumba.validation import show

#: Longest grammar (characters), deepest groups, most rules, largest count in ``{m,n}``.
MAX_TEXT, MAX_DEPTH, MAX_RULES, MAX_REPEAT = 100_000, 50, 400, 2000
#: Most characters, names and groups in a grammar.
MAX_NODES = 20_000

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}
_HEX = {"x": 2, "u": 4, "U": 8}
_LAST = 0x10FFFF
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


@dataclass(frozen=True)
class Chars:
    """One character of these ranges (first, last), ascending and disjoint."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Name:
    """A reference to another rule; ``place`` is its position."""

    name: str
    place: int


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """``low`` to ``high`` repetitions; None is unlimited."""

    item: Node
    low: int
    high: int | None


Node = Chars | Name | Sequence | Choice | Repeat


def parse_gbnf(text: str) -> dict[str, Node]:
    """The rules of a grammar. Raises RequestError with line and column."""
    if len(text) > MAX_TEXT:
        raise RequestError(f"grammar: {len(text)} characters, expected at most {MAX_TEXT}")
    return _Parser(text).rules()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.nodes = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self.space(True)
        while self.at < len(self.text):
            place = self.at
            name = self.word()
            self.space(False)
            if not self.text.startswith("::=", self.at):
                self.fail("'::=' after the rule's name")
            self.at += 3
            self.space(True)
            if name in rules:
                self.at = place
                self.fail(f"each rule once, but {name!r} has one already")
            rules[name] = self.choice(False)
            if len(rules) > MAX_RULES:
                raise RequestError(f"grammar: more than {MAX_RULES} rules")
            if self.peek() and self.peek() not in "\r\n":
                self.fail("a new line before the next rule")
            self.space(True)
        if "root" not in rules:
            raise RequestError("grammar: no rule 'root', expected 'root ::= ...'")
        for node in rules.values():
            for inner in names_in(node):
                if inner.name not in rules:
                    self.at = inner.place
                    self.fail(f"the name of a rule, but no rule is called {show(inner.name)}")
        return rules

    def fail(self, expected: str) -> NoReturn:
        before = self.text[: self.at]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        found = repr(self.text[self.at : self.at + 12]) if self.at < len(self.text) else "the end"
        raise RequestError(f"grammar: line {line}, column {column}: expected {expected}, found {found}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def space(self, lines: bool) -> None:
        """Skip blanks and comments, and with ``lines`` also line ends."""
        blanks = " \t\r\n" if lines else " \t"
        while self.peek() and (self.peek() in blanks or self.peek() == "#"):
            if self.peek() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                self.at += 1

    def word(self) -> str:
        start = self.at
        while self.peek() in _WORD:
            self.at += 1
        if self.at == start:
            self.fail("the name of a rule")
        return self.text[start : self.at]

    def count(self) -> int:
        start = self.at
        while self.peek() and self.peek() in "0123456789":
            self.at += 1
        digits = self.text[start : self.at]
        if not digits or len(digits) > 9 or int(digits) > MAX_REPEAT:
            self.at = start
            self.fail(f"a count up to {MAX_REPEAT}")
        return int(digits)

    def add(self, count: int = 1) -> None:
        self.nodes += count
        if self.nodes > MAX_NODES:
            raise RequestError(f"grammar: more than {MAX_NODES} characters, names and groups")

    def choice(self, nested: bool) -> Node:
        items = [self.sequence(nested)]
        while True:
            before = self.at
            self.space(True)
            if self.peek() != "|":
                self.at = self.at if nested else before
                break
            self.at += 1
            self.space(True)
            items.append(self.sequence(nested))
        self.add(len(items))
        return items[0] if len(items) == 1 else Choice(tuple(items))

    def sequence(self, nested: bool) -> Node:
        items: list[Node] = []
        while self.peek() and self.peek() not in "|)\r\n":
            items += self.repeated(self.item())
            self.space(nested)
            if self._next_rule():
                break
        self.add(len(items))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _next_rule(self) -> bool:
        """Whether a new rule begins here."""
        end = self.at
        while self.text[end : end + 1] in _WORD:
            end += 1
        return end > self.at and self.text[end : end + 80].lstrip(" \t").startswith("::=")

    def item(self) -> list[Node]:
        """One item, whose parts are a string's characters."""
        first = self.peek()
        if first == '"':
            self.at += 1
            codes: list[Node] = []
            while self.peek() != '"':
                code = self.character('"')
                codes.append(Chars(((code, code),)))
            self.at += 1
            self.add(len(codes))
            return codes
        if first == "[":
            return [self.characters()]
        if first == ".":
            self.at += 1
            return [Chars(without_surrogates([(0, _LAST)]))]
        if first == "(":
            return [self.group()]
        if first in _WORD:
            place = self.at
            return [Name(self.word(), place)]
        if first in ("<", "!"):
            self.fail("text: tokens by name or number are not supported")
        self.fail("text in quotes, [characters], a group or a rule's name")

    def group(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"groups nested at most {MAX_DEPTH} deep")
        self.at += 1
        self.space(True)
        node = self.choice(True)
        self.space(True)
        if self.peek() != ")":
            self.fail("')'")
        self.at += 1
        self.depth -= 1
        return node

    def repeated(self, items: list[Node]) -> list[Node]:
        signs = 0
        while self.peek() and self.peek() in "*+?{":
            item = items[0] if len(items) == 1 else Sequence(tuple(items))
            sign = self.peek()
            self.at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, 0))
            if sign == "{":
                low, high = self.counts()
            signs += 1
            if self.depth + signs > MAX_DEPTH:
                self.fail(f"signs of repetition and groups nested at most {MAX_DEPTH} deep")
            items = [Repeat(item, low, high)]
        return items

    def counts(self) -> tuple[int, int | None]:
        start = self.at
        self.space(True)
        low = self.count()
        high: int | None = low
        self.space(True)
        if self.peek() == ",":
            self.at += 1
            self.space(True)
            high = None if self.peek() == "}" else self.count()
            self.space(True)
        if self.peek() != "}":
            self.fail("'}'")
        self.at += 1
        if high is not None and high < low:
            self.at = start
            self.fail("counts {m,n} with m up to n")
        return low, high

    def character(self, end: str) -> int:
        character = self.peek()
        if not character:
            self.fail(f"{end} at the end")
        if character != "\\":
            self.at += 1
            return ord(character)
        sign = self.text[self.at + 1 : self.at + 2]
        if sign in _ESCAPES and sign:
            self.at += 2
            return ord(_ESCAPES[sign])
        digits = self.text[self.at + 2 : self.at + 2 + _HEX.get(sign, 0)]
        if not digits or len(digits) < _HEX[sign] or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            self.fail('an escape: \\n \\r \\t \\\\ \\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH')
        code = int(digits, 16)
        if code > _LAST or 0xD800 <= code < 0xE000:
            self.fail("an escape that is a Unicode character")
        self.at += 2 + len(digits)
        return code

    def characters(self) -> Chars:
        start = self.at
        self.at += 1
        inverse = self.peek() == "^"
        self.at += inverse
        ranges: list[tuple[int, int]] = []
        while self.peek() != "]":
            first = last = self.character("]")
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.character("]")
            if last < first:
                self.at = start
                self.fail("ranges of characters that ascend")
            ranges.append((first, last))
        self.at += 1
        self.add(len(ranges))
        kept_ranges = without_surrogates(_inverse(ranges) if inverse else ranges)
        if not kept_ranges:
            self.at = start
            self.fail("characters: none is in this set")
        return Chars(kept_ranges)


def _inverse(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    gaps, after = [], 0
    for first, last in sorted(ranges):
        if first > after:
            gaps.append((after, first - 1))
        after = max(after, last + 1)
    return gaps + ([(after, _LAST)] if after <= _LAST else [])


def without_surrogates(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges sorted and merged, without surrogates, which no text contains."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    parts = [part for a, b in merged for part in ((a, min(b, 0xD7FF)), (max(a, 0xE000), b)) if part[0] <= part[1]]
    return tuple(parts)


def names_in(node: Node) -> list[Name]:
    """The references in a rule, in their order."""
    names: list[Name] = []
    waiting: list[Node] = [node]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Name):
            names.append(inner)
        elif isinstance(inner, Repeat):
            waiting.append(inner.item)
        elif not isinstance(inner, Chars):
            waiting += reversed(inner.items)
    return names
