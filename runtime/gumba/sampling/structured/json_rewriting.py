"""Rewrites keywords of JSON Schema that the grammar compiler lacks with keywords that it supports, where possible.

Keywords that cannot be rewritten are not enforced while decoding: they are removed, and their places are returned for a warning.
Every rewrite only allows more: no text that fits the schema is excluded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gumba.errors import RequestError
from gumba.sampling.structured.json_pointers import Schema, target
from gumba.validation import show

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    rf"02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#: RFC 3339, without the year 0 and leap seconds, which few parsers accept. The library's own formats allow February 29 in every
#: year, and leap seconds at any time.
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}
#: The other formats that the compiler enforces. All others are annotations (JSON Schema 2020-12, validation, 7.2).
_KNOWN_FORMATS = {"email", "hostname", "ipv4", "ipv6", "uuid", "uri", "duration", "unknown"}

#: Maximum length of a chain of references in ``propertyNames``.
MAX_REFERENCES = 20
#: Never enforced. ``if`` includes ``then`` and ``else``, ``contains`` its two bounds.
_NOT_HELD = (
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
_PARTS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")


def rewrite(root: object, places: Sequence[tuple[str, Schema]]) -> list[str]:
    """Rewrite every schema of ``places`` (pairs of place and schema), in place; returns the places of unenforced keywords.

    Raises RequestError for what no value at all fits.
    """
    left: list[str] = []
    for place, part in places:
        for step in (_wrong, _formats, _patterns, _least_properties, _items, _closed):
            left += [f"{place}/{key}" for key in step(part, place)]
        left += [f"{place}/{key}" for key in _property_names(root, part, place)]
        left += [f"{place}/{key}" for key in _NOT_HELD if key in part and _says_something(key, part)]
        for key in _NOT_HELD:
            part.pop(key, None)
    return left


def _says_something(key: str, part: Schema) -> bool:
    """Whether removing ``key`` can allow more values."""
    if key in ("then", "else", "minContains", "maxContains"):
        return False  # they belong to "if" and "contains", which are named
    if key == "if":
        return "then" in part or "else" in part
    return part[key] not in (({}, True) if key.startswith("unevaluated") else ({}, False))


def _formats(part: Schema, place: str) -> list[str]:
    """Replace formats that the compiler enforces too loosely by patterns; remove those that are annotations."""
    name = part.get("format")
    if not isinstance(name, str) or name in _KNOWN_FORMATS:
        return []
    del part["format"]
    if name in _FORMATS:
        _add_pattern(part, _FORMATS[name])
    return []


def _add_pattern(part: Schema, pattern: str) -> None:
    if "pattern" in part:
        part["allOf"] = [*part.get("allOf", ()), {"pattern": pattern}]
    else:
        part["pattern"] = pattern


def _patterns(part: Schema, place: str) -> list[str]:
    """Rewrite leading lookaheads of a pattern as separate patterns that must also match."""
    pattern = part.get("pattern")
    if not isinstance(pattern, str):
        return []
    further, rest = [], pattern
    while lookaround := re.match(r"\^\(\?([=!])", rest):
        end = _closing(rest, 1)
        inner = rest[lookaround.end() : end]
        if lookaround.group(1) == "=":
            further.append(inner if inner.startswith("^") else f"^(?:{inner})")
        elif chars := re.fullmatch(r"\^?\[(?!\^)((?:[^\[\]\\]|\\.)+)\]\*\$", inner):
            further.append(f"[^{chars.group(1)}]")  # any other character
        else:
            break
        rest = "^" + rest[end + 1 :]
    if further:
        part["pattern"] = rest
        part["allOf"] = [*part.get("allOf", ()), *({"pattern": pattern} for pattern in further)]
    return []


def _closing(pattern: str, start: int) -> int:
    """The index of the parenthesis that closes the one at ``start``; of the last character if none does."""
    depth, quoted, skip = 0, False, False
    for i in range(start, len(pattern)):
        character = pattern[i]
        if skip:
            skip = False
        elif character == "\\":
            skip = True
        elif quoted:
            quoted = character != "]"
        elif character == "[":
            quoted = True
        elif character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return i
    return len(pattern) - 1


def _least_properties(part: Schema, place: str) -> list[str]:
    """Lower ``minProperties`` if repetitions of one name, which count once, could satisfy it."""
    least, required = part.get("minProperties", 0), part.get("required", [])
    closed = part.get("additionalProperties") is False and not part.get("patternProperties")
    if closed or not isinstance(least, int | float) or least <= len(set(required)) + 1:
        return []
    part["minProperties"] = len(set(required)) + 1
    return ["minProperties"]


def _items(part: Schema, place: str) -> list[str]:
    """Apply the bounds on an array's length that ``contains`` and ``uniqueItems`` imply."""
    items = part.get("items")
    options = items.get("enum") if isinstance(items, dict) else None
    if part.get("uniqueItems") is True and isinstance(options, list) and "prefixItems" not in part:
        _bound(part, "maxItems", min, len(options))
    least = part.get("minContains", 1)
    if "contains" in part and isinstance(least, int) and not isinstance(least, bool):
        _bound(part, "minItems", max, least)
    if part.get("unevaluatedItems") is False and not any(key in part for key in _PARTS):
        part.setdefault("additionalItems" if isinstance(items, list) else "items", False)
        del part["unevaluatedItems"]
    return []


