"""Base class of ``LLM``: the loaded model, its engine, and running requests on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from gumba.engine.engine import Engine
from gumba.llm.input_processor import InputProcessor, ParamsOf
from gumba.llm.output_processor import Output, PendingRequest, RequestBatch
from gumba.llm.pooling_inputs import PoolingInputs
from gumba.llm.reloadable_model import ReloadableModel
from gumba.outputs import StreamOutput
from gumba.progress import Progress
from gumba.sampling_params import SamplingParams
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.runner.load import Model

T = TypeVar("T")


class LLMBase:
    """Base class of ``LLM``: runs requests on the engine, blocking or async."""

    _models: ReloadableModel
    _engine: Engine
    _inputs: InputProcessor
    _pooling_inputs: PoolingInputs
    _tokenizer: Tokenizer

    @property
    def model(self) -> Model:
        """The model itself, below the engine."""
        return self._models.model

    async def _afinish(self, batch: RequestBatch[Output]) -> list[Output]:
        await self._engine.afinish(batch.sequences)
        return batch.outputs()

    def _astream(
        self, build: Callable[[], PendingRequest], params: SamplingParams | None
    ) -> AsyncIterator[StreamOutput]:
        """The steps of the request that ``build`` returns; building it takes long with a grammar to compile."""
        if not compiles_grammar(params):
            request = build()
            return request.aparsed(self._engine.astream(request.sequences))

        async def stream() -> AsyncIterator[StreamOutput]:
            request = await build_async(build, params)
            async with contextlib.aclosing(request.aparsed(self._engine.astream(request.sequences))) as steps:
                async for step in steps:
                    yield step

        return stream()


@contextlib.contextmanager
def answer_bar(n_answers: int, shown: bool) -> Iterator[Callable[[object], None]]:
    """A bar on stderr, if ``shown``; yields a function to call after each answer."""
    with Progress("answers", shown=shown) as progress:
        done = itertools.count(1)
        yield lambda _: progress("generating", next(done), n_answers)


def compiles_grammar(params: ParamsOf) -> bool:
    """Whether a grammar has to be compiled, which may take tenths of a second."""
    several = params if isinstance(params, list | tuple) else [params]
    return any(getattr(one, "structured_outputs", None) is not None for one in several)


async def build_async(build: Callable[[], T], params: ParamsOf) -> T:
    """``build()``, in another thread if a grammar has to be compiled, so that the event loop continues meanwhile."""
    return await asyncio.to_thread(build) if compiles_grammar(params) else build()
