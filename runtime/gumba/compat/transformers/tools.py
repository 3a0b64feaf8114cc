"""JSON schemas of Python functions as tools, from their type hints and docstrings, as in transformers."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from gumba.errors import RequestError
from gumba.validation import show

_TYPES: dict[object, dict[str, object]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    Any: {},
}
_SECTION = re.compile(r"^\s*(Args|Arguments|Returns|Raises|Yields|Examples?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def schemas(tools: Sequence[object]) -> list[Any]:
    """OpenAI's schemas of ``tools``, which are schemas or functions.

    Raises RequestError for other values, and for a function whose docstring does not describe it and its arguments.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools: expected a list of functions or JSON schemas, found {show(tools)}")
    listed: list[object] = []
    for i, tool in enumerate(tools):
        if isinstance(tool, Mapping):
            listed.append(dict(tool))
        elif callable(tool):
            listed.append(_schema(tool))
        else:
            raise RequestError(f"tools[{i}]: expected a function or a JSON schema, found {show(tool)}")
    return listed


def _schema(function: Callable[..., object]) -> dict[str, object]:
    name = getattr(function, "__name__", type(function).__name__)
    description, arguments, returned = _documented(inspect.getdoc(function) or "")
    if not description:
        raise RequestError(f"tools: the function {name!r} has no docstring, which describes it to the model")
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise RequestError(f"tools: the type hints of {name!r} cannot be read: {error}") from None
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.name not in hints or parameter.name not in arguments:
            what = "type hint" if parameter.name not in hints else "description in the docstring's Args"
            raise RequestError(f"tools: the argument {parameter.name!r} of {name!r} has no {what}")
        schema = _of_type(hints[parameter.name])
        text = arguments[parameter.name]
        choices = _CHOICES.search(text)
        if choices:
            schema["enum"] = [choice.strip(" \"'[]") for choice in choices.group(1).split(",")]
            text = text[: choices.start()].strip()
        properties[parameter.name] = {**schema, "description": text}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    result: dict[str, object] = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        result["return"] = {**_of_type(hints["return"]), **({"description": returned} if returned else {})}
    return {"type": "function", "function": result}


def _documented(text: str) -> tuple[str, dict[str, str], str]:
    """The description, arguments and result of a docstring in Google's style."""
    marks = list(_SECTION.finditer(text))
    parts = {"": text[: marks[0].start()] if marks else text}
    for mark, after in zip(marks, [*(match.start() for match in marks[1:]), len(text)]):
        parts["Args" if mark.group(1) == "Arguments" else mark.group(1)] = text[mark.end() : after]
    arguments: dict[str, str] = {}
    last = ""
    lines = [line for line in parts.get("Args", "").splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    for line in lines:
        match = _ARGUMENT.match(line)
        if match and len(line) - len(line.lstrip()) == indent:
            last = match.group(1)
            arguments[last] = match.group(2).strip()
        elif last:
            arguments[last] += f" {line.strip()}"
    return parts[""].strip(), arguments, " ".join(parts.get("Returns", "").split())


def _of_type(hint: object) -> dict[str, Any]:
    """The JSON schema of a type hint. Raises RequestError for a type without one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and hint in _TYPES:
        return dict(_TYPES[hint])
    if origin in (Union, types.UnionType):
        kinds = [_of_type(argument) for argument in arguments if argument is not type(None)]
        names = sorted({kind["type"] for kind in kinds if set(kind) == {"type"}})
        schema = kinds[0] if len(kinds) == 1 else {"type": names} if len(names) == len(kinds) else {"anyOf": kinds}
        return {**schema, "nullable": True} if type(None) in arguments else schema
    if origin is Literal:
        names = sorted({_TYPES.get(type(value), {}).get("type", "string") for value in arguments})
        return {"type": names[0] if len(names) == 1 else names, "enum": list(arguments)}
    if origin is tuple and len(arguments) > 1 and Ellipsis not in arguments:
        return {"type": "array", "prefixItems": [_of_type(argument) for argument in arguments]}
    if origin in (list, Sequence):
        return {"type": "array", **({"items": _of_type(arguments[0])} if arguments else {})}
    if origin in (dict, Mapping):
        more = {"additionalProperties": _of_type(arguments[1])} if len(arguments) == 2 else {}
        return {"type": "object", **more}
    raise RequestError(f"tools: gumba has no JSON schema for the type {show(hint)}")
