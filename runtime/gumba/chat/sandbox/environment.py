"""A jinja2 environment that runs templates from untrusted files in bounded time and memory.

jinja2's immutable sandbox stops a template from reaching Python. It does not stop ``'a' * 10**9``, ``x ~ x`` in a loop,
lists that contain themselves thirty times over, or a million passes of an empty loop. Here:

- Every operator that can make a value larger, every call, filter and test, and every pass of a loop reports to a `Budget`,
  which counts steps, checks the clock and adds up the sizes of all values. jinja2 has no hooks for ``~``, slices,
  comparisons, list and dict literals and the iterables of loops, so the syntax tree is rewritten to pass them through filters
  of this package (whose names a template cannot write).
- Allowed filters and methods are listed. Those that repeat or pad (``center``, ``wordwrap``, ``lipsum`` ...) are not among
  them, and the arguments of the others are checked before they run, because they cannot be stopped afterwards.
- Nothing is computed at compile time, and a syntax tree with too many nodes is not compiled.

The budget and the sizes are in ``gumba.chat.sandbox.budget``, the filters in ``gumba.chat.sandbox.filters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from gumba.chat.sandbox.budget import (
    LONG_BRACES,
    MAX_OUTPUT,
    binary_size,
    budget,
    check_format,
    check_number,
    measure,
    refuse,
    renewed,
    text_size,
)
from gumba.chat.sandbox.filters import check_method, counted_filters, counted_tests, join_counted, text_of

MAX_NODES = 30_000  # nodes of the syntax tree

_STR_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper",
    "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip


class _Rewriter(NodeTransformer):
    """Passes iterables of loops, ``~``, slices, comparisons and literals through filters whose names begin with a space."""

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

    def _visit_literal(self, node: Any) -> object:
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node
        return self._through(" measured", node)

    visit_List = _visit_literal
    visit_Dict = _visit_literal
    visit_Tuple = _visit_literal


class _Namespace(jinja2.utils.Namespace):
    """A namespace that is printed without its attributes: namespaces can contain one another, many times over."""

    def __repr__(self) -> str:
        return "<namespace>"


class GenerationTag(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the answer for training; here it is just its contents."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


#: Keywords that compiled templates pass to every call inside a loop or a block that sets variables.
_OWN_KEYWORDS = ("_loop_vars", "_block_vars")


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
        self.filters = counted_filters(self.filters)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = dict(counted_tests(tests))
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals["namespace"] = _Namespace

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of a block or macro."""
        texts = list(parts)
        budget().make(text_size(texts))
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            refuse(f"it has more than {MAX_NODES} parts")
        return tree

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, int | float | bytes | range):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: object, **kwargs: object) -> str:
            check_format(value.__self__, (*args, *kwargs.values()), LONG_BRACES)
            return wrapped(*args, **kwargs)

        return checked

    def getitem(self, obj: object, argument: object) -> Any:
        budget().step()
        return super().getitem(obj, argument)

    def getattr(self, obj: object, attribute: str) -> Any:
        budget().step()
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: object, right: object) -> Any:
        spent = budget()
        spent.step()
        spent.make(binary_size(operator, left, right))
        result = super().call_binop(context, operator, left, right)
        check_number(result)
        if operator == "%":
            spent.make(measure(result))
        return result

    def call(__self, __context: Any, __obj: Any, *args: object, **kwargs: object) -> Any:
        spent = budget()
        spent.step()
        given = {name: value for name, value in kwargs.items() if name not in _OWN_KEYWORDS}
        for value in (*args, *given.values()):
            measure(value)
            check_number(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join" and len(args) == 1:
                return join_counted(args[0], owner)  # counts while it joins: the argument may be a generator
            check_method(owner, __obj.__name__, args, given)
        result = super().call(__context, __obj, *args, **kwargs)
        spent.make(measure(result))
        return result


def _finalize(value: object) -> object:
    """Count a value before it is printed."""
    spent = budget()
    spent.step()
    if isinstance(value, str):
        spent.make(measure(value))
        return value
    return value if isinstance(value, jinja2.Undefined) else text_of(value)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Render with a new `Budget`. Raises TemplateError when a limit is exceeded, and what the template raises."""
    with renewed() as spent:
        parts: list[str] = []
        size = 0
        for part in template.generate(variables):
            size += len(part)
            if size > MAX_OUTPUT:
                refuse(f"its output is longer than {MAX_OUTPUT} characters")
            spent.step()
            parts.append(part)
        return "".join(parts)
