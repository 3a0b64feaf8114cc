"""The filters of chat templates: counted versions of jinja2's, and those that the rewritten syntax tree uses.

All report to the `Budget` of the rendering; see ``gumba.chat.sandbox.environment``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gumba.chat.sandbox.budget import (
    LONG_PERCENT,
    MAX_ITEMS,
    MAX_OUTPUT,
    MAX_WIDTH,
    Budget,
    binary_size,
    budget,
    char_width,
    check_format,
    check_list,
    check_number,
    measure,
    refuse,
    text_size,
)

#: The filters of jinja2 that templates may use.
_FILTERS = {
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "format", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
    "title", "trim", "truncate", "unique", "upper",
}  # fmt: skip


class _Steps:
    """An iterable that reports every item taken from it."""

    def __init__(self, iterable: Any, spent: Budget) -> None:
        self._iterable = iterable
        self._budget = spent

    def __iter__(self) -> Iterator[object]:
        for item in self._iterable:
            self._budget.step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


def _steps(iterable: object) -> object:
    return _Steps(iterable, budget())


def _measured(value: object) -> object:
    spent = budget()
    spent.step()
    if isinstance(value, list | tuple | dict):
        spent.make(measure(value))
    return value


def _concatenate(values: list[object]) -> str:
    texts = [text_of(value) for value in values]
    budget().make(text_size(texts))
    return "".join(texts)


def text_of(value: object) -> str:
    """``str(value)``, counted."""
    if isinstance(value, str):
        return value
    text = str(_measured(value))
    budget().make(text_size((text,)))
    return text


def _slice(value: Any, start: object, stop: object, step: object) -> object:
    """``value[start:stop:step]``, counted before it is made."""
    spent = budget()
    spent.step()
    if isinstance(value, str | list | tuple):
        taken = len(range(*slice(start, stop, step).indices(len(value))))
        spent.make(taken * char_width(value) if isinstance(value, str) else 64 + 16 * taken)
    return value[start:stop:step]


#: Filters and tests that neither look into their arguments nor make anything new.
_CHEAP = {
    "attr", "count", "d", "default", "first", "items", "last", "length", "boolean", "callable", "defined", "even",
    "false", "float", "integer", "iterable", "mapping", "none", "number", "odd", "sequence", "true", "undefined",
}  # fmt: skip


def _guarded(name: str, function: Callable[..., object], check: Callable[..., None] | None) -> Callable[..., object]:
    """A filter or test that measures its arguments and its result, and runs ``check`` on the arguments first."""
    passed = getattr(function, "jinja_pass_arg", None)

    def guarded(*args: object, **kwargs: object) -> object:
        spent = budget()
        spent.step()
        if name in _CHEAP:
            return function(*args, **kwargs)
        visible = args[1:] if passed is not None else args
        for value in (*visible, *kwargs.values()):
            measure(value)
            check_number(value)
        if check is not None:
            check(*visible, **kwargs)
        result = function(*args, **kwargs)
        spent.make(measure(result))
        return result

    if passed is not None:
        guarded.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return guarded


def _check_width(value: object, *numbers: object, **named: object) -> None:
    for number in (*numbers, *named.values()):
        if isinstance(number, int) and abs(number) > MAX_WIDTH:
            refuse(f"a width or precision of {number}; the limit is {MAX_WIDTH}")


def _check_strip(text: object, chars: object = None) -> None:
    if isinstance(chars, str) and len(chars) > MAX_WIDTH:
        refuse(f"a set of {len(chars)} characters to strip")


def _check_replace(text: object, old: object, new: object, count: object = None) -> None:
    text, old, new = str(text), str(old), str(new)
    spent = budget()
    spent.make(max(char_width(text), char_width(new)) * (len(text) + text.count(old) * max(0, len(new) - len(old))))


def _check_round(value: object, precision: object = 0, method: object = "common") -> None:
    if isinstance(precision, int) and abs(precision) > 300:
        refuse(f"rounding to {precision} digits")


def _filter_format(template: object, *args: object, **kwargs: object) -> str:
    check_format(str(template), kwargs.values() if kwargs else args, LONG_PERCENT)
    return str(template) % (kwargs or args)


def _filter_sum(values: Iterable[Any], attribute: str | None = None, start: object = 0) -> object:
    if attribute is not None:
        values = [value[attribute] for value in values]
    total = start
    for value in values:
        budget().make(binary_size("+", total, value))
        total = total + value
        check_number(total)
    return total


def _filter_indent(text: object, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    _check_width(text, width)
    prefix = width if isinstance(width, str) else " " * width
    text = str(text)
    budget().make(max(char_width(text), char_width(prefix)) * (len(text) + (text.count("\n") + 1) * len(prefix)))
    lines = text.splitlines() if len(text) < MAX_OUTPUT // 8 else refuse("a very long text is indented")
    if text.endswith("\n"):
        lines.append("")
    return "\n".join(prefix + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))


def join_counted(values: Any, d: object = "", attribute: object = None) -> str:
    """``d.join(values)``, or of an attribute of them, counted while it is made."""
    if attribute is not None:
        values = [value.get(attribute, "") if isinstance(value, dict) else value[attribute] for value in values]
    parts = [text_of(value) for value in values]
    glue = text_of(d)
    budget().make(max(char_width(glue), *map(char_width, parts), 1) * (sum(map(len, parts)) + len(parts) * len(glue)))
    return glue.join(parts)


def _filter_tojson(
    value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """``tojson`` as transformers defines it: plain JSON, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_width,
    "slice": _check_width,
    "trim": _check_strip,
    "replace": _check_replace,
    "list": check_list,
    "round": _check_round,
    "tojson": lambda value, *args, indent=None, **kwargs: _check_width(value, indent),
}


def check_method(text: str, name: str, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
    """Check the arguments of a method of str before it runs."""
    if name == "replace":
        _check_replace(text, *args, **kwargs)
    elif name in ("strip", "lstrip", "rstrip"):
        _check_strip(text, *args)
    elif name in ("split", "rsplit"):
        parts = text.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(text) // 8
        if parts > MAX_ITEMS:
            refuse(f"a text is split into more than {MAX_ITEMS} parts")
    elif name == "splitlines" and len(text) > MAX_OUTPUT // 8:
        refuse("a very long text is split into lines")


def counted_filters(known: Mapping[str, Callable[..., object]]) -> dict[str, Callable[..., Any]]:
    """The filters of templates: guarded versions of jinja2's (``known``), and those that only the rewriter can name."""
    filters = {name: known[name] for name in _FILTERS} | {
        "format": _filter_format,
        "indent": _filter_indent,
        "join": join_counted,
        "sum": _filter_sum,
        "tojson": _filter_tojson,
    }
    guarded = {name: _guarded(name, function, _CHECKS.get(name)) for name, function in filters.items()}
    return guarded | {" steps": _steps, " measured": _measured, " concatenate": _concatenate, " slice": _slice}


def counted_tests(known: Mapping[str, Callable[..., object]]) -> dict[str, Callable[..., Any]]:
    """The tests of templates: guarded versions of jinja2's (``known``)."""
    return {name: _guarded(name, function, None) for name, function in known.items()}
