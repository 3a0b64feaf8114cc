"""A jinja2 environment that runs templates from untrusted files in bounded time and memory.

jinja2's immutable sandbox stops a template from reaching Python. It does not stop ``'a' * 10**9``, ``x ~ x`` in a loop,
lists that contain themselves thirty times over, or a million passes of an empty loop. Here:

- every operator that can make a value larger, every call, filter and test, and every pass of a loop reports to a
  `Budget`, which counts steps, looks at the clock and adds up the sizes of all values made. ``~``, slices, comparisons,
  list and dict literals and the loops' iterables are no hooks of jinja2's, so the syntax tree is rewritten to pass them
  through filters of ours (whose names no template can spell);
- filters and methods are named one by one; those that repeat or pad (``center``, ``wordwrap``, ``lipsum`` ...) are not
  among them, and the arguments of the others are checked before they run, because nothing can stop them afterwards;
- nothing is computed at compile time, and a syntax tree of too many nodes is not compiled.

Sizes are bytes, and nothing made is ever given back: what a rendering holds at once is no more than the total.
"""

from __future__ import annotations

import contextvars
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from gumba.errors import TemplateError

MAX_SECONDS = 2.0
MAX_OUTPUT = 8 << 20  # bytes of the result, and of any one value
MAX_MADE = 64 << 20  # bytes of all values made on the way
MAX_ITEMS = 200_000  # items of a list, with all that it contains
MAX_STEPS = 1_000_000  # passes of loops, calls, operators
MAX_NODES = 30_000  # of the syntax tree
MAX_INT_BITS = 4096
MAX_WIDTH = 1000  # padding and precision, in characters

_LONG_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")
_LONG_BRACES = re.compile(r"\{[^{}]*\d{4}|\{[^{}]+\{")

_FILTERS = {
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "format", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
    "title", "trim", "truncate", "unique", "upper",
}  # fmt: skip
_STR_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
    "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip


class Budget:
    """What one rendering may still use. Every method raises TemplateError when it is used up."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.steps = 0
        self.made = 0

    def step(self) -> None:
        """One more pass of a loop, call or operator."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            refuse(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            refuse(f"it takes more than {MAX_SECONDS:g} s")

    def make(self, size: int) -> None:
        """A value of ``size`` bytes is about to be made, or was."""
        if size > MAX_OUTPUT:
            refuse(f"it makes a value of {size} bytes; the limit is {MAX_OUTPUT}")
        self.made += size
        if self.made > MAX_MADE:
            refuse(f"it makes more than {MAX_MADE} bytes on the way")


_budget: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("gumba_template_budget", default=None)


def budget() -> Budget:
    """The budget of the rendering that runs in this context; a new one outside any."""
    return _budget.get() or Budget()


def refuse(why: str) -> NoReturn:
    raise TemplateError(f"the chat template was stopped: {why}")


