"""``LLM``: a model file, loaded and ready to generate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gumba.chat.rerank_template import PairTemplate
from gumba.chat.template import ChatTemplate
from gumba.engine.core import Lent
from gumba.engine.engine import Engine
from gumba.errors import RequestError
from gumba.gguf import GGUFFile
from gumba.llm import session_file
from gumba.llm.base import run_in_thread
from gumba.llm.chat import ChatMixin
from gumba.llm.conversation import Conversation
from gumba.llm.embedding_settings import EmbeddingSettings
from gumba.llm.engine_args import kv_budget, translate_keywords
from gumba.llm.input_processor import InputProcessor, ParamsOf, Prompt, PromptProgress, report, with_token_ids
from gumba.llm.output_processor import PendingRequest
from gumba.llm.pooling import PoolingMixin
from gumba.llm.reloadable_model import ReloadableModel
from gumba.outputs import BeamSearchOutput, KVUsage, RequestOutput, StreamOutput
from gumba.sampling_params import (
    BeamSearchParams,
    ContrastiveSearchParams,
    SamplingParams,
    require_count,
    require_number,
    show,
)
from gumba.store import names_missing_file, resolve
from gumba.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gumba.runner.load import Model


class LLM(ChatMixin, PoolingMixin):
    """A language model from a GGUF file.

    Several threads may call it at once: the engine batches their requests. Load it in the process that uses it.

    Args:
        model: A GGUF file (the first shard of several), a Hugging Face folder, a known name or a model on a hub: the MODEL of
            the commands. Checkpoints are converted once, then cached.
        n_ctx: Context length: tokens of the prompt and the answer together; None: the training context, at most 4096.
        max_model_len: vLLM's name of ``n_ctx``.
        n_threads: Compute threads; None: as many as this process has cores for.
        max_batch_tokens: Maximum number of tokens in one step. Cancelling takes effect between steps.
        max_sequences: Maximum number of running requests; others wait.
        max_queue: Maximum number of waiting requests; one more raises QueueFullError. None: no limit.
        kv_tokens: Size of the KV cache in tokens, for all requests together, cached prefixes included.
        kv_memory: Size of the KV cache in bytes. Without either: four requests of ``n_ctx``, or as many, but at least one, as
            fit into an eighth of the memory. Memory is taken only as the cache fills.
        n_states: For models with recurrent layers (Qwen3.5, LFM2): the number of sequence states, those cached for common
            prefixes included. None: as many as fit into a quarter of ``kv_memory``, or an eighth of the memory.
        kv_type: Data type of the KV cache: "f16", "bf16", "f32", or "q8_0" in half the memory; None: bf16 on processors
            with bf16 instructions (twice as fast), else f16.
        draft_model: A smaller model with the same vocabulary that drafts tokens, which this model verifies several at a
            time: the same answers, sooner if the drafts are good.
        draft_tokens: Maximum number of tokens per draft.
        unload_after: Idle time in seconds before the model is unloaded; the next request loads it again. None: never.
        chat_template: Replaces the file's: the name of a built-in template ("chatml", "llama3", ...:
            ``gumba.chat.named_templates``), a file, Jinja source, or a ``ChatTemplate``.
        progress: Called with the loaded fraction, 0 to 1, while loading.
        engine_args: Other keywords of vLLM, with its meaning (``gumba.llm.engine_args``). ``max_num_seqs``,
            ``max_num_batched_tokens``, ``kv_cache_dtype`` and ``speculative_config`` are synonyms of the above.
            ``gpu_memory_utilization``: the fraction of the available memory, above 0 to 1, for weights and KV cache. ``seed``:
            the seed of requests without one. ``enable_prefix_caching=False``: requests do not share KV pages. Keywords
            about devices and speed (``dtype``, ``enforce_eager``, ``trust_remote_code``, ...) have no effect.

    Raises:
        GGUFError: The file is malformed.
        ModelError: The file is not a model that can run (UnsupportedError: not in this version).
        TokenizerError: The vocabulary is inconsistent.
        ResourceError: The model does not fit into memory.
        RequestError: An argument is out of range, or unknown (also a TypeError).
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        n_ctx: int | None = None,
        max_model_len: int | None = None,
        n_threads: int | None = None,
        max_batch_tokens: int = 512,
        max_sequences: int = 32,
        max_queue: int | None = None,
        kv_tokens: int | None = None,
        kv_memory: int | None = None,
        n_states: int | None = None,
        kv_type: str | None = None,
        draft_model: str | PathLike[str] | None = None,
        draft_tokens: int = 4,
        unload_after: float | None = None,
        chat_template: str | PathLike[str] | ChatTemplate | None = None,
        progress: Callable[[float], None] | None = None,
        **engine_args: Any,
    ) -> None:
        if max_model_len is not None:
            if n_ctx is not None:
                raise RequestError("max_model_len and n_ctx are the same setting: pass only one of them")
            n_ctx = require_count("max_model_len", max_model_len, 1)
        own: dict[str, Any] = {
            "max_batch_tokens": max_batch_tokens,
            "max_sequences": max_sequences,
            "kv_tokens": kv_tokens,
        }
        own |= {"kv_memory": kv_memory, "kv_type": kv_type, "draft_model": draft_model, "draft_tokens": draft_tokens}
        args = translate_keywords(model, engine_args, own, _DEFAULTS)
        settings = args.settings
        draft_tokens = require_count("draft_tokens", settings["draft_tokens"], 1, 64)
        max_sequences = require_count("max_sequences", settings["max_sequences"], 1)
        if unload_after is not None:
            unload_after = require_number("unload_after", unload_after, 0.0, 1e9)
        max_queue = None if max_queue is None else require_count("max_queue", max_queue, 0)
        if progress is not None and not callable(progress):
            raise RequestError(f"progress: expected a function, found {show(progress)}")
        self._gguf = GGUFFile(
            _path("model", model, revision=args.revision, token=args.token, cache_dir=args.download_dir)
        )
        try:
            if args.memory_share is not None:
                settings["kv_memory"] = kv_budget(args.memory_share, self._gguf.file_size)
            self._tokenizer = Tokenizer.from_gguf(self._gguf)
            embedding = EmbeddingSettings.from_gguf(self._gguf)
            if chat_template is not None:
                self.chat_template = self.tool_template = ChatTemplate.given(chat_template, self._tokenizer, self._gguf)
            self._loaded = ReloadableModel(
                self._gguf,
                self._tokenizer,
                None if settings["draft_model"] is None else _path("draft_model", settings["draft_model"]),
                progress,
                n_ctx=n_ctx,
                n_threads=n_threads,
                max_batch_tokens=settings["max_batch_tokens"],
                kv_tokens=kv_tokens,
                kv_memory=settings["kv_memory"],
                n_states=n_states,
                kv_type=settings["kv_type"],
                max_sequences=max_sequences,
            )
        except BaseException:
            self._gguf.close()
            raise
        self._engine = Engine(
            self._loaded.model,
            self._tokenizer.n_vocab,
            max_sequences=max_sequences,
            max_queue=max_queue,
            also_close=[] if self._loaded.draft is None else [self._loaded.draft],
            unload_after=unload_after,
            load=self._loaded.load,
        )
        self._inputs = InputProcessor(
            self._tokenizer,
            check_usable=self._engine.check_usable,
            capacity=self._engine.capacity
            if self._loaded.model.config.causal
            else min(self._engine.capacity, self._loaded.model.max_batch_tokens),
            config=self._loaded.model.config,
            template=lambda tools: self.tool_template if tools else self.chat_template,
            draft_model=None if settings["draft_model"] is None else self._current_draft,
            draft_tokens=draft_tokens,
            pair_template=PairTemplate.from_gguf(self._gguf) if self._loaded.model.config.n_labels else None,
            seed=args.seed,
            prefix_caching=args.prefix_caching,
            embedding=embedding,
        )

    def __repr__(self) -> str:
        return f"LLM({str(self._gguf.path)!r}, n_ctx={self._loaded.model.n_ctx})"

    def _current_draft(self) -> Model | None:
        return self._loaded.draft

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer."""
        return self._tokenizer

    @property
    def file(self) -> GGUFFile:
        """The open model file."""
        return self._gguf

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata, by key."""
        return self._gguf.metadata

    @functools.cached_property
    def chat_template(self) -> ChatTemplate:
        """The file's chat template, or the one chosen instead. Raises TemplateError when it is missing or wrong."""
        return ChatTemplate.from_gguf(self._gguf, self._tokenizer)

    @functools.cached_property
    def tool_template(self) -> ChatTemplate:
        """The one for conversations with tools: a few files have two."""
        several = "tokenizer.chat_template.tool_use" in self._gguf.metadata
        return ChatTemplate.from_gguf(self._gguf, self._tokenizer, "tool_use") if several else self.chat_template

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, progress: PromptProgress | None = None
    ) -> Iterator[StreamOutput]:
        """Generate from ``prompt`` (text, or token ids), one StreamOutput per token.

        Text is encoded with the tokens that the model wants around it (BOS), but names of special tokens in it stay
        text. The prompt is checked now; computing begins with the first item. Closing the iterator cancels the
        request. ``progress(done, total)`` is called in the engine's thread as the prompt's tokens are read.

        Raises:
            RequestError: The prompt is empty, too long for the context or has an id out of range; or params are wrong.
            TokenizerError: The text cannot be encoded.
            ModelError: While iterating: the model's logits are not finite.
            EngineError: The LLM is closed, or was loaded before this process was forked, or this is called in a function that
                the engine calls (a logits processor, a progress callback).
        """
        return self._engine.stream(self._streamed(prompt, sampling_params, progress).generations)

    def astream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, progress: PromptProgress | None = None
    ) -> AsyncIterator[StreamOutput]:
        """As ``stream``, for an event loop. With ``structured_outputs`` the checks come with the first item, too."""
        return self._astream(lambda: self._streamed(prompt, sampling_params, progress), sampling_params)

    def generate(
        self,
        prompts: str | Iterable[Prompt] | None = None,
        sampling_params: ParamsOf = None,
        *,
        prompt_token_ids: Sequence[Any] | None = None,
        progress: PromptProgress | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Generate from all ``prompts`` (a text, or a list of texts and lists of token ids), computed together.

        A prompt may also be one of vLLM's dictionaries, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``.
        ``prompt_token_ids``: vLLM's other way to give a list of token ids, or a list of such lists; they are what counts
        where ``prompts`` has texts, too. ``sampling_params`` is for all, or a list of one for each. The results are in the
        order of the prompts; each is what the prompt would give alone. ``progress`` as of ``stream``, over all prompts;
        ``use_tqdm``: show a bar on stderr, if that is a terminal. Raises as ``stream`` does; then no result is returned.
        """
        prompts = with_token_ids(prompts, prompt_token_ids)
        return self._run(self._inputs.completions(prompts, sampling_params), progress, use_tqdm)

    async def agenerate(
        self,
        prompts: str | Iterable[Prompt] | None = None,
        sampling_params: ParamsOf = None,
        *,
        prompt_token_ids: Sequence[Any] | None = None,
        progress: PromptProgress | None = None,
    ) -> list[RequestOutput]:
        """As ``generate``, for an event loop, which goes on meanwhile. Cancelling the task cancels the requests."""
        asked = with_token_ids(prompts, prompt_token_ids)
        requests = await run_in_thread(lambda: self._inputs.completions(asked, sampling_params), sampling_params)
        return await self._arun(requests, progress)

    def beam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The likeliest answers to all ``prompts`` (as ``generate`` takes them), found by beam search.

        The ``params.n`` best of each, fewer only where no more can be formed. Scores and answers are those of
        ``generate(num_beams=...)`` of transformers. Raises as ``stream`` does; then no result is returned.
        """
        requests = self._inputs.beam_searches(prompts, params)
        self._engine.finish([each.search for each in requests])
        return [each.output() for each in requests]

    async def abeam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """As ``beam_search``, for an event loop."""
        requests = self._inputs.beam_searches(prompts, params)
        await self._engine.afinish([each.search for each in requests])
        return [each.output() for each in requests]

    def contrastive_search(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None = None
    ) -> list[RequestOutput]:
        """One answer to each of ``prompts`` (as ``generate`` takes them), found by contrastive search.

        Raises as ``stream`` does; then no result is returned.
        """
        requests = self._inputs.contrastive_searches(prompts, params)
        self._engine.finish([each.search for each in requests])
        return [each.output() for each in requests]

    async def acontrastive_search(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None = None
    ) -> list[RequestOutput]:
        """As ``contrastive_search``, for an event loop."""
        requests = self._inputs.contrastive_searches(prompts, params)
        await self._engine.afinish([each.search for each in requests])
        return [each.output() for each in requests]

    def conversation(self, **settings: Any) -> Conversation:
        """A new ``Conversation(self, **settings)``: messages and answers, kept together.

        Raises RequestError for a model that writes no text, and as ``Conversation`` does.
        """
        self._inputs.check_generates()
        return Conversation(self, **settings)

    def save_session(self, path: str | PathLike[str], tokens: Sequence[int], notes: Any = None) -> int:
        """Write tokens of a conversation, and what is kept of their KV pages, to a file; the number of tokens so kept.

        ``tokens``: prompt and answer of the last turn, say. ``notes``: anything that JSON can hold, handed back by
        ``load_session``. The file appears whole or not at all. Raises RequestError, ResourceError when it cannot be
        written, EngineError when the LLM is closed.
        """
        ids = self._inputs.checked_ids(tokens, "tokens")
        held = self._engine.hold(ids)
        found = session_file.Session(ids, held.n_cached, len(held.pages), held.first_window_page, notes)
        try:
            session_file.write(Path(path), self._maker(), found, lambda i: self._engine.read_page(held, i))
        finally:
            self._engine.release(held)
        return found.n_kept

    def load_session(self, path: str | PathLike[str]) -> tuple[list[int], Any]:
        """Take in what ``save_session`` wrote: its tokens and notes. A request that begins with them starts at once.

        Raises RequestError when the file is no session, damaged, or of another model or kv_type; ResourceError when the KV
        cache has no room for it.
        """
        held = Lent()

        def take(found: session_file.Session, page: Callable[[], bytes]) -> None:
            held.n_cached, held.first_window_page = found.n_kept, found.first_window_page
            if found.first_window_page and self.model.kv.window_pool is None:
                return  # beginnings would be found here at places where layers with a window have nothing
            for _ in range(found.n_pages):
                self._engine.write_page(held, page())
            self._engine.keep(found.tokens[: found.n_kept], held)

        try:
            found = session_file.read(Path(path), self._maker(), self._tokenizer.n_vocab, take)
        finally:
            if held.pages:
                self._engine.release(held)
        return found.tokens, found.notes

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self._gguf.fingerprint()

    def _maker(self) -> dict[str, Any]:
        """What KV pages depend on."""
        kv = self.model.kv
        return {
            "model": self._fingerprint,
            "kv_type": kv.kv_type,
            "page_tokens": kv.page_tokens,
            "page_bytes": kv.part_bytes[False],
            "near_bytes": kv.part_bytes[True],
            "window": kv.longest_window,
            "state_bytes": 0 if self.model.states is None else self.model.states.slot_bytes,
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

    def _streamed(
        self, prompt: Prompt, params: SamplingParams | None, progress: PromptProgress | None
    ) -> PendingRequest:
        request = PendingRequest(None, self._inputs.streamed(self._inputs.prompt_ids(prompt), params))
        report(request.generations, progress)
        return request


#: The keywords of ``LLM`` -> their defaults.
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LLM).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _path(name: str, model: str | PathLike[str], **source: Any) -> str | PathLike[str]:
    """The GGUF file of a model; of a folder or a text that is no file, the one that ``gumba.store.resolve`` has for it.

    A file that is missing keeps its path, which is an error where it is opened.
    """
    if not isinstance(model, str | PathLike):
        raise RequestError(f"{name}: expected a path or a name, found {show(model)}")
    if names_missing_file(fspath(model)) or not (isinstance(model, str) or Path(model).is_dir()):
        return model
    return resolve(model, **source)
