"""``LLM``: a model file, loaded and ready to generate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any

from gumba.chat.rerank_template import PairTemplate
from gumba.chat.template import ChatTemplate
from gumba.engine.engine import Engine
from gumba.engine.page_lease import PageLease
from gumba.errors import RequestError
from gumba.gguf import GGUFFile
from gumba.llm import session_file
from gumba.llm.base import answer_bar, build_async
from gumba.llm.chat import ChatMixin
from gumba.llm.chat_templates import ChatTemplates
from gumba.llm.conversation import Conversation
from gumba.llm.embedding_settings import EmbeddingSettings
from gumba.llm.engine_args import Download, parse_engine_args
from gumba.llm.input_processor import InputProcessor, ParamsOf, PromptProgress
from gumba.llm.pooling import PoolingMixin
from gumba.llm.pooling_inputs import PoolingInputs
from gumba.llm.prompts import Prompt
from gumba.llm.reloadable_model import ReloadableModel
from gumba.outputs import BeamSearchOutput, KVUsage, RequestOutput, StreamOutput
from gumba.sampling_params import BeamSearchParams, ContrastiveSearchParams, SamplingParams
from gumba.store import names_missing_file, resolve
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show


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
        kv_memory: Size of the KV cache in bytes. Without either: four requests of ``n_ctx`` tokens, or as many, but at least
            one, as fit into an eighth of the available memory. Memory is taken only as the cache fills.
        n_states: For models with recurrent layers (Qwen3.5, LFM2): the number of sequence states, those cached for common
            prefixes included. None: as many as fit into a quarter of ``kv_memory``, or an eighth of the available
            memory.
        kv_type: Data type of the KV cache: "f16", "bf16", "f32", or "q8_0" in half the memory; None: bf16 with the
            instruction set avx512_bf16, else f16.
        portable: Give logits, embeddings and greedy answers the same bits on every processor: f16 pages unless ``kv_type``
            names others, and no instructions whose results differ from those of other processors.
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
        portable: bool = False,
        draft_model: str | PathLike[str] | None = None,
        draft_tokens: int = 4,
        unload_after: float | None = None,
        chat_template: str | PathLike[str] | ChatTemplate | None = None,
        progress: Callable[[float], None] | None = None,
        **engine_args: Any,
    ) -> None:
        keywords = {name: value for name, value in locals().items() if name in _DEFAULTS}
        args = parse_engine_args(model, keywords, engine_args, _DEFAULTS)
        if progress is not None and not callable(progress):
            raise RequestError(f"progress: expected a function, found {show(progress)}")
        self._gguf = GGUFFile(_path("model", model, args.download))
        try:
            config = args.config_for(self._gguf)
            self._tokenizer = Tokenizer.from_gguf(self._gguf)
            embedding = EmbeddingSettings.from_gguf(self._gguf)
            self._templates = ChatTemplates(self._gguf, self._tokenizer, chat_template)
            if config.draft_model is not None:
                config = replace(config, draft_model=_path("draft_model", config.draft_model, Download()))
            self._models = ReloadableModel(self._gguf, self._tokenizer, config, progress)
        except BaseException:
            self._gguf.close()
            raise
        loaded, draft = self._models.model, self._models.draft
        self._engine = Engine(
            loaded,
            self._tokenizer.n_vocab,
            max_sequences=config.load.max_sequences,
            max_queue=config.max_queue,
            draft_models=[] if draft is None else [draft],
            unload_after=config.unload_after,
            load=self._models.load,
        )
        self._portable = config.load.portable
        n_ctx = self._engine.n_ctx
        if not loaded.config.causal:  # an encoder computes a text in one step
            n_ctx = min(n_ctx, loaded.max_batch_tokens)
        self._inputs = InputProcessor(
            self._tokenizer, loaded.config, self._engine, n_ctx, config, self._templates, self._models
        )
        pair_template = PairTemplate.from_gguf(self._gguf) if loaded.config.n_labels else None
        self._pooling_inputs = PoolingInputs(self._inputs, embedding, pair_template)

    def __repr__(self) -> str:
        return f"LLM({str(self._gguf.path)!r}, n_ctx={self._models.model.n_ctx})"

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

    @property
    def chat_template(self) -> ChatTemplate:
        """The file's chat template, or the one that replaces it. Raises TemplateError if it is missing or malformed."""
        return self._templates.default

    @chat_template.setter
    def chat_template(self, template: ChatTemplate) -> None:
        self._templates.default = template

    @property
    def tool_template(self) -> ChatTemplate:
        """The template for conversations with tools: a few files have two."""
        return self._templates.tool_use

    @tool_template.setter
    def tool_template(self, template: ChatTemplate) -> None:
        self._templates.tool_use = template

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, progress: PromptProgress | None = None
    ) -> Iterator[StreamOutput]:
        """Generate from ``prompt``, one StreamOutput per token.

        The prompt is checked now; computing begins with the first item. Closing the iterator cancels the request.

        Args:
            prompt: Text, or token ids. Text is encoded with the model's special tokens around it (BOS); names of special
                tokens in it stay text.
            sampling_params: None: the defaults.
            progress: Called in the engine's thread as the prompt is computed, with the number of tokens done and of all.

        Raises:
            RequestError: The prompt is empty, too long for the context or has an id out of range; or params are wrong.
            TokenizerError: The text cannot be encoded.
            ModelError: While iterating: the model's logits are not finite.
            EngineError: The LLM is closed, or was loaded before this process was forked, or this is called in a function that
                the engine calls (a logits processor, a progress callback).
        """
        return self._engine.stream(self._inputs.completion_stream(prompt, sampling_params, progress).sequences)

    def astream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, progress: PromptProgress | None = None
    ) -> AsyncIterator[StreamOutput]:
        """As ``stream``, for an event loop. With ``structured_outputs`` arguments are checked with the first item, too."""
        return self._astream(lambda: self._inputs.completion_stream(prompt, sampling_params, progress), sampling_params)

    def generate(
        self,
        prompts: str | Iterable[Prompt] | None = None,
        sampling_params: ParamsOf = None,
        *,
        prompt_token_ids: Sequence[object] | None = None,
        progress: PromptProgress | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Generate from all ``prompts``, computed together.

        Args:
            prompts: A text, or a list of texts and lists of token ids; also vLLM's dictionaries, ``{"prompt": text}`` and
                ``{"prompt_token_ids": ids}``.
            sampling_params: For all prompts, or a list of one for each.
            prompt_token_ids: vLLM's other way to give a list of token ids, or a list of such lists; they take precedence over
                texts in ``prompts``.
            progress: As of ``stream``, over all prompts.
            use_tqdm: Show a bar on stderr, if that is a terminal.

        Returns the results in the order of the prompts; each is what the prompt would give alone. Raises as ``stream`` does;
        then no result is returned.
        """
        batch = self._inputs.completions(prompts, sampling_params, prompt_token_ids, progress)
        sequences = batch.sequences
        with answer_bar(len(sequences), use_tqdm) as count:
            self._engine.finish(sequences, count)
        return batch.outputs()

    async def agenerate(
        self,
        prompts: str | Iterable[Prompt] | None = None,
        sampling_params: ParamsOf = None,
        *,
        prompt_token_ids: Sequence[object] | None = None,
        progress: PromptProgress | None = None,
    ) -> list[RequestOutput]:
        """As ``generate``, for an event loop, which continues meanwhile. Cancelling the task cancels the requests."""
        batch = await build_async(
            lambda: self._inputs.completions(prompts, sampling_params, prompt_token_ids, progress), sampling_params
        )
        return await self._afinish(batch)

    def beam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The likeliest answers to all ``prompts`` (as ``generate`` takes them), by beam search.

        Returns the ``params.n`` best of each prompt, fewer only if no more can be formed. Scores and answers are those of
        ``generate(num_beams=...)`` of transformers. Raises as ``stream`` does; then no result is returned.
        """
        batch = self._inputs.beam_searches(prompts, params)
        self._engine.finish(batch.sequences)
        return batch.outputs()

    async def abeam_search(self, prompts: str | Iterable[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """As ``beam_search``, for an event loop."""
        return await self._afinish(self._inputs.beam_searches(prompts, params))

    def contrastive_search(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None = None
    ) -> list[RequestOutput]:
        """One answer to each of ``prompts`` (as ``generate`` takes them), by contrastive search.

        Raises as ``stream`` does; then no result is returned.
        """
        batch = self._inputs.contrastive_searches(prompts, params)
        self._engine.finish(batch.sequences)
        return batch.outputs()

    async def acontrastive_search(
        self, prompts: str | Iterable[Prompt], params: ContrastiveSearchParams | None = None
    ) -> list[RequestOutput]:
        """As ``contrastive_search``, for an event loop."""
        return await self._afinish(self._inputs.contrastive_searches(prompts, params))

    def conversation(self, **settings: Any) -> Conversation:
        """A new ``Conversation(self, **settings)``: messages and answers, kept together.

        Raises RequestError for a model that generates no text, and as ``Conversation`` does.
        """
        self._inputs.check_generates()
        return Conversation(self, **settings)

    def save_session(self, path: str | PathLike[str], tokens: Sequence[int], notes: Any = None) -> int:
        """Write tokens and their cached KV pages to a file, atomically.

        Args:
            path: The file.
            tokens: Token ids, for example prompt and answer of the last turn.
            notes: Any value that JSON can hold; ``load_session`` returns it.

        Returns the number of leading tokens whose KV pages were cached and are in the file. Raises RequestError for wrong
        arguments, ResourceError if the file cannot be written, EngineError if the LLM is closed.
        """
        ids = self._inputs.checked_ids(tokens, "tokens")
        lease = self._engine.lease(ids)
        session = session_file.Session(ids, lease.n_cached, len(lease.pages), lease.first_window_page, notes)
        try:
            session_file.write(Path(path), self._page_layout(), session, lambda i: self._engine.read_page(lease, i))
        finally:
            self._engine.release_lease(lease)
        return session.n_kept

    def load_session(self, path: str | PathLike[str]) -> tuple[list[int], Any]:
        """Read a file that ``save_session`` wrote, and put its KV pages into the prefix cache; returns tokens and notes.

        Raises RequestError if the file is not a session file, is damaged, or was written with another model, kv_type or
        ``portable``; ResourceError if the KV cache is too small for it.
        """
        lease = PageLease()

        def store(session: session_file.Session, page: Callable[[], bytes]) -> None:
            lease.n_cached, lease.first_window_page = session.n_kept, session.first_window_page
            if session.first_window_page and self.model.kv.window_pool is None:
                return  # prefixes would match at positions for which layers with a window have no keys and values
            for _ in range(session.n_pages):
                self._engine.write_page(lease, page())
            self._engine.cache_lease(session.tokens[: session.n_kept], lease)

        try:
            session = session_file.read(Path(path), self._page_layout(), self._tokenizer.n_vocab, store)
        finally:
            if lease.pages:
                self._engine.release_lease(lease)
        return session.tokens, session.notes

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self._gguf.fingerprint()

    def _page_layout(self) -> session_file.PageLayout:
        """What the contents of KV pages depend on."""
        kv = self.model.kv
        return {
            "model": self._fingerprint,
            "kv_type": kv.kv_type,
            "portable": self._portable,
            "page_tokens": kv.page_tokens,
            "page_bytes": kv.part_bytes[False],
            "near_bytes": kv.part_bytes[True],
            "window": kv.longest_window,
            "state_bytes": 0 if self.model.states is None else self.model.states.slot_bytes,
        }

    def kv_usage(self) -> KVUsage:
        """How many pages of the KV cache are in use, cached or free. Raises EngineError if the LLM is closed or forked."""
        return self._engine.kv_usage()

    def clear_cache(self) -> None:
        """Evict all pages of the prefix cache that no request uses. Raises EngineError if the LLM is closed or forked."""
        self._engine.clear_cache()

    def cancel(self) -> None:
        """Cancel all running requests, of all threads, before their next step; their finish_reason is "cancelled".

        May be called from any thread and from a signal handler.
        """
        self._engine.cancel()

    def close(self) -> None:
        """Cancel all requests and free the model. Further calls raise EngineError; closing twice is harmless."""
        self._engine.close()
        self._gguf.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: Keyword of ``LLM`` -> default.
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(LLM).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _path(name: str, model: str | PathLike[str], download: Download) -> str | PathLike[str]:
    """The GGUF file of a model: ``gumba.store.resolve`` finds that of a folder or a name.

    The path of a missing file is returned unchanged: opening it is the error.
    """
    if not isinstance(model, str | PathLike):
        raise RequestError(f"{name}: expected a path or a name, found {show(model)}")
    if names_missing_file(fspath(model)) or not (isinstance(model, str) or Path(model).is_dir()):
        return model
    return resolve(model, revision=download.revision, token=download.token, cache_dir=download.cache_dir)