def _width(text: str) -> int:
    """Upper bound of the bytes per character: 1, 2 or 4 in long texts."""
    if text.isascii():
        return 1
    # Not less than the characters take: the header has 56 bytes or more. Texts too short to tell count as widest.
    return max(1, min(4, -(-(sys.getsizeof(text) - 56) // len(text)))) if len(text) > 64 else 4


def _text_size(texts: Iterable[str]) -> int:
    """Bytes of texts that are joined: one wide character widens all."""
    length, width = 0, 1
    for text in texts:
        length += len(text)
        if width < 4:
            width = max(width, _width(text))
    return length * width


def _shallow_size(value: Any) -> int:
    """Bytes of a text or list, without what a list contains."""
    if isinstance(value, str):
        return len(value) * _width(value)
    return 64 + 16 * len(value) if isinstance(value, list | tuple | dict) else 1


def measure(value: Any) -> int:
    """Bytes of a value with all that it contains, each as often as it would be printed."""
    if isinstance(value, str):
        return len(value) * _width(value)
    if not isinstance(value, list | tuple | dict):
        return 1
    size = items = 0
    left: list[Any] = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            size += 48 + len(each) * _width(each)
        elif isinstance(each, list | tuple | dict):
            items += len(each)
            size += 64 + 16 * len(each)
            if items <= MAX_ITEMS:
                left.extend(each)
                if isinstance(each, dict):
                    size += 168 + 48 * len(each)
                    left.extend(each.values())
        else:
            size += 32
        if items > MAX_ITEMS:
            refuse(f"a list holds more than {MAX_ITEMS} items in all")
        if size > MAX_OUTPUT:
            refuse(f"a list holds more than {MAX_OUTPUT} bytes in all")
    return size


def _check_number(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        refuse(f"a number has more than {MAX_INT_BITS} bits")


def _check_format(template: str, values: Iterable[Any], long_width: re.Pattern[str]) -> None:
    """Before ``%`` and ``str.format``: no long padding, and room for every value in every place."""
    if long_width.search(template):
        refuse(f"a format has a computed width, or one of more than {MAX_WIDTH}")
    places = template.count("%") + template.count("{")
    budget().make(_width(template) * (len(template) + places * (MAX_WIDTH + sum(map(measure, values)))))


def _binary_size(operator: str, left: Any, right: Any) -> int:
    """Upper bound of the size of ``left operator right``."""
    if operator == "*":
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MAX_INT_BITS:
                refuse(f"a number has more than {MAX_INT_BITS} bits")
            return 1
        times = left if isinstance(left, int) else right
        value = right if isinstance(left, int) else left
        if isinstance(times, int) and isinstance(value, str | list | tuple):
            size: int = measure(value) * max(0, times)
            if not isinstance(value, str) and len(value) * times > MAX_ITEMS:
                refuse(f"a list would hold more than {MAX_ITEMS} items")
            return size
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_INT_BITS:
            refuse(f"a number has more than {MAX_INT_BITS} bits")
    elif operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,), _LONG_PERCENT)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        return _text_size((left, right))
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _check_list(range(len(left) + len(right)))
        return _shallow_size(left) + _shallow_size(right)
    return 1


class _Steps:
    """An iterable that reports every item taken from it."""

    def __init__(self, iterable: Any, spent: Budget) -> None:
        self._iterable = iterable
        self._budget = spent

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._budget.step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


def _steps(iterable: Any) -> Any:
    return _Steps(iterable, budget())


def _measured(value: Any) -> Any:
    spent = budget()
    spent.step()
    if isinstance(value, list | tuple | dict):
        spent.make(measure(value))
    return value


def _concatenate(values: list[Any]) -> str:
    texts = [_text(value) for value in values]
    budget().make(_text_size(texts))
    return "".join(texts)


def _text(value: Any) -> str:
    """``str(value)``, counted."""
    if isinstance(value, str):
        return value
    text = str(_measured(value))
    budget().make(_text_size((text,)))
    return text


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """``value[start:stop:step]``, counted before it is made."""
    spent = budget()
    spent.step()
    if isinstance(value, str | list | tuple):
        taken = len(range(*slice(start, stop, step).indices(len(value))))
        spent.make(taken * _width(value) if isinstance(value, str) else 64 + 16 * taken)
    return value[start:stop:step]


class _Rewriter(NodeTransformer):
    """Passes loops' iterables, ``~``, slices, comparisons and literals through our filters; names begin with a space."""

    @staticmethod
    def _through(name: str, node: Any) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._through(" steps", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self._through(" concatenate", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [node.arg.start, node.arg.stop, node.arg.step]
        taken = self._through(" slice", node.node)
        taken.args = [nodes.Const(None, lineno=node.lineno) if bound is None else bound for bound in bounds]
        return taken

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._through(" measured", node.expr)
        for operand in node.ops:
            operand.expr = self._through(" measured", operand.expr)
        return node

    def _visit_literal(self, node: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node
        return self._through(" measured", node)

    visit_List = _visit_literal
    visit_Dict = _visit_literal
    visit_Tuple = _visit_literal


class _Namespace(jinja2.utils.Namespace):
    """Printed without its attributes: namespaces can hold each other, many times over."""

    def __repr__(self) -> str:
        return "<namespace>"


#: Filters and tests that neither look into their arguments nor make anything new.
_CHEAP = {
    "attr", "count", "d", "default", "first", "items", "last", "length", "boolean", "callable", "defined", "even",
    "false", "float", "integer", "iterable", "mapping", "none", "number", "odd", "sequence", "true", "undefined",
}  # fmt: skip


def _guarded(name: str, function: Callable[..., Any], check: Callable[..., None] | None) -> Callable[..., Any]:
    """A filter or test that measures its arguments and its result, and runs ``check`` on the arguments first."""
    passed = getattr(function, "jinja_pass_arg", None)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        spent = budget()
        spent.step()
        if name in _CHEAP:
            return function(*args, **kwargs)
        visible = args[1:] if passed is not None else args
        for value in (*visible, *kwargs.values()):
            measure(value)
            _check_number(value)
        if check is not None:
            check(*visible, **kwargs)
        result = function(*args, **kwargs)
        spent.make(measure(result))
        return result

    if passed is not None:
        guarded.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return guarded


def _check_width(value: Any, *numbers: Any, **named: Any) -> None:
    for number in (*numbers, *named.values()):
        if isinstance(number, int) and abs(number) > MAX_WIDTH:
            refuse(f"a width or precision of {number}; the limit is {MAX_WIDTH}")


def _check_strip(text: Any, chars: Any = None) -> None:
    if isinstance(chars, str) and len(chars) > MAX_WIDTH:
        refuse(f"a set of {len(chars)} characters to strip")


def _check_replace(text: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old, new = str(text), str(old), str(new)
    spent = budget()
    spent.make(max(_width(text), _width(new)) * (len(text) + text.count(old) * max(0, len(new) - len(old))))


def _check_list(values: Any) -> None:
    if hasattr(values, "__len__") and len(values) > MAX_ITEMS:
        refuse(f"a list would hold more than {MAX_ITEMS} items")


def _check_round(value: Any, precision: Any = 0, method: Any = "common") -> None:
    if isinstance(precision, int) and abs(precision) > 300:
        refuse(f"rounding to {precision} digits")


def _filter_format(template: Any, *args: Any, **kwargs: Any) -> str:
    _check_format(str(template), kwargs.values() if kwargs else args, _LONG_PERCENT)
    return str(template) % (kwargs or args)


def _filter_sum(values: Iterable[Any], attribute: str | None = None, start: Any = 0) -> Any:
    if attribute is not None:
        values = [value[attribute] for value in values]
    total = start
    for value in values:
        budget().make(_binary_size("+", total, value))
        total = total + value
        _check_number(total)
    return total


def _filter_indent(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    _check_width(text, width)
    prefix = width if isinstance(width, str) else " " * width
    text = str(text)
    budget().make(max(_width(text), _width(prefix)) * (len(text) + (text.count("\n") + 1) * len(prefix)))
    lines = text.splitlines() if len(text) < MAX_OUTPUT // 8 else refuse("a very long text is indented")
    if text.endswith("\n"):
        lines.append("")
    return "\n".join(prefix + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))


def _filter_join(values: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [value.get(attribute, "") if isinstance(value, dict) else value[attribute] for value in values]
    parts = [_text(each) for each in values]
    glue = _text(d)
    budget().make(max(_width(glue), *map(_width, parts), 1) * (sum(map(len, parts)) + len(parts) * len(glue)))
    return glue.join(parts)


def _filter_tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers gives it to templates: plain JSON, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_width,
    "slice": _check_width,
    "trim": _check_strip,
    "replace": _check_replace,
    "list": _check_list,
    "round": _check_round,
    "tojson": lambda value, *args, indent=None, **kwargs: _check_width(value, indent),
}


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a method of str runs."""
    if name == "replace":
        _check_replace(text, *args, **kwargs)
    elif name in ("strip", "lstrip", "rstrip"):
        _check_strip(text, *args)
    elif name in ("split", "rsplit"):
        parts = text.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(text) // 8
        if parts > MAX_ITEMS:
            refuse(f"a text is split into more than {MAX_ITEMS} parts")
    elif name == "splitlines" and len(text) > MAX_OUTPUT // 8:
        refuse("a very long text is split into lines")


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the answer for training; here it is just its contents."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates: Hugging Face's conventions, and a `Budget`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
            optimized=False,
            finalize=_finalize,
            cache_size=0,
        )
        filters = {name: self.filters[name] for name in _FILTERS} | {
            "format": _filter_format,
            "indent": _filter_indent,
            "join": _filter_join,
            "sum": _filter_sum,
            "tojson": _filter_tojson,
        }
        self.filters = {name: _guarded(name, each, _CHECKS.get(name)) for name, each in filters.items()}
        self.filters |= {" steps": _steps, " measured": _measured, " concatenate": _concatenate, " slice": _slice}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _guarded(name, each, None) for name, each in tests.items()}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals["namespace"] = _Namespace

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What blocks and macros are joined by."""
        texts = list(parts)
        budget().make(_text_size(texts))
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            refuse(f"it has more than {MAX_NODES} parts")
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, int | float | bytes | range):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (*args, *kwargs.values()), _LONG_BRACES)
            return wrapped(*args, **kwargs)

        return checked

    def getitem(self, obj: Any, argument: Any) -> Any:
        budget().step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        budget().step()
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spent = budget()
        spent.step()
        spent.make(_binary_size(operator, left, right))
        result = super().call_binop(context, operator, left, right)
        _check_number(result)
        if operator == "%":
            spent.make(measure(result))
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        spent = budget()
        spent.step()
        for value in (*args, *kwargs.values()):
            measure(value)
            _check_number(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join" and len(args) == 1:
                return _filter_join(args[0], owner)  # counts while it joins: the argument may be a generator
            _check_method(owner, __obj.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        spent.make(measure(result))
        return result


def _finalize(value: Any) -> Any:
    """Before a value is printed."""
    spent = budget()
    spent.step()
    if isinstance(value, str):
        spent.make(measure(value))
        return value
    return value if isinstance(value, jinja2.Undefined) else _text(value)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render within a new `Budget`. Raises TemplateError, also for whatever the template raises."""
    token = _budget.set(Budget())
    try:
        parts: list[str] = []
        size = 0
        for part in template.generate(variables):
            size += len(part)
            if size > MAX_OUTPUT:
                refuse(f"its output is longer than {MAX_OUTPUT} characters")
            budget().step()
            parts.append(part)
        return "".join(parts)
    finally:
        _budget.reset(token)
