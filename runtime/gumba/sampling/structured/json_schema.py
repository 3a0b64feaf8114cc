"""Checks of JSON schemas before compilation: sizes that keep compilation short, and the place of errors."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from gumba.errors import RequestError
from gumba.sampling.structured.json_closing import close_objects
from gumba.sampling.structured.json_pointers import LISTS, MAPS, Schema, check_base, subschemas, target
from gumba.sampling.structured.json_rewriting import rewrite
from gumba.validation import show

log = logging.getLogger("gumba")

#: Maximum length of a schema (characters of JSON), nesting, and number of values.
MAX_TEXT, MAX_DEPTH, MAX_VALUES = 1_000_000, 100, 10_000
#: Maximum number of properties of one object: an optional one costs four items of the parser.
MAX_PROPERTIES = 400
#: Maximum number of patterns in ``patternProperties``, which must be pairwise disjoint.
MAX_PATTERNS = 20
#: Maximum number of items of an ``enum``.
MAX_ENUM = 9000
#: Largest multiple, in units of its last decimal: the automaton has one state per remainder.
MAX_MULTIPLE = 1000
#: The same for all multiples together, and most patterns, where parts of a schema are merged: their automata multiply.
MAX_MERGED_MULTIPLE, MAX_MERGED_PATTERNS = 10_000, 8
#: How many times ``locate`` compiles a part of a schema.
MAX_ATTEMPTS = 100
#: Maximum number of places that a warning names.
MAX_NAMED = 10

_TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")


def check_schema(text: str) -> Schema | bool:
    """A JSON schema from its text, without options of the library and keywords that it does not know.

    A warning (logger ``gumba``) names the places that are not enforced while decoding. Raises RequestError naming the place.
    """
    schema = parse_schema(text)
    close_objects(schema)
    left = rewrite(schema, check_parts(schema))
    _check_merging([part for _, part in check_parts(schema)])
    if left:
        names = ", ".join(sorted(left)[:MAX_NAMED]) + (", ..." if len(left) > MAX_NAMED else "")
        log.warning("json: decoding does not enforce these parts of the schema, check the answer: %s", names)
    if isinstance(schema, dict):
        schema.pop("x-guidance", None)
    checked: Schema | bool = schema
    return checked


def parse_schema(text: str) -> Any:
    """The JSON value of a schema's text. Raises RequestError for no JSON, and for what is too long or nested too deep."""
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
    return schema


def _nesting(text: str) -> Iterator[int]:
    """The nesting depth at every opening bracket outside of strings."""
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


def _count(schema: object) -> None:
    waiting, n_values = [schema], 0
    while waiting:
        value = waiting.pop()
        n_values += 1
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting.extend(inner)
    if n_values > MAX_VALUES:
        raise RequestError(f"json: a schema of {n_values} values, expected at most {MAX_VALUES}")


def check_parts(schema: object) -> list[tuple[str, Schema]]:
    """All subschemas in use, with their places, itself first, each checked: those in their places and those referred to.

    Raises RequestError for what the compiler would explain without its place, or take too long for.
    """
    parts: dict[int, tuple[str, Schema]] = {}
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, bool) or id(part) in parts:
            continue
        if not isinstance(part, dict):
            raise RequestError(f"json: at {place}: expected a schema (an object, true or false), found {show(part)}")
        parts[id(part)] = place, part
        _check(part, place)
        waiting += [(f"{place}/{path}", subschema) for path, subschema in subschemas(part)]
        if "$ref" in part:
            waiting.append(target(schema, part["$ref"], place))
        if place != "#":
            check_base(part, place)
    return list(parts.values())


def _check(schema: Schema, place: str) -> None:
    for key in MAPS:
        if not isinstance(schema.get(key, {}), dict):
            raise RequestError(f"json: at {place}/{key}: expected an object, found {show(schema[key])}")
    for key in LISTS:
        if not isinstance(schema.get(key, []), list):
            raise RequestError(f"json: at {place}/{key}: expected a list of schemas, found {show(schema[key])}")
    _check_keywords(schema, place)


def _check_keywords(schema: Schema, place: str) -> None:
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
    multiple = schema.get("multipleOf", 1)
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 < _units(multiple) <= MAX_MULTIPLE:
        raise RequestError(
            f"json: at {place}/multipleOf: expected a number of 1 to {MAX_MULTIPLE} in its last decimal, found {show(multiple)}"
        )


def _check_merging(parts: list[Schema]) -> None:
    """Raise RequestError if ``allOf``, or a keyword beside a reference or choice, may combine too many automata."""
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


def _units(number: int | float) -> int:
    """A positive decimal number without its point (0.25 -> 25); 0 without one."""
    if isinstance(number, int):
        return number
    text = repr(number)
    if not number > 0 or "e" in text or "n" in text:
        return 0
    return int(text.replace(".", "")) if not text.endswith(".0") else int(text[:-2])


def locate(schema: Schema | bool, failure: Callable[[Any], str]) -> RequestError:
    """The error of a schema that does not compile, with the innermost part that fails by itself.

    ``failure`` compiles a schema and gives the complaint, "" when there is none.
    """
    place, reason = "#", _first_line(failure(schema))
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema} if isinstance(schema, dict) else {}
    attempts = 0
    inner: Any = schema
    while isinstance(inner, dict):
        for path, subschema in subschemas(inner):
            if not isinstance(subschema, dict) or attempts >= MAX_ATTEMPTS:
                continue
            attempts += 1
            message = failure({**shared, **subschema})
            if message and _first_line(message) == reason:
                place, inner = f"{place}/{path}", subschema
                break
        else:
            break
    return RequestError(f"json: at {place}: {reason}")


def _first_line(message: str) -> str:
    message = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", message)
    errors = [line[len("error: ") :] for line in message.splitlines() if line.startswith("error: ")]
    return (errors or message.splitlines() or [""])[-1 if errors else 0][:300]
