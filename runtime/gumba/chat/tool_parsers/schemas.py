"""Converts unquoted arguments of tool calls to the JSON types that a parameter's JSON Schema allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

from gumba.chat.tool_parsers.values import NoCall, read_whole

_KINDS = frozenset({"string", "null", "boolean", "integer", "number", "object", "array"})
#: Other names of types: Python's, and Google's, which are in upper case.
_TYPE_ALIASES = {
    "str": "string", "text": "string", "enum": "string", "int": "integer", "float": "number", "double": "number",
    "bool": "boolean", "dict": "object", "list": "array", "tuple": "array", "none": "null",
}  # fmt: skip


def typed(parameters: object, key: str, text: str, quotes: bool = False) -> Any:
    """The value of an argument that a model wrote as bare ``text``.

    It stays text if the schema of ``key`` in ``parameters`` allows a string (or there is no schema), except for null where that
    is allowed too; otherwise it is parsed as JSON or a Python literal, and stays text if that fails. ``quotes``: the form
    quotes strings, so that unquoted text is parsed as a value of another type if the schema allows one.
    """
    try:
        kinds = _Reader(parameters, text).kinds_of(key)
    except RecursionError:  # a schema nested hundreds of levels deep allows anything
        kinds = _KINDS
    bare = text.strip()
    if quotes and _kind(_value(bare)) in kinds:
        return _value(bare)
    if "null" in kinds and bare in ("null", "None"):
        return None
    if "string" in kinds:
        return text
    value = _value(bare)
    if isinstance(value, str) and value != bare:  # the value of another type, in quotes
        inner = _value(value)
        value = value if isinstance(inner, str) else inner
    if isinstance(value, str):
        lower = value.strip().lower()
        return lower == "true" if "boolean" in kinds and lower in ("true", "false") else text
    if isinstance(value, float) and "integer" in kinds and "number" not in kinds and value.is_integer():
        return int(value)
    return value


def _value(text: str) -> object:
    try:
        return read_whole(text)
    except NoCall:
        return text


def _kind(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    for kind, of in (("string", str), ("integer", int), ("number", float), ("object", Mapping)):
        if isinstance(value, of):
            return kind
    return "array"


class _Reader:
    """Determines the kinds that ``root``, the schema of a function's parameters, allows for a ``text``."""

    def __init__(self, root: object, text: str) -> None:
        self._root, self._text = root, text
        #: By id of a schema: None while it is being read, so that circular references are ignored.
        self._read: dict[int, frozenset[str] | None] = {}

    def kinds_of(self, key: str) -> frozenset[str]:
        """The kinds that the parameter ``key`` allows; all kinds if the schema does not declare it."""
        known = [
            kinds for schema in self._properties(self._root, key, set()) if (kinds := self._kinds(schema)) is not None
        ]
        return frozenset().union(*known) if known else _KINDS

    def _properties(self, schema: object, key: str, seen: set[int]) -> Iterator[object]:
        """The schemas of the property ``key`` in ``schema`` and its parts."""
        if not isinstance(schema, Mapping) or id(schema) in seen:
            return
        seen.add(id(schema))
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        if isinstance(properties, Mapping) and key in properties:
            yield properties[key]
        elif isinstance(others, Mapping):
            yield others
        for part in self._parts(schema):
            yield from self._properties(part, key, seen)

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[object]:
        if isinstance(schema.get("$ref"), str):
            yield self._resolved(schema["$ref"])
        for word in ("allOf", "anyOf", "oneOf"):
            yield from _listed(schema.get(word))

    def _resolved(self, reference: str) -> object:
        """The target of a JSON pointer into the root; None if it does not exist."""
        target = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Sequence) and not isinstance(target, str) and part.isdecimal():
                target = target[int(part)] if int(part) < len(target) else None
            else:
                target = target.get(part) if isinstance(target, Mapping) else None
        return target if reference.startswith("#") else None

    def _kinds(self, schema: object) -> frozenset[str] | None:
        """The kinds that ``schema`` allows; None for a circular reference."""
        if not isinstance(schema, Mapping):
            return _KINDS
        if id(schema) not in self._read:
            self._read[id(schema)] = None
            demands = list(self._demands(schema))
            known = [kinds for kinds in demands if kinds is not None]
            self._read[id(schema)] = reduce(frozenset.__and__, known, _KINDS) if known or not demands else None
        return self._read[id(schema)]

    def _demands(self, schema: Mapping[str, Any]) -> Iterator[frozenset[str] | None]:
        """The kinds that each keyword allows; a value must satisfy all keywords."""
        nullable = {"null"} if schema.get("nullable") is True else set()
        for values in (_listed(schema.get("enum")), [schema["const"]] if "const" in schema else []):
            if values:
                yield self._kinds_of_values(values) | nullable
        types = schema.get("type")
        named = {
            _TYPE_ALIASES.get(name.lower(), name.lower())
            for name in ([types] if isinstance(types, str) else _listed(types))
            if isinstance(name, str)
        } & _KINDS
        if named:
            yield frozenset(named | nullable | ({"integer"} if "number" in named else set()))
        elif "type" not in schema and ("properties" in schema or "items" in schema):
            yield frozenset({"object" if "properties" in schema else "array"} | nullable)
        if isinstance(schema.get("$ref"), str):
            yield self._kinds(self._resolved(schema["$ref"]))
        for part in _listed(schema.get("allOf")):
            yield self._kinds(part)
        for word in ("anyOf", "oneOf"):
            known = [kinds for part in _listed(schema.get(word)) if (kinds := self._kinds(part)) is not None]
            if known:
                yield frozenset().union(*known, nullable)

    def _kinds_of_values(self, values: Sequence[object]) -> frozenset[str]:
        """The kinds of an enumeration; strings only if the text is not a value of another kind in it."""
        kinds = frozenset(map(_kind, values))
        if "string" in kinds and len(kinds) > 1 and self._text not in values:
            value = _value(self._text.strip())
            if not isinstance(value, str) and any(type(other) is type(value) and other == value for other in values):
                return kinds - {"string"}
        return kinds


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()
