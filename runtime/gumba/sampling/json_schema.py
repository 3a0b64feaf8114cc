"""JSON schemas before they are compiled: sizes that keep compilation short, and the place of what is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from gumba.errors import RequestError
from gumba.params import show

#: Longest schema (characters of JSON), deepest nesting, most values in it.
MAX_TEXT, MAX_DEPTH, MAX_VALUES = 1_000_000, 100, 10_000
#: Most properties of one object: each that may be left out costs four of the parser's items.
MAX_PROPERTIES = 400
#: Most patterns in ``patternProperties``: each pair of them has to be apart.
MAX_PATTERNS = 20
#: Most items of an ``enum``.
MAX_ENUM = 9000
#: Largest multiple, in units of its last decimal: a number is followed with one state per remainder.
MAX_MULTIPLE = 1000
#: The same for all multiples together, and most patterns, where parts of a schema are merged: their automata multiply.
MAX_MERGED_MULTIPLE, MAX_MERGED_PATTERNS = 10_000, 8
#: How many times ``locate`` compiles a part of a schema.
MAX_ATTEMPTS = 100

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_SCHEMAS = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "additionalItems",
)  # fmt: skip
_TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    rf"02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#: RFC 3339, without the year 0 and leap seconds, which hardly a reader knows. The library's own have a 29th of every February,
#: and leap seconds at any time.
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}


def check_schema(text: str) -> dict[str, Any] | bool:
    """A JSON schema from its text, without options of the library. Raises RequestError naming the place."""
    if len(text) > MAX_TEXT:
        raise RequestError(f"json: {len(text)} characters, expected at most {MAX_TEXT}")
    depth = 0
    for opened in _nesting(text):
        depth = max(depth, opened)
    if depth > MAX_DEPTH:
        raise RequestError(f"json: nested {depth} deep, expected at most {MAX_DEPTH}")
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise RequestError(f"json: expected a JSON schema ({error})") from None
    _count(schema)
    parts = _parts(schema)
    _check_merging(parts)
    _write_out_formats(parts)
    if isinstance(schema, dict):
        schema.pop("x-guidance", None)
    checked: dict[str, Any] | bool = schema
    return checked


def _nesting(text: str) -> Iterator[int]:
    """How many brackets are open after each opening one outside of strings."""
    depth, quoted, skip = 0, False, False
    for character in text:
        if skip:
            skip = False
        elif quoted:
            skip, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            yield depth
        elif character in "]}":
            depth -= 1


def _count(schema: Any) -> None:
    waiting, found = [schema], 0
    while waiting:
        value = waiting.pop()
        found += 1
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting.extend(inner)
    if found > MAX_VALUES:
        raise RequestError(f"json: a schema of {found} values, expected at most {MAX_VALUES}")


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path from here, subschema) of each one right inside."""
    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            yield from ((f"{key}/{name}", each) for name, each in schema[key].items())
    for key in _LISTS + ("items",):
        if isinstance(schema.get(key), list):
            yield from ((f"{key}/{i}", each) for i, each in enumerate(schema[key]))
    for key in _SCHEMAS:
        if key in schema and not isinstance(schema[key], list):
            yield key, schema[key]


def _parts(schema: Any) -> list[dict[str, Any]]:
    """All subschemas that are in use, itself first, each checked: those in their places and those that are referred to.

    Raises RequestError for what the compiler would explain without its place, or take too long for.
    """
    found: dict[int, dict[str, Any]] = {}
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, bool) or id(part) in found:
            continue
        if not isinstance(part, dict):
            raise RequestError(f"json: at {place}: expected a schema (an object, true or false), found {show(part)}")
        found[id(part)] = part
        _check(part, place)
        waiting += [(f"{place}/{path}", each) for path, each in _subschemas(part)]
        if "$ref" in part:
            waiting.append(_target(schema, part["$ref"], place))
        if place != "#":
            _check_base(part, place)
    return list(found.values())


