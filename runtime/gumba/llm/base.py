"""What every face of an ``LLM`` stands on: the engine, and answers to requests, waited for or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gumba.engine.engine import Engine
from gumba.llm.chat_stream import aparsed
from gumba.llm.input_processor import InputProcessor, PromptProgress, report
from gumba.llm.output_processor import PendingRequest
from gumba.llm.reloadable_model import ReloadableModel
from gumba.outputs import RequestOutput, StreamOutput
from gumba.progress import Progress
from gumba.sampling_params import SamplingParams
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.runner.load import Model

T = TypeVar("T")


class LLMBase:
    """A loaded model, its engine, and what makes sequences for that of what is asked."""

    _loaded: ReloadableModel
    _engine: Engine
    _inputs: InputProcessor
    _tokenizer: Tokenizer

    @property
    def model(self) -> Model:
        """The model itself, below the engine."""
        return self._loaded.model

    def _run(self, requests: list[PendingRequest], progress: PromptProgress | None, bar: bool) -> list[RequestOutput]:
        generations = [each for request in requests for each in request.generations]
        report(generations, progress)
        with Progress("answers", shown=bar) as shown:
            done = itertools.count(1)
            self._engine.finish(generations, lambda _: shown("generating", next(done), len(generations)))
        return [request.output() for request in requests]

    def _astream(
        self, make: Callable[[], PendingRequest], params: SamplingParams | None
    ) -> AsyncIterator[StreamOutput]:
        if not constrained(params):
            request = make()
            return aparsed(request, self._engine.astream(request.generations))

        async def stream() -> AsyncIterator[StreamOutput]:
            request = await run_in_thread(make, params)
            async with contextlib.aclosing(aparsed(request, self._engine.astream(request.generations))) as steps:
                async for step in steps:
                    yield step

        return stream()

    async def _arun(self, requests: list[PendingRequest], progress: PromptProgress | None) -> list[RequestOutput]:
        generations = [each for request in requests for each in request.generations]
        report(generations, progress)
        await self._engine.afinish(generations)
        return [request.output() for request in requests]


def constrained(params: Any) -> bool:
    """Whether a grammar has to be compiled, which may take tenths of a second."""
    each = params if isinstance(params, list | tuple) else [params]
    return any(getattr(one, "structured_outputs", None) is not None for one in each)


async def run_in_thread(make: Callable[[], T], params: Any) -> T:
    """What ``make`` gives, by another thread where it takes long: the event loop goes on meanwhile."""
    return await asyncio.to_thread(make) if constrained(params) else make()
