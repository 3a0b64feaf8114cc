"""GBNF rules as a grammar of the library's Lark dialect, which accepts the same texts.

The library splits text into the longest possible terminals, GBNF knows no terminals. So a grammar without true recursion
becomes one terminal, which is exact and fast, and any other one has single characters as terminals, which is exact too: up
to 5 ms a mask inside free text with 151,851 tokens. (The library's own converter makes terminals of whatever it can, and
then ``[a-z]* "a"`` may match nothing.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from gumba.errors import RequestError
from gumba.sampling.structured.gbnf import Chars, Choice, Name, Node, Repeat, Sequence, names_in, parse_gbnf

#: Maximum number of characters of a grammar that is written as one terminal.
MAX_TERMINAL = 50_000

_EMPTY = Sequence(())


def gbnf_to_lark(text: str) -> str:
    """Translate a GBNF grammar. Raises RequestError, with line and column where there is a place."""
    rules = _reachable(parse_gbnf(text))
    _check_endings(rules)
    rules = {name: _without_own_recursion(name, node) for name, node in rules.items()}
    names = {name: f"r{index}" for index, name in enumerate(rules)}
    regular = _regular(rules)
    if len(regular) == len(rules) and _written_out(rules, regular) <= MAX_TERMINAL:
        names = {name: f"R{index}" for index, name in enumerate(rules)}
    lines = [f"start: {names['root']}"]
    lines += [f"{names[name]}: {_written(node, names)}" for name, node in rules.items()]
    return "\n".join(lines) + "\n"


def _reachable(rules: dict[str, Node]) -> dict[str, Node]:
    """The rules that ``root`` uses, ``root`` first."""
    reachable: dict[str, Node] = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in reachable:
            reachable[name] = rules[name]
            waiting += [inner.name for inner in names_in(rules[name])]
    return reachable


def _regular(rules: dict[str, Node]) -> Collection[str]:
    """The rules that are not recursive, in topological order: after the rules that they use."""
    return _settled(rules, lambda node, known: all(inner.name in known for inner in names_in(node)))


def _written_out(rules: dict[str, Node], order: Iterable[str]) -> int:
    """The length of ``root`` in characters with every name replaced by its rule; ``order`` is topological."""
    sizes: dict[str, int] = {}

    def size(node: Node) -> int:
        if isinstance(node, Name):
            return sizes[node.name]
        if isinstance(node, Repeat):
            return size(node.item)
        return 1 if isinstance(node, Chars) else sum(size(item) for item in node.items)

    for name in order:
        sizes[name] = size(rules[name])
    return sizes["root"]


def _check_endings(rules: dict[str, Node]) -> None:
    """Raise RequestError for a rule that no finite text matches."""
    ending = _settled(rules, _ends)
    endless = [name for name in rules if name not in ending]
    if endless:
        raise RequestError(
            f"grammar: rule {endless[0]!r} never ends: expected an alternative that does not need it again"
        )


def _settled(rules: dict[str, Node], holds: Callable[[Node, Collection[str]], bool]) -> Collection[str]:
    """The smallest set of rules closed under ``holds(rule, set)``; rules are revisited only when their input changes."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, node in rules.items():
        for inner in names_in(node):
            users[inner.name].append(name)
    known: dict[str, None] = {}
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in known and holds(rules[name], known):
            known[name] = None
            waiting += users[name]
    return known


def _ends(node: Node, known: Collection[str]) -> bool:
    """Whether any text can match, given the rules that have a matching text."""
    if isinstance(node, Name):
        return node.name in known
    if isinstance(node, Repeat):
        return node.low == 0 or _ends(node.item, known)
    if isinstance(node, Sequence):
        return all(_ends(item, known) for item in node.items)
    return isinstance(node, Chars) or any(_ends(item, known) for item in node.items)


def _without_own_recursion(name: str, node: Node) -> Node:
    """``a ::= x a | y`` as ``x* y``, ``a ::= a x | y`` as ``y x*``; other rules as they are."""
    for last in (True, False):
        parts = _split(name, node, last)
        if parts is not None and parts[0]:
            loop, out = Repeat(Choice(tuple(parts[0])), 0, None), Choice(tuple(parts[1]))
            return Sequence((loop, out) if last else (out, loop))
    return node


def _split(name: str, node: Node, last: bool) -> tuple[list[Node], list[Node]] | None:
    """(the parts beside the rule's own name at the end of alternatives, the alternatives without it).

    ``last``: the name ends the alternative, else it begins it. None where it stands elsewhere too.
    """
    if all(inner.name != name for inner in names_in(node)):
        return [], [node]
    if isinstance(node, Name):
        return [_EMPTY], []
    if isinstance(node, Repeat):
        inner = _split(name, node.item, last) if (node.low, node.high) == (0, 1) else None
        return inner and (inner[0], [*inner[1], _EMPTY])
    if isinstance(node, Choice):
        parts = [_split(name, item, last) for item in node.items]
        known = [part for part in parts if part is not None]
        return (
            ([n for p in known for n in p[0]], [n for p in known for n in p[1]]) if len(known) == len(parts) else None
        )
    if isinstance(node, Sequence):
        rest, end = (node.items[:-1], node.items[-1]) if last else (node.items[1:], node.items[0])
        if any(inner.name == name for item in rest for inner in names_in(item)):
            return None
        inner = _split(name, end, last)
        joined = [[Sequence((*rest, n) if last else (n, *rest)) for n in part] for part in inner or ()]
        return (list(joined[0]), list(joined[1])) if inner else None
    return None


def _written(node: Node, names: dict[str, str]) -> str:
    if isinstance(node, Name):
        return names[node.name]
    if isinstance(node, Chars):
        return "/[" + "".join(rf"\u{{{first:x}}}-\u{{{last:x}}}" for first, last in node.ranges) + "]/"
    if isinstance(node, Repeat):
        if node.high == 0:
            return '""'
        return f"({_written(node.item, names)}){{{node.low},{'' if node.high is None else node.high}}}"
    if isinstance(node, Choice):
        return "(" + " | ".join(_written(item, names) for item in node.items) + ")"
    return "(" + " ".join(_written(item, names) for item in node.items) + ")" if node.items else '""'