def _target(schema: Any, reference: Any, place: str) -> tuple[str, Any]:
    """What ``$ref`` means, with its place. Other documents are not read, so it must be a pointer into this one."""
    expected = (
        f"json: at {place}/$ref: expected # or a pointer into the schema, like #/$defs/name, found {show(reference)}"
    )
    if reference == "#":
        return "#", schema
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise RequestError(expected)
    part = schema
    for step in unquote(reference[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict) and name in part:
            part = part[name]
        elif isinstance(part, list) and name.isdecimal() and int(name[:9]) < len(part):
            part = part[int(name)]
        else:
            raise RequestError(f"{expected}: not present")
        if isinstance(part, dict):
            _check_base(part, reference)
    return reference, part


def _check_base(part: dict[str, Any], place: str) -> None:
    """Raise RequestError where references inside a part would be relative to it."""
    for key in ("$id", "id"):
        if isinstance(part.get(key), str):
            raise RequestError(f"json: at {place}/{key}: expected none inside a schema, found {show(part[key])}")


def _check(schema: dict[str, Any], place: str) -> None:
    for key in _MAPS:
        if not isinstance(schema.get(key, {}), dict):
            raise RequestError(f"json: at {place}/{key}: expected an object, found {show(schema[key])}")
    for key in _LISTS:
        if not isinstance(schema.get(key, []), list):
            raise RequestError(f"json: at {place}/{key}: expected a list of schemas, found {show(schema[key])}")
    _check_keywords(schema, place)


def _check_keywords(schema: dict[str, Any], place: str) -> None:
    types = schema.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if not isinstance(name, str) or name not in _TYPES:
            raise RequestError(f"json: at {place}/type: expected {', '.join(_TYPES)}, found {show(name)}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise RequestError(f"json: at {place}/required: expected a list of names, found {show(required)}")
    names = len({*schema.get("properties", {}), *required})
    if names > MAX_PROPERTIES:
        raise RequestError(
            f"json: at {place}: {names} properties and required names, expected at most {MAX_PROPERTIES}"
        )
    if len(schema.get("patternProperties", {})) > MAX_PATTERNS:
        raise RequestError(f"json: at {place}/patternProperties: more than {MAX_PATTERNS} patterns")
    options = schema.get("enum", [None])
    if not isinstance(options, list) or not 0 < len(options) <= MAX_ENUM:
        raise RequestError(f"json: at {place}/enum: expected a list of 1 to {MAX_ENUM} values, found {show(options)}")
    _check_least(schema, place)
    multiple = schema.get("multipleOf", 1)
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < _units(multiple) <= MAX_MULTIPLE:
        raise RequestError(
            f"json: at {place}/multipleOf: expected a number of 1 to {MAX_MULTIPLE} in its last decimal, found {show(multiple)}"
        )


def _check_least(schema: dict[str, Any], place: str) -> None:
    """Raise RequestError where ``minProperties`` could be reached by one name again and again, which counts once."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if not closed and isinstance(least, int | float) and least > len(set(required)) + 1:
        raise RequestError(
            f"json: at {place}/minProperties: expected at most one more than required names ({len(set(required))}) where "
            f"properties of any name are allowed, found {show(least)}"
        )


def _check_merging(parts: list[dict[str, Any]]) -> None:
    """Raise RequestError where ``allOf``, or a keyword beside a reference or choice, may combine too many automata."""
    merging, patterns, multiples = False, 0, {1}
    for part in parts:
        own = [key for key in ("pattern", "format", "multipleOf") if key in part]
        merging |= "allOf" in part or len([key for key in ("$ref", "anyOf", "oneOf") if key in part]) + bool(own) > 1
        patterns += len(own) + len(part.get("patternProperties", {}))
        multiples.add(_units(part.get("multipleOf", 1)))
    if merging and (patterns > MAX_MERGED_PATTERNS or math.prod(multiples) > MAX_MERGED_MULTIPLE):
        raise RequestError(
            f"json: {patterns} patterns, formats and multiples in a schema that merges parts (allOf, or keywords beside "
            f"$ref, anyOf or oneOf), expected at most {MAX_MERGED_PATTERNS} and multiples small together"
        )


def _write_out_formats(parts: list[dict[str, Any]]) -> None:
    """Give formats that the library is too generous with as patterns."""
    for part in parts:
        name = part.get("format")
        if isinstance(name, str) and name in _FORMATS:
            del part["format"]
            if "pattern" in part:
                part["allOf"] = [*part.get("allOf", ()), {"pattern": _FORMATS[name]}]
            else:
                part["pattern"] = _FORMATS[name]


def _units(number: int | float) -> int:
    """A positive decimal number without its point (0.25 -> 25); 0 where there is none."""
    if isinstance(number, int):
        return number
    text = repr(number)
    if not number > 0 or "e" in text or "n" in text:
        return 0
    return int(text.replace(".", "")) if not text.endswith(".0") else int(text[:-2])


def locate(schema: dict[str, Any] | bool, failure: Callable[[Any], str]) -> RequestError:
    """The error of a schema that does not compile, with the innermost part that fails by itself.

    ``failure`` compiles a schema and gives the complaint, "" when there is none.
    """
    place, reason = "#", _first_line(failure(schema))
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema} if isinstance(schema, dict) else {}
    attempts = 0
    inner: Any = schema
    while isinstance(inner, dict):
        for path, each in _subschemas(inner):
            if not isinstance(each, dict) or attempts >= MAX_ATTEMPTS:
                continue
            attempts += 1
            found = failure({**shared, **each})
            if found and _first_line(found) == reason:
                place, inner = f"{place}/{path}", each
                break
        else:
            break
    return RequestError(f"json: at {place}: {reason}")


def _first_line(message: str) -> str:
    message = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    if "coerce_one_of" in message:
        return "oneOf: expected alternatives that exclude each other by type or by a constant, or anyOf"
    errors = [line[len("error: ") :] for line in message.splitlines() if line.startswith("error: ")]
    return (errors or message.splitlines() or [""])[-1 if errors else 0][:300]
