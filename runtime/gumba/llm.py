"""``LLM``: a model file, loaded and ready to generate."""

from __future__ import annotations

import functools
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gumba import session
from gumba.conversation import Conversation
from gumba.engine.beam import BeamSearch
from gumba.engine.contrastive import ContrastiveSearch
from gumba.engine.draft import ModelDrafter
from gumba.engine.engine import Engine
from gumba.engine.lookup import PromptLookup
from gumba.engine.sequence import Embedding, Generation, Scoring
from gumba.errors import EngineError, ModelError, RequestError, ResourceError
from gumba.gguf import GGUFFile
from gumba.loaded import LoadedModel
from gumba.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    FinishReason,
    KVUsage,
    Logprobs,
    RequestOutput,
    StreamOutput,
)
from gumba.params import BeamSearchParams, ContrastiveSearchParams, SamplingParams, require_count, require_number, show
from gumba.sampling.healing import HealedDecoder, Healing, healable
from gumba.sampling.state import SamplerState
from gumba.sampling.words import bad_word_sequences, breaker_sequences
from gumba.text import ChatTemplate, StreamDecoder, Tokenizer, encode_chat

if TYPE_CHECKING:
    from gumba.models import Model
    from gumba.sampling.constraints import Constraint

#: A prompt: text, or token ids.
Prompt = str | Sequence[int] | np.ndarray[Any, Any]
Messages = Sequence[Mapping[str, Any]]
#: Told how many tokens of prompts have been read, and how many there are.
PromptProgress = Callable[[int, int], object]


#: From the seed of one answer to that of the next: the golden ratio's fraction of 2**64.
_SEED_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class _Request:
    """What was asked of one prompt, and the sequences that answer it."""

    prompt: str | None
    generations: list[Generation]

    def output(self) -> RequestOutput:
        """The result, when all have ended."""
        first = self.generations[0]
        found = (
            sorted(self.generations, key=_mean_logprob) if len(self.generations) > first.params.n else self.generations
        )
        outputs = []
        for index, each in enumerate(found[: first.params.n]):
            last = each.outputs[-1]
            assert last.finish_reason is not None and last.timings is not None
            text = "".join(output.text for output in each.outputs)
            logprobs = [output.logprobs for output in each.outputs if output.logprobs is not None]
            asked = None if each.params.logprobs is None else logprobs
            outputs.append(CompletionOutput(index, text, each.answer, last.finish_reason, last.timings, asked))
        return RequestOutput(self.prompt, first.prompt, outputs, first.prompt_logprobs)


def _mean_logprob(generation: Generation) -> float:
    """Of all its tokens, with the sign changed: the likeliest first. Every answer of ``best_of`` has log-probabilities."""
    logprobs = [output.logprobs.logprob for output in generation.outputs if output.logprobs is not None]
    return -sum(logprobs) / len(logprobs) if logprobs else 0.0


def _report(generations: Sequence[Generation], progress: PromptProgress | None) -> None:
    """Have ``progress`` told of the prompts of ``generations``, each of which counts once."""
    if progress is None:
        return
    first = [each for each in generations if each.leader is None]
    total, read = sum(each.n_prompt for each in first), [0] * len(first)

    def told(index: int) -> Callable[[int, int], object]:
        def tell(done: int, _: int) -> object:
            read[index] = max(read[index], done)
            return progress(sum(read), total)

        return tell

    for index, each in enumerate(first):
        each.on_prompt = told(index)


def _answers(params: SamplingParams) -> int:
    """Answers to compute, of which ``n`` are returned."""
    return params.n if params.best_of is None else params.best_of


