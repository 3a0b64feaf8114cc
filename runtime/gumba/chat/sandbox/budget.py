"""The limits of rendering a chat template, and the sizes of values: see ``gumba.chat.sandbox.environment``.

Sizes are bytes, and freed values still count: the total is an upper bound of what a rendering holds at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from gumba.errors import TemplateError

MAX_SECONDS = 2.0
MAX_OUTPUT = 8 << 20  # bytes of the result, and of any one value
MAX_MADE = 64 << 20  # bytes of all values made on the way
MAX_ITEMS = 200_000  # items of a list, with all that it contains
MAX_STEPS = 1_000_000  # passes of loops, calls, operators
MAX_INT_BITS = 4096
MAX_WIDTH = 1000  # padding and precision, in characters

#: Formats, of ``%`` and of ``str.format``, with a width of four digits or one that is computed.
LONG_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")
LONG_BRACES = re.compile(r"\{[^{}]*\d{4}|\{[^{}]+\{")


class Budget:
    """The remaining time, steps and bytes of one rendering. Every method raises TemplateError when a limit is exceeded."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + MAX_SECONDS
        self.steps = 0
        self.made = 0

    def step(self) -> None:
        """Count a pass of a loop, a call or an operator."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            refuse(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            refuse(f"it takes more than {MAX_SECONDS:g} s")

    def make(self, size: int) -> None:
        """Count a value of ``size`` bytes."""
        if size > MAX_OUTPUT:
            refuse(f"it makes a value of {size} bytes; the limit is {MAX_OUTPUT}")
        self.made += size
        if self.made > MAX_MADE:
            refuse(f"it makes more than {MAX_MADE} bytes on the way")


_budget: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("gumba_template_budget", default=None)


def budget() -> Budget:
    """The budget of the current rendering; a new one outside of renderings."""
    return _budget.get() or Budget()


@contextlib.contextmanager
def renewed() -> Iterator[Budget]:
    """Run a rendering with a new budget."""
    token = _budget.set(Budget())
    try:
        yield budget()
    finally:
        _budget.reset(token)


def refuse(why: str) -> NoReturn:
    """End the rendering with a TemplateError."""
    raise TemplateError(f"the chat template was stopped: {why}")


def char_width(text: str) -> int:
    """Upper bound of the bytes per character: 1, 2 or 4 in long texts."""
    if text.isascii():
        return 1
    # An upper bound, because the header has 56 bytes or more. Short texts, where it is not tight, count as the widest.
    return max(1, min(4, -(-(sys.getsizeof(text) - 56) // len(text)))) if len(text) > 64 else 4


def text_size(texts: Iterable[str]) -> int:
    """Bytes of texts that are joined: one wide character widens all."""
    length, width = 0, 1
    for text in texts:
        length += len(text)
        if width < 4:
            width = max(width, char_width(text))
    return length * width


def _shallow_size(value: object) -> int:
    """Bytes of a text or list, without what a list contains."""
    if isinstance(value, str):
        return len(value) * char_width(value)
    return 64 + 16 * len(value) if isinstance(value, list | tuple | dict) else 1


def measure(value: object) -> int:
    """Bytes of a value with its contents, which count as often as they would be printed."""
    if isinstance(value, str):
        return len(value) * char_width(value)
    if not isinstance(value, list | tuple | dict):
        return 1
    size = items = 0
    left: list[Any] = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            size += 48 + len(item) * char_width(item)
        elif isinstance(item, list | tuple | dict):
            items += len(item)
            size += 64 + 16 * len(item)
            if items <= MAX_ITEMS:
                left.extend(item)
                if isinstance(item, dict):
                    size += 168 + 48 * len(item)
                    left.extend(item.values())
        else:
            size += 32
        if items > MAX_ITEMS:
            refuse(f"a list holds more than {MAX_ITEMS} items in all")
        if size > MAX_OUTPUT:
            refuse(f"a list holds more than {MAX_OUTPUT} bytes in all")
    return size


def check_number(value: object) -> None:
    """Refuse a very long number."""
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        refuse(f"a number has more than {MAX_INT_BITS} bits")


def check_format(template: str, values: Iterable[object], long_width: re.Pattern[str]) -> None:
    """Check a ``%`` or ``str.format`` before it runs: no long padding, and enough budget for every value in every place."""
    if long_width.search(template):
        refuse(f"a format has a computed width, or one of more than {MAX_WIDTH}")
    places = template.count("%") + template.count("{")
    budget().make(char_width(template) * (len(template) + places * (MAX_WIDTH + sum(map(measure, values)))))


def binary_size(operator: str, left: object, right: object) -> int:
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
        check_format(left, right if isinstance(right, tuple) else (right,), LONG_PERCENT)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        return text_size((left, right))
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        check_list(range(len(left) + len(right)))
        return _shallow_size(left) + _shallow_size(right)
    return 1


def check_list(values: object) -> None:
    """Refuse a very long list."""
    if hasattr(values, "__len__") and len(values) > MAX_ITEMS:
        refuse(f"a list would hold more than {MAX_ITEMS} items")
