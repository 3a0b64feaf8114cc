"""``SamplingParams``: how one request's tokens are chosen, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from gumba.errors import RequestError

#: Largest value of a count (max_tokens, top_k, repetition_window).
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends. Defaults and order of the filters are llama.cpp's.

    Filters apply in the order repetition penalty, top-k, top-p, min-p, temperature; then one token is drawn.

    Args:
        max_tokens: Most tokens to generate, 1 or more; None goes on to the end of the context.
        temperature: Divides the logits before the draw, 0 to 100. 0 always takes the likeliest token.
        top_k: Keep the ``top_k`` likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens until they hold this much probability, 0 to 1; 1 keeps all.
        min_p: Keep tokens with at least this fraction of the likeliest token's probability, 0 to 1; 0 keeps all.
        repetition_penalty: Divides positive logits and multiplies negative ones of tokens that occurred in the
            window, 0.01 to 100; 1 changes nothing (Keskar et al., CTRL, 2019).
        repetition_window: How many of the last tokens, prompt included, the penalty looks at; -1 is all, 0 is none.
        seed: 0 to 2**64 - 1. The same seed gives the same tokens, alone or beside other requests. None draws a new one.
        stop: A string, or several, that end the text, which then excludes them.
        stop_token_ids: Token ids that end the text like the model's own end-of-generation tokens.
        ignore_eos: Go on after an end-of-generation token.

    Raises:
        RequestError: A value has the wrong type or is out of range; the message names the field.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        values = {
            "max_tokens": None if self.max_tokens is None else require_count("max_tokens", self.max_tokens, 1),
            "temperature": _number("temperature", self.temperature, 0.0, 100.0),
            "top_k": require_count("top_k", self.top_k, 0),
            "top_p": _number("top_p", self.top_p, 0.0, 1.0),
            "min_p": _number("min_p", self.min_p, 0.0, 1.0),
            "repetition_penalty": _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            "repetition_window": require_count("repetition_window", self.repetition_window, -1),
            "seed": None if self.seed is None else require_count("seed", self.seed, 0, 2**64 - 1),
            "stop": _strings("stop", self.stop),
            "stop_token_ids": _ids("stop_token_ids", self.stop_token_ids),
            "ignore_eos": _boolean("ignore_eos", self.ignore_eos),
        }
        for field in fields(self):
            object.__setattr__(self, field.name, values[field.name])


def show(value: object) -> str:
    """A short picture of a value of any kind for an error message."""
    try:
        text = repr(value)
    except Exception:  # a foreign object's own __repr__, or an int too large to print
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def require_count(name: str, value: Any, low: int, high: int = MAX_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(value)}")
    number = int(value)
    if not low <= number <= high:
        raise RequestError(f"{name}: expected an integer from {low} to {high}, found {show(number)}")
    return number


def _number(name: str, value: Any, low: float, high: float) -> float:
    expected = f"{name}: expected a number from {low:g} to {high:g}, found {show(value)}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RequestError(expected)
    try:
        number = float(value)
    except OverflowError:
        raise RequestError(expected) from None
    if math.isnan(number) or not low <= number <= high:
        raise RequestError(expected)
    return number


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected True or False, found {show(value)}")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, (bytes, dict)) or not isinstance(items, Iterable):
        raise RequestError(f"{name}: expected a string or a list of strings, found {show(value)}")
    found = tuple(items)
    for item in found:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name}: expected strings of at least one character, found {show(item)}")
    return found


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise RequestError(f"{name}: expected a list of token ids, found {show(value)}")
    return tuple(require_count(name, item, 0) for item in value)
