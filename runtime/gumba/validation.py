"""Checks of arguments and settings: each returns the value in one form, or raises RequestError with the field's name."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

from gumba.errors import RequestError

#: Maximum of a count (max_tokens, top_k, repetition_window).
MAX_COUNT = 2**31 - 1


class KeywordError(RequestError, TypeError):
    """An unknown keyword. Also a TypeError, as for any Python function."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """A hint to append to an error message: the known name closest to ``name``, or "" if none is close."""
    matches = difflib.get_close_matches(name, sorted(known), 1) if isinstance(name, str) else []
    return f"; did you mean {matches[0]!r}?" if matches else ""


def show(value: object) -> str:
    """A short representation of any value, for an error message."""
    try:
        text = repr(value)
    except Exception:  # a __repr__ that raises, or an int too large to print
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether ``value`` can be iterated over. NumPy's arrays without dimensions cannot, though they have ``__iter__``."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def require_count(name: str, value: object, low: int, high: int = MAX_COUNT) -> int:
    """An integer from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(value)}")
    number = int(value)
    if not low <= number <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(number)}")
    return number


def require_number(name: str, value: object, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``, as a float."""
    expected = f"{name}: expected a number from {low:g} to {high:g}, found {show(value)}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(expected)
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(expected) from None
    if math.isnan(number) or not low <= number <= high:
        raise RequestError(expected)
    return number


def require_boolean(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected True or False, found {show(value)}")
    return value


def require_strings(name: str, value: object) -> tuple[str, ...]:
    """Strings of at least one character; a single one becomes a tuple."""
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, (bytes, dict)) or not is_iterable(items):
        raise RequestError(f"{name}: expected a string or a list of strings, found {show(value)}")
    strings = tuple(items)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name}: expected strings of at least one character, found {show(item)}")
    return strings


def require_ids(name: str, value: object) -> tuple[int, ...]:
    """Token ids."""
    if isinstance(value, (str, bytes, dict)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of token ids, found {show(value)}")
    return tuple(require_count(name, item, 0) for item in value)


def require_optional_text(name: str, value: object) -> str | None:
    """A string of at least one character, or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise RequestError(f"{name}: expected a string of at least one character, found {show(value)}")
    return value


def require_optional_ids(name: str, value: object) -> tuple[int, ...] | None:
    """At least one token id, or None."""
    if value is None:
        return None
    ids = require_ids(name, value)
    if not ids:
        raise RequestError(f"{name}: expected at least one token id or None, found {show(value)}")
    return ids


def require_schema(name: str, value: object) -> str:
    """Check a JSON schema, and return it as JSON text."""
    expected = f"{name}: expected a JSON schema, an object or true, found {show(value)}"
    if not isinstance(value, (str, Mapping, bool)):
        raise RequestError(expected)
    try:
        schema = dict(value) if isinstance(value, Mapping) else value
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
        parsed = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{expected} ({error})") from None
    if not isinstance(parsed, dict) and parsed is not True:
        raise RequestError(expected)
    return text


def template_variables(arguments: Mapping[str, object]) -> dict[str, object]:
    """The variables of a chat template, which several arguments can set; None: not set by that one.

    Raises RequestError if two arguments set them, or the value is not a mapping from names.
    """
    variables: dict[str, object] | None = None
    for name, value in arguments.items():
        if value is None:
            continue
        if variables is not None:
            raise RequestError(f"{name} and {next(iter(arguments))} are the same setting: pass only one of them")
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise RequestError(f"{name}: expected an object whose keys are names of variables, found {show(value)}")
        variables = dict(value)
    return variables or {}
