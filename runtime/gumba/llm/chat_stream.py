"""Streams of conversations, whose steps are taken apart as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from typing import Any

from gumba.llm.output_processor import PendingRequest
from gumba.outputs import StreamOutput


def parsed(request: PendingRequest, steps: Iterator[StreamOutput]) -> Iterator[StreamOutput]:
    """``steps`` of ``request``'s answers, as its form has them. Closing it closes ``steps``."""
    return steps if request.form is None else _parsed(request, steps)


def aparsed(request: PendingRequest, steps: Any) -> AsyncGenerator[StreamOutput, None]:
    """As ``parsed``, for an event loop: an asynchronous generator."""
    if request.form is not None:
        return _aparsed(request, steps)
    unchanged: AsyncGenerator[StreamOutput, None] = steps
    return unchanged


def _parsed(request: PendingRequest, steps: Any) -> Iterator[StreamOutput]:
    parsers = _parsers(request)
    with closing(steps):
        for step in steps:
            yield parsers[step.choice].step(step)


async def _aparsed(request: PendingRequest, steps: Any) -> AsyncGenerator[StreamOutput, None]:
    parsers = _parsers(request)
    async with aclosing(steps):
        async for step in steps:
            yield parsers[step.choice].step(step)


def _parsers(request: PendingRequest) -> dict[int, Any]:
    return {} if request.form is None else {each.choice: request.form.parser() for each in request.generations}
