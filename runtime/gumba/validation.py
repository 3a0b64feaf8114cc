"""Checks of what a caller or a file says: each returns the value in one form, or raises RequestError naming the field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from gumba.errors import RequestError

#: Largest value of a count (max_tokens, top_k, repetition_window).
MAX_COUNT = 2**31 - 1


class KeywordError(RequestError, TypeError):
    """An unknown keyword. Also a TypeError, as for any Python function."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """A hint to append to an error message: the known name closest to ``name``, or "" if none is close."""
    near = difflib.get_close_matches(name, sorted(known), 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def show(value: object) -> str:
    """A short picture of a value of any kind for an error message."""
    try:
        text = repr(value)
    except Exception:  # a foreign object's own __repr__, or an int too large to print
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def is_iterable(value: object) -> bool:
    """Whether ``value`` can be iterated over. NumPy's arrays without dimensions cannot, though they have ``__iter__``."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def require_count(name: str, value: Any, low: int, high: int = MAX_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(value)}")
    number = int(value)
    if not low <= number <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(number)}")
    return number


def require_number(name: str, value: Any, low: float, high: float) -> float:
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


def require_boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected True or False, found {show(value)}")
    return value


def require_strings(name: str, value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, (bytes, dict)) or not is_iterable(items):
        raise RequestError(f"{name}: expected a string or a list of strings, found {show(value)}")
    found = tuple(items)
    for item in found:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name}: expected strings of at least one character, found {show(item)}")
    return found


def require_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, dict)) or not is_iterable(value):
        raise RequestError(f"{name}: expected a list of token ids, found {show(value)}")
    return tuple(require_count(name, item, 0) for item in value)


def require_optional_text(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise RequestError(f"{name}: expected a string of at least one character, found {show(value)}")
    return value


def require_optional_ids(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    found = require_ids(name, value)
    if not found:
        raise RequestError(f"{name}: expected at least one token id or None, found {show(value)}")
    return found


def require_schema(name: str, value: Any) -> str:
    """A JSON schema as JSON text."""
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


def template_variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a template, which may be said by one of the names in ``given``; None: not by that one.

    Raises RequestError when they are said by both names, or are no mapping of names.
    """
    found: dict[str, Any] | None = None
    for name, value in given.items():
        if value is None:
            continue
        if found is not None:
            raise RequestError(f"{name} and {next(iter(given))} are the same setting: pass only one of them")
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise RequestError(f"{name}: expected an object whose keys are names of variables, found {show(value)}")
        found = dict(value)
    return found or {}
