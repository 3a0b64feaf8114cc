"""Forbids further properties of objects across combined schemas: ``unevaluatedProperties: false``.

The compiler reads ``additionalProperties``, which sees the ``properties`` beside it only. Here an object that is put together
from parts (allOf, anyOf, $ref, ... beside properties) gets the names of all its parts, and then no others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from gumba.errors import RequestError
from gumba.sampling.structured.json_pointers import Schema, subschemas, target

#: Maximum number of values in the copies of references' targets beside properties.
MAX_COPIED = 10_000
#: Maximum number of parts that are visited, where shared parts count once per object.
MAX_LOOKED_AT = 100_000
#: Maximum nesting of such copies, which are visited recursively.
MAX_OPEN = 50

_LISTS = ("allOf", "anyOf", "oneOf")
_PARTS = ("if", "then", "else")
_FURTHER = ("additionalProperties", "patternProperties", "propertyNames")


def close_objects(schema: object, everywhere: bool = False) -> None:
    """Close the objects of ``schema``, in place, which is checked afterwards.

    Those that say ``unevaluatedProperties: false``; with ``everywhere`` all that have properties and say nothing of further
    ones, as llama.cpp reads schemas: those without a type are objects then. Raises RequestError where that would take too
    many copies of referenced parts.
    """
    if isinstance(schema, dict):
        _Closing(schema, everywhere).run()


class _Closing:
    def __init__(self, root: Schema, everywhere: bool) -> None:
        self._root, self._everywhere = root, everywhere
        self._seen: dict[int, Any] = {}  # keeps the objects too, so that their ids stay unique
        self._copied = self._looked_at = 0
        self._open: list[str] = []  # references whose copies are being visited
        self._waiting: list[Any] = [root]

    def run(self) -> None:
        """Visit the whole schema and the targets of its references."""
        while self._waiting:
            self.visit(self._waiting.pop(), within=False)

    def visit(self, node: object, within: bool) -> None:
        """Close ``node`` and queue its contents. ``within``: it is a part of an object that is closed as a whole."""
        if not isinstance(node, dict) or id(node) in self._seen:
            return
        self._seen[id(node)] = node
        combined = not within and self._wants(node) and self._combined(node)
        if within or combined:
            opened = self._copy_reference(node)
            if combined:
                self._close(node)
            for key, part in list(self._parts(node)):
                if key != "$ref":
                    self.visit(part, within=True)
            if opened:
                self._open.pop()
        else:
            if self._wants(node) and ("properties" in node or "unevaluatedProperties" in node):
                self._close(node)
            self._waiting.append(self._target(node.get("$ref")))
        self._waiting += [part for _, part in subschemas(node)]

    def _combined(self, node: Schema) -> bool:
        """Whether the properties of ``node`` come from several parts that apply together."""
        keys = {key for key, _ in self._parts(node)}
        explicit = "unevaluatedProperties" in node
        if not explicit and "properties" not in node and "allOf" not in keys and len(keys) < 2:
            return False  # only a reference or a choice: its targets are closed separately
        named = [key for key, part in self._parts(node) if self._names(part)]
        if explicit:
            return bool(named)
        together = "properties" in node or "allOf" in named or len(set(named)) > 1
        return together and len(named) + ("properties" in node) > 1

    def _wants(self, node: Schema) -> bool:
        if "unevaluatedProperties" in node:
            return node["unevaluatedProperties"] is False
        return self._everywhere and "additionalProperties" not in node

    def _close(self, node: Schema) -> None:
        """Allow only the properties of ``node`` and its parts, unless one of them has a keyword for further properties."""
        if any(key in part for part in self._all_parts(node) for key in _FURTHER):
            return
        own, names = node.get("properties", {}), self._names(node)
        if isinstance(own, dict) and (names or "unevaluatedProperties" in node):
            node["properties"] = {**own, **{name: True for name in names if name not in own}}
            node["additionalProperties"] = False
            node.pop("unevaluatedProperties", None)
            if self._everywhere:
                node.setdefault("type", "object")

    def _parts(self, node: Schema) -> Iterator[tuple[str, Any]]:
        """(keyword, schema) of the parts that apply to the same value."""
        for key in _LISTS:
            if isinstance(node.get(key), list):
                yield from ((key, part) for part in node[key])
        yield from ((key, node[key]) for key in _PARTS if key in node)
        if isinstance(node.get("dependentSchemas"), dict):
            yield from (("dependentSchemas", part) for part in node["dependentSchemas"].values())
        if "$ref" in node:
            yield "$ref", self._target(node["$ref"])

    def _target(self, reference: object) -> Any:
        try:
            return target(self._root, reference, "#")[1]
        except RequestError:
            return None  # reported when the schema is checked

    def _all_parts(self, node: object) -> list[Schema]:
        """``node`` and its parts at any depth, without duplicates."""
        nodes: dict[int, Schema] = {}
        waiting = [node]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict) and id(item) not in nodes:
                self._looked_at += 1
                if self._looked_at > MAX_LOOKED_AT:
                    raise RequestError("json: too many references from one to the next in combined objects")
                nodes[id(item)] = item
                waiting += [part for _, part in reversed(list(self._parts(item)))]
        return list(nodes.values())

    def _names(self, node: object) -> dict[str, None]:
        """The properties of ``node`` and of its parts, in their order."""
        names: dict[str, None] = {}
        for part in self._all_parts(node):
            if isinstance(part.get("properties"), dict):
                names |= dict.fromkeys(part["properties"])
        return names

    def _copy_reference(self, node: Schema) -> bool:
        """Replace ``$ref`` by a copy of its target, which is closed separately elsewhere."""
        part = self._target(node.get("$ref"))
        if not isinstance(part, dict) or node["$ref"] in self._open:
            return False
        self._copied += _size(part)
        if self._copied > MAX_COPIED or len(self._open) >= MAX_OPEN:
            raise RequestError(
                f"json: references beside properties would be copied to more than {MAX_COPIED} values or {MAX_OPEN} deep, "
                "expected fewer"
            )
        self._open.append(node.pop("$ref"))
        opened = copy.deepcopy(part)
        node["allOf"] = [*node.get("allOf", ()), opened]
        self.visit(opened, within=True)
        return True


def _size(value: object) -> int:
    """The number of values in a JSON value, nested ones included."""
    waiting, n_values = [value], 0
    while waiting:
        item = waiting.pop()
        n_values += 1
        waiting.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return n_values
