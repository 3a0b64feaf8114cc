"""Converts JSON schemas to the text of a GBNF grammar, for applications that include it in a grammar of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gumba.compat.llama_cpp.errors import OptionError
from gumba.errors import RequestError
from gumba.sampling.structured.json_closing import close_objects
from gumba.sampling.structured.json_pointers import target
from gumba.sampling.structured.json_schema import check_parts, parse_schema
from gumba.validation import show

#: Rules for JSON itself, each with the rules that it uses.
_JSON: dict[str, tuple[str, tuple[str, ...]]] = {
    "space": ('[ \\n]{0,20}', ()),
    "char": ('[^"\\\\\\x00-\\x1f\\x7f] | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})', ()),
    "string": ('"\\"" char* "\\"" space', ("char", "space")),
    "integer": ('"-"? ("0" | [1-9] [0-9]{0,15}) space', ("space",)),
    "number": (
        '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})? space', ("space",)
    ),
    "boolean": ('("true" | "false") space', ("space",)),
    "null": ('"null" space', ("space",)),
    "object": (
        '"{" space (string ":" space value ("," space string ":" space value)*)? "}" space', ("string", "value")
    ),
    "array": ('"[" space (value ("," space value)*)? "]" space', ("value", "space")),
    "value": (
        "object | array | string | number | boolean | null", ("object", "array", "string", "number", "boolean", "null")
    ),
}  # fmt: skip
#: Keywords that do not affect which texts match.
_ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id",
    "$defs", "definitions", "format", "discriminator", "contentEncoding", "contentMediaType",
}  # fmt: skip
#: Largest count in GBNF.
MAX_COUNT = 2000
#: Maximum nesting of references: each is written by a recursive call.
MAX_REFERENCES = 50
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def json_schema_to_gbnf(schema: str, prop_order: Sequence[str] | None = None) -> str:
    """The GBNF grammar of a JSON schema's texts. ``prop_order``: names that come first in every object, in this order.

    As in llama.cpp, an object with properties has no others unless the schema allows them. Formats are annotations. Raises
    OptionError (a ValueError) for keywords that it cannot express in GBNF; ``LlamaGrammar.from_json_schema`` supports more.
    """
    if not isinstance(schema, str):
        raise RequestError(f"schema: expected the text of a JSON schema, found {show(schema)}")
    root = parse_schema(schema)
    check_parts(root)
    close_objects(root, everywhere=True)
    return _Writer(root, prop_order or ()).text()


class _Writer:
    def __init__(self, root: object, order: Sequence[str]) -> None:
        self._root, self._order = root, list(order)
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._depth = 0

    def text(self) -> str:
        """The whole grammar."""
        first = self.rule(self._root, "#")
        if "root" not in self._rules:
            self._rules["root"] = first
        return "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())

    def rule(self, schema: object, place: str) -> str:
        """An expression that matches the texts of ``schema``."""
        if schema is True or (isinstance(schema, Mapping) and not set(schema) - _ANNOTATIONS):
            return self._json("value")
        if not isinstance(schema, Mapping):
            raise OptionError(
                f"json_schema_to_gbnf: at {place}: expected a schema that texts fit, found {show(schema)}"
            )
        if "$ref" in schema:
            self._only(schema, place, "$ref")
            return self._reference(schema["$ref"], place)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                parts = schema[key]
                self._only(schema, place, key, "type")
                if not parts or (key == "allOf" and len(parts) != 1):
                    raise OptionError(
                        f"json_schema_to_gbnf: at {place}/{key}: GBNF cannot hold a text to several schemas"
                    )
                return self._either([self.rule(part, f"{place}/{key}/{i}") for i, part in enumerate(parts)])
        if "const" in schema or "enum" in schema:
            self._only(schema, place, "const", "enum", "type")
            options = [schema["const"]] if "const" in schema else schema["enum"]
            return (
                self._either([_literal(json.dumps(option, ensure_ascii=False)) for option in options]) + self._space()
            )
        types = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else None)
        return self._either(
            [self._typed(kind, schema, place) for kind in (types if isinstance(types, list) else [types])]
        )

    def _typed(self, name: object, schema: Mapping[str, object], place: str) -> str:
        if name == "object" and ("properties" in schema or "additionalProperties" in schema):
            self._only(schema, place, "type", "properties", "required", "additionalProperties")
            return self._object(schema, place)
        if name == "array" and ("items" in schema or "prefixItems" in schema or {"minItems", "maxItems"} & set(schema)):
            self._only(schema, place, "type", "items", "prefixItems", "minItems", "maxItems")
            return self._array(schema, place)
        if name == "string" and {"minLength", "maxLength"} & set(schema):
            self._only(schema, place, "type", "minLength", "maxLength")
            least, most = self._count(schema, "minLength", place), self._count(schema, "maxLength", place)
            self._json("string")
            return f'"\\"" char{{{least or 0},{"" if most is None else most}}} "\\"" space'
        self._only(schema, place, "type", "required")
        if name not in _TYPES:
            raise OptionError(f"json_schema_to_gbnf: at {place}/type: expected {', '.join(_TYPES)}, found {show(name)}")
        return self._json(name)

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        """An object: all required members and any optional ones, in order, then additional ones."""
        properties, required = schema.get("properties", {}), schema.get("required", [])
        names = [name for name in self._order if name in properties]
        names += [name for name in properties if name not in names]
        names += [name for name in required if name not in properties]
        members = []
        for name in names:
            value = self.rule(properties.get(name, True), f"{place}/properties/{name}")
            key = _literal(json.dumps(name, ensure_ascii=False))
            members.append((f'{key} {self._space()} ":" space ({value})', name in required))
        further = schema.get("additionalProperties", False)
        if further is not False:
            value = f'{self._json("string")} ":" space ({self.rule(further, f"{place}/additionalProperties")})'
            members.append((f'{value} ("," space {value})*', False))
        name = self._new("object")
        self._rules[name] = f'"{{" {self._space()} {self._members(name, members)} "}}" space'
        return name

    def _members(self, name: str, members: list[tuple[str, bool]]) -> str:
        """An expression of members, of which those not required are optional; ``tail`` rules follow a first member."""
        tails = ['""'] * (len(members) + 1)
        for i in reversed(range(len(members))):
            text, needed = members[i]
            rest = (
                f'"," space {text} {tails[i + 1]}'
                if needed
                else f'(("," space {text} {tails[i + 1]}) | {tails[i + 1]})'
            )
            if i and len(members) > 1:
                tail = f"{name}-tail{i}"
                self._rules[tail] = rest
                tails[i] = tail
        first = []
        for i, (text, needed) in enumerate(members):
            first.append(f"{text} {tails[i + 1]}")
            if needed:
                break
        else:
            first.append('""')
        return self._either(first)

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        head = [self.rule(item, f"{place}/prefixItems/{i}") for i, item in enumerate(schema.get("prefixItems", ()))]
        least, most = self._count(schema, "minItems", place) or 0, self._count(schema, "maxItems", place)
        if head:
            if schema.get("items") not in (None, False) or least not in (0, len(head)) or most not in (None, len(head)):
                raise OptionError(f"json_schema_to_gbnf: at {place}: items after prefixItems are not supported")
            return f'"[" {self._space()} ' + ' "," space '.join(f"({rule})" for rule in head) + ' "]" space'
        if most == 0:
            return f'"[" {self._space()} "]" space'
        body = self.rule(schema.get("items", True), f"{place}/items")
        item = self._new("item")  # a rule of its own: it is written twice
        self._rules[item] = body
        more = f'("," space {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        body = f"{item} {more}" if least else f"({item} {more})?"
        return f'"[" {self._space()} {body} "]" space'

    def _reference(self, reference: object, place: str) -> str:
        where, schema = target(self._root, reference, place)
        if where not in self._references:
            self._depth += 1
            if self._depth > MAX_REFERENCES:
                raise RequestError(
                    f"json_schema_to_gbnf: at {place}/$ref: references lead more than {MAX_REFERENCES} deep, expected fewer"
                )
            name = self._new(re.sub(r"[^a-zA-Z0-9]+", "-", where).strip("-").lower() or "whole")
            self._references[where] = name
            self._rules[name] = '""'  # its place among the rules, since it may use itself
            self._rules[name] = self.rule(schema, where)
            self._depth -= 1
        return self._references[where]

    def _count(self, schema: Mapping[str, object], key: str, place: str) -> int | None:
        value = schema.get(key)
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
            raise RequestError(f"json_schema_to_gbnf: at {place}/{key}: expected 0 to {MAX_COUNT}, found {show(value)}")
        return value

    def _only(self, schema: Mapping[str, object], place: str, *keys: str) -> None:
        further = sorted(set(schema) - _ANNOTATIONS - set(keys))
        if further:
            raise OptionError(
                f"json_schema_to_gbnf: at {place}: {', '.join(further)} not supported beside {', '.join(keys)}: use "
                "LlamaGrammar.from_json_schema"
            )

    def _json(self, name: str) -> str:
        """The name of a rule for JSON itself, which is added with the rules that it uses."""
        if name not in self._rules:
            self._rules[name], used = _JSON[name]
            for rule in used:
                self._json(rule)
        return name

    def _space(self) -> str:
        return " " + self._json("space")

    def _new(self, name: str) -> str:
        """An unused rule name."""
        taken = {*self._rules, *_JSON, "root"}
        names = (name, *(f"{name}{i}" for i in range(2, len(taken) + 3)))
        return next(candidate for candidate in names if candidate not in taken)

    def _either(self, options: Sequence[str]) -> str:
        return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


def _literal(text: str) -> str:
    """A GBNF literal of a text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
