"""Finds the schemas inside a JSON schema: subschemas, and the targets of references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias
from urllib.parse import unquote

from gumba.errors import RequestError
from gumba.validation import show

#: A JSON schema that is an object.
Schema: TypeAlias = "dict[str, Any]"

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
SCHEMAS = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "additionalItems",
)  # fmt: skip


def subschemas(schema: Schema) -> Iterator[tuple[str, Any]]:
    """(relative path, subschema) of the direct subschemas."""
    for key in MAPS:
        if isinstance(schema.get(key), dict):
            yield from ((f"{key}/{name}", subschema) for name, subschema in schema[key].items())
    for key in LISTS + ("items",):
        if isinstance(schema.get(key), list):
            yield from ((f"{key}/{i}", subschema) for i, subschema in enumerate(schema[key]))
    for key in SCHEMAS:
        if key in schema and not isinstance(schema[key], list):
            yield key, schema[key]


def target(schema: object, reference: object, place: str) -> tuple[str, Any]:
    """The target of ``$ref``, with its place. It must be a pointer into this document; other documents are not read."""
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
            check_base(part, reference)
    return reference, part


def check_base(part: Schema, place: str) -> None:
    """Raise RequestError for keywords that would change the base of references."""
    for key in ("$id", "id"):
        if isinstance(part.get(key), str):
            raise RequestError(f"json: at {place}/{key}: expected none inside a schema, found {show(part[key])}")