class LLM:
    """A language model from a GGUF file.

    Several threads may call it at once: their requests are computed together. It must be loaded in the process that
    uses it.

    Args:
        path: The GGUF file (of a sharded one, the first shard).
        n_ctx: Tokens that prompt and answer may have together; None: what the model was trained for, at most 4096.
        n_threads: Threads to compute with; None: as many as this process has cores for.
        max_batch_tokens: Most tokens computed in one step. Cancelling takes effect between steps.
        max_sequences: Most requests computed at once; others wait.
        max_queue: Most requests that may wait; one more is a QueueFullError. None: any number.
        kv_tokens: Tokens that the KV cache holds, for all requests together, kept beginnings included.
        kv_memory: As many tokens as fit so many bytes. Where neither is given: four requests of ``n_ctx``, or as many, but at
            least one, as fit an eighth of the memory there is. Memory is taken only as it fills.
        kv_type: How the KV cache holds keys and values: "f16", "bf16", "f32", or "q8_0" in half the memory; None: bf16
            on processors that multiply it (twice as fast), else f16.
        draft_model: A smaller model of the same vocabulary that guesses tokens, which this one checks several at a time:
            the same answers, sooner where the guesses are good.
        draft_tokens: Tokens that it guesses at a time, at most.
        unload_after: Seconds without a request after which the model's memory is given back; the next request loads it again.
            None keeps it.
        progress: Called with the loaded fraction, 0 to 1, while loading.

    Raises:
        GGUFError: The file is not well-formed.
        ModelError: It is no model that can be run (UnsupportedError: not by this version).
        TokenizerError: Its vocabulary is inconsistent.
        ResourceError: It does not fit the memory.
        RequestError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        max_batch_tokens: int = 512,
        max_sequences: int = 32,
        max_queue: int | None = None,
        kv_tokens: int | None = None,
        kv_memory: int | None = None,
        kv_type: str | None = None,
        draft_model: str | PathLike[str] | None = None,
        draft_tokens: int = 4,
        unload_after: float | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        draft_tokens = require_count("draft_tokens", draft_tokens, 1, 64)
        max_sequences = require_count("max_sequences", max_sequences, 1)
        if unload_after is not None:
            unload_after = require_number("unload_after", unload_after, 0.0, 1e9)
        max_queue = None if max_queue is None else require_count("max_queue", max_queue, 0)
        self._gguf = GGUFFile(path)
        try:
            self._tokenizer = Tokenizer.from_gguf(self._gguf)
            self._loaded = LoadedModel(
                self._gguf,
                self._tokenizer,
                draft_model,
                progress,
                n_ctx=n_ctx,
                n_threads=n_threads,
                max_batch_tokens=max_batch_tokens,
                kv_tokens=kv_tokens,
                kv_memory=kv_memory,
                kv_type=kv_type,
            )
        except BaseException:
            self._gguf.close()
            raise
        self._draft_tokens = draft_tokens
        self._engine = Engine(
            self._model,
            self._tokenizer.n_vocab,
            max_sequences=max_sequences,
            max_queue=max_queue,
            also_close=[] if self._draft is None else [self._draft],
            unload_after=unload_after,
            load=self._loaded.load,
        )
        self._template: ChatTemplate | None = None

    @property
    def _model(self) -> Model:
        return self._loaded.model

    @property
    def _draft(self) -> Model | None:
        return self._loaded.draft

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return self._tokenizer

    @property
    def model(self) -> Model:
        """The model itself, below the engine."""
        return self._model

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, by key."""
        return self._gguf.metadata

    @property
    def chat_template(self) -> ChatTemplate:
        """The file's chat template. Raises TemplateError when it is missing or wrong."""
        if self._template is None:
            self._template = ChatTemplate.from_gguf(self._gguf, self._tokenizer)
        return self._template

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, progress: PromptProgress | None = None
    ) -> Iterator[StreamOutput]:
        """Generate from ``prompt`` (text, or token ids), one StreamOutput per token.

        Text is encoded with the tokens that the model wants around it (BOS), but names of special tokens in it stay
        text. The prompt is checked now; computing begins with the first item. Closing the iterator cancels the
        request. ``progress(done, total)`` is called in the engine's thread as the prompt's tokens are read.

        Raises:
            RequestError: The prompt is empty, too long for the context or has an id out of range; or params are wrong.
            TokenizerError: The text cannot be encoded.
            ModelError: While iterating: the model's logits are not finite.
            EngineError: The LLM is closed, or was loaded before this process was forked.
        """
        generations = self._streamed(self._prompt_ids(prompt), params)
        _report(generations, progress)
        return self._engine.stream(generations)

    def generate(
        self,
        prompts: str | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: PromptProgress | None = None,
    ) -> list[RequestOutput]:
        """Generate from all ``prompts`` (a text, or a list of texts and lists of token ids), computed together.

        ``params`` is for all, or a list of one for each. The results are in the order of the prompts; each is what
        the prompt would give alone. ``progress`` as of ``stream``, over all prompts. Raises as ``stream`` does; then no
        result is returned.
        """
        requests = self._requests(prompts, params)
        generations = [each for request in requests for each in request.generations]
        _report(generations, progress)
        self._engine.finish(generations)
        return [request.output() for request in requests]

    async def agenerate(
        self, prompts: str | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """As ``generate``, for an event loop, which goes on meanwhile. Cancelling the task cancels the requests."""
        requests = self._requests(prompts, params)
        await self._engine.afinish([each for request in requests for each in request.generations])
        return [request.output() for request in requests]

    def astream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[StreamOutput]:
        """As ``stream``, for an event loop."""
        return self._engine.astream(self._streamed(self._prompt_ids(prompt), params))

    def beam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The likeliest answers to all ``prompts`` (as ``generate`` takes them), found by beam search.

        The ``params.n`` best of each, fewer only where no more can be formed. Scores and answers are those of
        ``generate(num_beams=...)`` of transformers. Raises as ``stream`` does; then no result is returned.
        """
        searches = self._searches(prompts, params)
        self._engine.finish([search for _, search in searches])
        return [self._found(prompt, search) for prompt, search in searches]

    async def abeam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """As ``beam_search``, for an event loop."""
        searches = self._searches(prompts, params)
        await self._engine.afinish([search for _, search in searches])
        return [self._found(prompt, search) for prompt, search in searches]

    def contrastive_search(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None = None
    ) -> list[RequestOutput]:
        """One answer to each of ``prompts`` (as ``generate`` takes them), found by contrastive search.

        Raises as ``stream`` does; then no result is returned.
        """
        if params is None:
            params = ContrastiveSearchParams()
        if not isinstance(params, ContrastiveSearchParams):
            raise RequestError(f"params: expected ContrastiveSearchParams, found {show(params)}")
        asked, searches = _listed(prompts), []
        for prompt in asked:
            ids = self._prompt_ids(prompt)
            ends, size = self._end_ids(ids, params, "prompt"), self._model.config.n_embd
            searches.append(ContrastiveSearch(ids, params, end_ids=ends, capacity=self._engine.capacity, n_embd=size))
        self._engine.finish(searches)
        outputs = []
        for prompt, search in zip(asked, searches):
            assert search.finish_reason is not None
            text = self._text(search.answer, search.finish_reason, params.skip_special_tokens)
            answer = CompletionOutput(0, text, search.answer, search.finish_reason, search.timings())
            outputs.append(RequestOutput(prompt if isinstance(prompt, str) else None, search.tokens, [answer]))
        return outputs

    async def achat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
    ) -> RequestOutput:
        """As ``chat``, for an event loop."""
        request = self._chat_request(messages, params, template_args)
        await self._engine.afinish(request.generations)
        return request.output()

    def achat_stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[StreamOutput]:
        """As ``chat_stream``, for an event loop."""
        ids = self._chat_ids(messages, template_args)
        return self._engine.astream(self._streamed(ids, params, "messages"))

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> RequestOutput:
        """Answer a conversation, a list of ``{"role": ..., "content": ...}``, by the file's chat template.

        ``template_args`` are further variables for the template (``enable_thinking`` of some models). Raises as
        ``stream`` does, and TemplateError.
        """
        request = self._chat_request(messages, params, template_args)
        _report(request.generations, progress)
        self._engine.finish(request.generations)
        return request.output()

    def chat_stream(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> Iterator[StreamOutput]:
        """As ``chat``, one StreamOutput per token, as ``stream`` gives them."""
        ids = self._chat_ids(messages, template_args)
        generations = self._streamed(ids, params, "messages")
        _report(generations, progress)
        return self._engine.stream(generations)

    def conversation(self, **settings: Any) -> Conversation:
        """A new ``Conversation(self, **settings)``: messages and answers, kept together."""
        return Conversation(self, **settings)

    def logits(self, tokens: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits after each of ``tokens``, float32 [len(tokens), n_vocab]: the bare forward pass.

        Raises:
            RequestError: ``tokens`` is empty, longer than the context, or has an id out of range.
            ResourceError: The result does not fit the memory.
            EngineError: The LLM is closed or forked, or ``cancel`` was called.
        """
        self._engine.check_usable()
        ids = self._checked(tokens, "tokens")
        if len(ids) > self._engine.capacity:
            raise RequestError(f"tokens: {len(ids)} tokens do not fit the context of {self._engine.capacity}")
        width = self._model.config.n_vocab
        try:
            scoring = Scoring(ids, width)
        except MemoryError:
            raise ResourceError(
                f"logits of {len(ids)} tokens need {len(ids) * width * 4 / 1e6:.0f} MB, more than there is"
            ) from None
        self._engine.finish([scoring])
        if scoring.finish_reason == "cancelled":
            raise EngineError("cancelled")
        return scoring.logits

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        pooling: Literal["mean", "first", "last"] = "mean",
        normalize: bool = True,
    ) -> np.ndarray[Any, Any]:
        """Vectors that stand for texts, float32 [prompts, n_embd]: the final hidden states, pooled.

        ``prompts`` as of ``generate``. ``pooling``: the mean over all tokens, or the first or the last token alone (which of
        them means something depends on the training; the mean is the usual choice for models not trained for it).
        ``normalize``: to length 1, so that a dot product is the cosine. Raises as ``stream`` does.
        """
        if pooling not in ("mean", "first", "last"):
            raise RequestError(f'pooling: expected "mean", "first" or "last", found {show(pooling)}')
        asked = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(asked, Iterable):
            raise RequestError(f"prompts: expected a text or a list of prompts, found {show(prompts)}")
        sequences = []
        for prompt in asked:
            ids = self._prompt_ids(prompt)  # type: ignore[arg-type]
            if len(ids) > self._engine.capacity:
                raise RequestError(f"prompt: {len(ids)} tokens do not fit the context of {self._engine.capacity}")
            sequences.append(Embedding(ids, self._model.config.n_embd, pooling))
        self._engine.finish(sequences)
        found = np.empty((len(sequences), self._model.config.n_embd), np.float32)
        for row, sequence in zip(found, sequences):
            if sequence.finish_reason == "cancelled":
                raise EngineError("cancelled")
            if not np.isfinite(sequence.vector).all():
                raise ModelError(f"the model's hidden states of a prompt of {sequence.n_prompt} tokens are not finite")
            length = float(np.linalg.norm(sequence.vector)) if normalize else 1.0
            row[:] = sequence.vector / (length or 1.0)
        return found

    def score(self, prompt: Prompt, continuation: Prompt) -> list[Logprobs]:
        """Log-probability of each token of ``continuation`` after ``prompt``, by the model's own logits.

        Both are text (the continuation's own tokens follow the prompt's) or token ids. Raises as ``generate`` does.
        """
        before = self._prompt_ids(prompt)
        if isinstance(continuation, str):
            continuation = self._tokenizer.encode(continuation, add_special=False, parse_special=False)
        ids = before + self._checked(continuation, "continuation")
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        (output,) = self.generate([ids], params)
        if output.finish_reason == "cancelled":
            raise EngineError("cancelled")
        assert output.prompt_logprobs is not None
        return [each for each in output.prompt_logprobs[len(before) :] if each is not None]

    def save_session(self, path: str | PathLike[str], tokens: Sequence[int], notes: Any = None) -> int:
        """Write tokens of a conversation, and what is kept of their KV pages, to a file; the number of tokens so kept.

        ``tokens``: prompt and answer of the last turn, say. ``notes``: anything that JSON can hold, handed back by
        ``load_session``. The file appears whole or not at all. Raises RequestError, ResourceError when it cannot be
        written, EngineError when the LLM is closed.
        """
        ids = self._checked(tokens, "tokens")
        pages, n_kept = self._engine.hold(ids)
        kv = self._model.kv
        try:
            session.write(
                Path(path),
                self._maker(),
                ids,
                n_kept,
                lambda i: self._engine.call(lambda: kv.read(pages[i])),
                notes,
            )
        finally:
            self._engine.release(pages)
        return n_kept

    def load_session(self, path: str | PathLike[str]) -> tuple[list[int], Any]:
        """Take in what ``save_session`` wrote: its tokens and notes. A request that begins with them starts at once.

        Raises RequestError when the file is no session, damaged, or of another model or kv_type; ResourceError when the KV
        cache has no room for it.
        """
        held: list[int] = []

        def take(found: session.Session, page: Callable[[], bytes]) -> None:
            for _ in range(found.n_pages):
                held.append(self._engine.take_page())
                self._engine.call(functools.partial(self._model.kv.write, held[-1], page()))
            self._engine.keep(found.tokens[: found.n_kept], held[:])
            held.clear()

        try:
            found = session.read(Path(path), self._maker(), self._tokenizer.n_vocab, take)
        finally:
            if held:
                self._engine.release(held)
        return found.tokens, found.notes

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self._gguf.fingerprint()

    def _maker(self) -> dict[str, Any]:
        """What KV pages depend on."""
        kv = self._model.kv
        return {
            "model": self._fingerprint,
            "kv_type": kv.layout.kv_type,
            "page_tokens": kv.page_tokens,
            "page_bytes": kv.page_bytes,
        }

    def kv_usage(self) -> KVUsage:
        """Who holds the pages of the KV cache. Raises EngineError when the LLM is closed or forked."""
        return self._engine.kv_usage()

    def clear_cache(self) -> None:
        """Forget what was kept for requests that begin like earlier ones. Raises EngineError when closed or forked."""
        self._engine.clear_cache()

    def cancel(self) -> None:
        """End all requests now running, of all threads, before their next step; their finish_reason is "cancelled".

        May be called from any thread and from a signal handler.
        """
        self._engine.cancel()

    def close(self) -> None:
        """Cancel what is running and free the model. Further calls raise EngineError; closing twice is fine."""
        self._engine.close()
        self._gguf.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _requests(
        self, prompts: str | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[_Request]:
        asked = _listed(prompts)
        each: list[SamplingParams | None]
        each = list(params) if isinstance(params, Sequence) else [params] * len(asked)
        if len(each) != len(asked):
            raise RequestError(f"params: expected one SamplingParams per prompt ({len(asked)}), found {len(each)}")
        return [
            _Request(prompt if isinstance(prompt, str) else None, self._generations(self._prompt_ids(prompt), one))
            for prompt, one in zip(asked, each)
        ]

    def _searches(
        self, prompts: str | Iterable[Prompt], params: BeamSearchParams
    ) -> list[tuple[str | None, BeamSearch]]:
        if not isinstance(params, BeamSearchParams):
            raise RequestError(f"params: expected BeamSearchParams, found {show(params)}")
        searches = []
        for prompt in _listed(prompts):
            ids = self._prompt_ids(prompt)
            ends = self._end_ids(ids, params, "prompt")
            search = BeamSearch(ids, params, end_ids=ends, capacity=self._engine.capacity)
            searches.append((prompt if isinstance(prompt, str) else None, search))
        return searches

    def _found(self, prompt: str | None, search: BeamSearch) -> BeamSearchOutput:
        sequences = []
        for answer in search.answers:
            text = self._text(answer.tokens, answer.reason, search.params.skip_special_tokens)
            sequences.append(BeamSearchSequence(text, answer.tokens, answer.logprob, answer.score, answer.reason))
        return BeamSearchOutput(prompt, search.tokens, sequences, search.timings())

    def _text(self, tokens: list[int], reason: FinishReason, skip_special: bool) -> str:
        """The text of an answer, without the token that ended it."""
        decoder = StreamDecoder(self._tokenizer, skip_special=skip_special)
        return "".join(map(decoder.push, tokens[:-1] if reason == "stop" else tokens)) + decoder.finish()

    def _chat_request(
        self, messages: Messages, params: SamplingParams | None, template_args: Mapping[str, Any] | None
    ) -> _Request:
        return _Request(None, self._generations(self._chat_ids(messages, template_args), params, "messages"))

    def _generations(self, ids: list[int], params: SamplingParams | None, field: str = "prompt") -> list[Generation]:
        """The answers to a checked prompt, not submitted yet."""
        self._engine.check_usable()
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params: expected SamplingParams, found {show(params)}")
        ends = self._end_ids(ids, params, field)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        seeds = [(seed + choice * _SEED_STEP) % 2**64 for choice in range(_answers(params))]
        constraint: Constraint | Healing | None = None
        healed = healable(self._tokenizer, ids) if params.token_healing and field == "prompt" else ""
        if healed:
            constraint = Healing(self._tokenizer, self._tokenizer.token_bytes(ids[-1]))
            ids = ids[:-1]
        if params.structured_outputs is not None:
            from gumba.sampling.constraints import compile_constraint

            constraint = compile_constraint(params.structured_outputs, self._tokenizer)
        sampling = self._sampler_state(params, ids, ends)
        made = [
            Generation(
                ids,
                params,
                seed=seeds[choice],
                sampling=sampling.fork(seeds[choice]),
                decoder=self._decoder(params, len(healed)),
                end_ids=ends,
                capacity=self._engine.capacity,
                choice=choice,
                constraint=None if constraint is None else constraint.fork(),
            )
            for choice in range(_answers(params))
        ]
        for other in made[1:]:
            other.leader = made[0]
        for each in made:
            if params.prompt_lookup_tokens:
                each.drafter = PromptLookup(params.prompt_lookup_tokens)
            elif self._draft is not None:
                each.drafter = ModelDrafter(self._draft, self._tokenizer.n_vocab, self._draft_tokens)
        return made

    def _decoder(self, params: SamplingParams, healed: int) -> StreamDecoder | HealedDecoder:
        """Of an answer whose first ``healed`` characters are the prompt's."""
        decoder = StreamDecoder(self._tokenizer, skip_special=params.skip_special_tokens)
        return HealedDecoder(decoder, healed) if healed else decoder

    def _streamed(self, ids: list[int], params: SamplingParams | None, field: str = "prompt") -> list[Generation]:
        """As ``_generations``, for answers that are handed over as they come."""
        if params is not None and isinstance(params, SamplingParams) and _answers(params) > params.n:
            raise RequestError("best_of: which answers are best is only known at the end, so they cannot be streamed")
        return self._generations(ids, params, field)

    def _end_ids(
        self, ids: list[int], params: SamplingParams | BeamSearchParams | ContrastiveSearchParams, field: str
    ) -> frozenset[int]:
        """Tokens that end an answer to the prompt ``ids``, which is checked to leave room for one."""
        capacity = self._engine.capacity
        if len(ids) >= capacity:
            raise RequestError(
                f"{field}: {len(ids)} tokens leave no room in the context of {capacity}; "
                "shorten the prompt or load the model with a larger n_ctx"
            )
        for token in params.stop_token_ids:
            if token >= self._tokenizer.n_vocab:
                raise RequestError(
                    f"stop_token_ids: expected ids below n_vocab {self._tokenizer.n_vocab}, found {token}"
                )
        ends = frozenset() if params.ignore_eos else self._tokenizer.eog_ids
        return ends | frozenset(params.stop_token_ids)

    def _sampler_state(self, params: SamplingParams, ids: list[int], end_ids: frozenset[int]) -> SamplerState:
        """What the sampler of a generation from the prompt ``ids`` carries."""
        tokenizer, breakers = self._tokenizer, tuple(params.dry_sequence_breakers)
        if _answers(params) > params.n and params.logprobs is None:
            params = replace(params, logprobs=0)
        return SamplerState(
            params,
            tokenizer.n_vocab,
            ids,
            end_ids=end_ids,
            bad_words=bad_word_sequences(tokenizer, params.bad_words) if params.bad_words else (),
            breakers=breaker_sequences(tokenizer, breakers) if params.dry_multiplier > 0 else (),
        )

    def _chat_ids(self, messages: Messages, template_args: Mapping[str, Any] | None) -> list[int]:
        self._engine.check_usable()
        args = {"add_generation_prompt": True, **(template_args or {})}
        for name in args:
            if not isinstance(name, str) or name in ("tokenizer", "template", "messages"):
                raise RequestError(f"template_args: {show(name)} is not the name of a further variable")
        ids = encode_chat(self._tokenizer, self.chat_template, messages, **args)
        return self._checked(ids, "messages")

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        self._engine.check_usable()
        if isinstance(prompt, str):
            prompt = self._tokenizer.encode(prompt, add_special=True, parse_special=False)
        return self._checked(prompt, "prompt")

    def _checked(self, tokens: Any, field: str) -> list[int]:
        """``tokens`` as a list of ids that are all in the vocabulary: kernels index with them."""
        n_vocab = self._tokenizer.n_vocab
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind in "iu":
            tokens = tokens.tolist()
        if not isinstance(tokens, (list, tuple, range)):
            if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Sequence):
                raise RequestError(f"{field}: expected text or a list of token ids, found {show(tokens)}")
            tokens = list(tokens)
        if not tokens:
            raise RequestError(f"{field}: expected at least one token, found none")
        ids: list[int] = []
        for index, token in enumerate(tokens):
            if type(token) is not int and (isinstance(token, bool) or not isinstance(token, Integral)):
                raise RequestError(f"{field}: expected integer token ids, found {show(token)} at index {index}")
            value = int(token)
            if not 0 <= value < n_vocab:
                raise RequestError(
                    f"{field}: expected token ids from 0 to {n_vocab - 1}, found {show(value)} at index {index}"
                )
            ids.append(value)
        return ids


def _listed(prompts: str | Iterable[Prompt]) -> list[Prompt]:
    """A text, or several prompts, as a list of prompts."""
    if not isinstance(prompts, Iterable):
        raise RequestError(f"prompts: expected a text or a list of prompts, found {show(prompts)}")
    asked: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
    for prompt in asked:
        if isinstance(prompt, Integral):
            raise RequestError("prompts: expected a list of prompts; give token ids as a list in that list, [[1, 2]]")
    return asked