def _bound(part: Schema, key: str, choose: Callable[[int, int], int], value: int) -> None:
    there = part.get(key, value)
    part[key] = choose(there, value) if isinstance(there, int) else there


def _closed(part: Schema, place: str) -> list[str]:
    """Rewrite ``unevaluatedProperties`` as ``additionalProperties`` if no other keyword applies to the object."""
    if "unevaluatedProperties" in part and not any(key in part for key in _PARTS):
        part.setdefault("additionalProperties", part["unevaluatedProperties"])
        del part["unevaluatedProperties"]
    return []


def _wrong(part: Schema, place: str) -> list[str]:
    """Check the values of removed keywords, which the compiler does not see. Raises RequestError."""
    if "not" in part and part["not"] in ({}, True):
        raise RequestError(
            f"json: at {place}/not: expected a schema that does not match every value, found {show(part['not'])}"
        )
    if not isinstance(part.get("uniqueItems", True), bool):
        raise RequestError(f"json: at {place}/uniqueItems: expected true or false, found {show(part['uniqueItems'])}")
    for key in ("minContains", "maxContains"):
        if type(part.get(key, 0)) is not int or part.get(key, 0) < 0:
            raise RequestError(f"json: at {place}/{key}: expected a number from 0, found {show(part[key])}")
    return []


def _property_names(root: object, part: Schema, place: str) -> list[str]:
    """Rewrite ``propertyNames`` as the allowed names or their pattern."""
    if "propertyNames" not in part:
        return []
    names = part.pop("propertyNames")
    for _ in range(MAX_REFERENCES):
        if not isinstance(names, dict) or set(names) - {"title", "description"} != {"$ref"}:
            break
        names = target(root, names["$ref"], place)[1]
    if names is True or (isinstance(names, dict) and not set(names) - {"title", "description", "type", "format"}):
        return []  # every name is a string
    further = part.get("additionalProperties", True)
    if not isinstance(names, dict) or part.get("properties") or part.get("patternProperties"):
        return ["propertyNames"]
    options = names["enum"] if "enum" in names else [names["const"]] if "const" in names else None
    if isinstance(options, list):
        part["properties"] = {name: further for name in options if isinstance(name, str)}
    elif isinstance(pattern := names.get("pattern", _length_pattern(names)), str) and pattern:
        part["patternProperties"] = {pattern: further}
    else:
        return ["propertyNames"]
    part["additionalProperties"] = False
    exact = {"title", "description", "type", "enum", "const"} | ({"pattern"} if "enum" not in names else set())
    lengths = set() if "pattern" in names or isinstance(options, list) else {"minLength", "maxLength"}
    return ["propertyNames"] if set(names) - exact - lengths else []


def _length_pattern(names: Schema) -> str:
    """A pattern of the lengths that ``names`` allows; empty without bounds, or if they cannot be expressed."""
    bounds = [names.get("minLength", 0), names.get("maxLength", "")]
    if bounds == [0, ""] or not all(bound == "" or (type(bound) is int and 0 <= bound <= 1000) for bound in bounds):
        return ""
    return f"^[\\s\\S]{{{bounds[0]},{bounds[1]}}}$"
