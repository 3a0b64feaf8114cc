"""``Llama``: the class that applications written for llama-cpp-python use."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from gumba import store
from gumba.compat.llama_cpp.chat_completion import ChatResult, CompletionResult
from gumba.compat.llama_cpp.completion import Completion, CompletionOptions, log_softmax, steps
from gumba.compat.llama_cpp.errors import PackageError
from gumba.compat.llama_cpp.llama_chat_format import get_chat_completion_handler
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.loaded import LoadedModel
from gumba.compat.llama_cpp.options import pooling_name, require
from gumba.compat.llama_cpp.sampling import (
    Controls,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from gumba.compat.llama_cpp.state import FloatArray, JsonObject, LlamaState
from gumba.errors import EngineError, RequestError
from gumba.openai.responses import embedding_list
from gumba.sampling_params import SamplingParams

if TYPE_CHECKING:
    from gumba.openai import types

__all__ = [
    "Llama",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]


class Llama(LoadedModel):
    """A model, with the methods and keywords of llama-cpp-python's ``Llama``.

    Args:
        model_path: The GGUF file.
        vocab_only: Load the tokenizer and the metadata only.
        seed: Seeds the calls without a seed, in their order; None, -1 and LLAMA_DEFAULT_SEED: a new random one every time.
        n_ctx: Context length in tokens; 0, and anything above it: the model's training context.
        n_batch: Maximum number of tokens computed in one step.
        n_threads: Compute threads (default: ``n_threads_batch``, then the machine's cores).
        logits_all: Needed for ``logprobs`` and for ``scores``.
        embedding: Needed for ``embed`` and ``create_embedding``.
        last_n_tokens_size: Number of last tokens that penalties consider.
        chat_format: A name of ``llama_chat_format.CHAT_FORMATS``; None: the file's template, else ChatML.
        chat_handler: Called instead of a chat format, with ``llama=`` and the keywords of ``create_chat_completion``.
        draft_model: Accepted: speculative decoding never changes the output.
        type_k, type_v: ggml's type number of the KV cache, the same for both; None: gumba's default.
        spm_infill: Put the suffix first in infill prompts.
        tokenizer: Encodes prompts instead of the file's tokenizer.
        verbose: Log keywords without effect (logger ``gumba``). Nothing is printed.
        options: Further keywords of llama-cpp-python: those about other hardware and memory are accepted without effect,
            those that would change results are refused (see ``options``). Unknown keywords are ignored with a warning.

    Raises:
        ValueError: The file is missing or cannot be loaded, or an option is not supported. Also a GumbaError.
        ResourceError: The model does not fit into memory.
    """

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Load a GGUF file from the Hugging Face hub or ModelScope (``modelscope:owner/name``), or a known model.

        ``filename`` is a name or a glob pattern that matches one file of the repository; ``additional_files`` match further
        shards. Without ``filename``, ``repo_id`` means what it means to ``gumba run``: a known name, or a checkpoint to
        convert. ``kwargs`` are passed to the constructor.

        Raises ValueError if no file or several match, DownloadError if it cannot be fetched.
        """
        if filename is None:
            path = store.resolve(repo_id)
        else:
            from gumba.hub.fetch import fetch_file

            path = fetch_file(repo_id, filename, local_dir=local_dir, cache_dir=cache_dir)
            for pattern in additional_files or ():
                fetch_file(repo_id, pattern, local_dir=local_dir, cache_dir=cache_dir)
        return cls(path, **kwargs)

    # --------------------------------------------------------------------------------------------- generating

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Sample a token after the state, or after its first ``idx + 1`` tokens, without changing the state.

        ``tfs_z`` and ``penalize_nl`` have no effect, as in llama.cpp. Raises RequestError (a ValueError) when the state is
        empty or a value is out of range.
        """
        controls = Controls(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta,
            mirostat_tau=mirostat_tau,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        tokens = self.tokens()[: None if idx is None else idx + 1]
        with closing(steps(self, tokens, self._params(controls, len(tokens), max_tokens=1), None)) as outputs:
            (token,) = (token for token, _ in outputs)
        return token

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens after ``tokens`` (which follow the state unless ``reset``), without end.

        Yields end-of-generation tokens like others. Tokens sent to the generator are appended after the last one.
        ``stopping_criteria`` are checked before each token and end the generator. Raises EngineError (a RuntimeError) when
        the context is full.
        """
        controls = Controls(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        if reset:
            self.reset()
        require("tokens", tokens, (Sequence, np.ndarray), "a list of token ids")
        new = list(tokens)
        while new:
            self.eval(new)
            new = yield from self._generate_until_sent(controls, stopping_criteria)

    def _generate_until_sent(
        self, controls: Controls, criteria: StoppingCriteriaList | None
    ) -> Generator[int, Sequence[int] | None, list[int]]:
        """Yield tokens until the caller sends some; returns the last token and those, or nothing if the criteria are met."""
        params = self._params(controls, self.n_tokens)
        with closing(steps(self, self.tokens(), params, criteria)) as outputs:
            for token, output in outputs:
                sent = yield token
                if sent:
                    return [token, *sent]
                self.eval([token])
                if output.finish_reason == "length":
                    raise EngineError(f"the context of {self._n_ctx} tokens is full")
        return []

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[object, float] | None = None,
    ) -> CompletionResult:
        """Complete a text or token ids: OpenAI's completion object, or with ``stream`` an iterator of its chunks.

        ``max_tokens`` None, 0 or less: to the end of the context. ``suffix``: text after the answer; models with infill
        tokens generate the text between, for others it is appended. ``logprobs``: number of most likely tokens to report
        with every token; needs ``logits_all``. ``stopping_criteria`` are checked before each token.

        Raises RequestError (a ValueError) for a prompt that does not fit the context or a value out of range.
        """
        controls = Controls(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temperature,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        options = CompletionOptions(
            suffix=suffix,
            max_tokens=max_tokens,
            logprobs=logprobs,
            echo=echo,
            stop=stop,
            seed=seed,
            model=model,
            stopping_criteria=stopping_criteria,
        )
        completion = Completion(self, prompt, controls, options)
        return completion.chunks() if stream else completion.response()

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[JsonObject],
        functions: Sequence[JsonObject] | None = None,
        function_call: str | JsonObject | None = None,
        tools: Sequence[JsonObject] | None = None,
        tool_choice: str | JsonObject | None = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: JsonObject | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: Mapping[object, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> ChatResult:
        """Complete a conversation: OpenAI's chat completion object, or with ``stream`` an iterator of its chunks.

        ``response_format``: ``{"type": "json_object"}``, optionally with a ``schema``, or OpenAI's ``json_schema``.
        ``tool_choice`` that names one of ``tools``: the answer is a call of it. Otherwise the template receives the tools
        (not with "none"), and calls in the answer's text become its ``tool_calls``.

        Raises ValueError for messages that the template rejects, and what ``create_completion`` raises.
        """
        handler = self.chat_handler or get_chat_completion_handler(self.chat_format)
        return handler(
            llama=self,
            messages=messages,
            functions=functions,
            function_call=function_call,
            tools=tools,
            tool_choice=tool_choice,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            typical_p=typical_p,
            stream=stream,
            stop=stop,
            seed=seed,
            response_format=response_format,
            max_tokens=max_tokens,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repeat_penalty=repeat_penalty,
            tfs_z=tfs_z,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            model=model,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """The result of ``create_chat_completion`` as objects of the ``openai`` package.

        Raises EngineError (also an ImportError) if that package is not installed.
        """
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk
        except ImportError:
            raise PackageError(
                "create_chat_completion_openai_v1 needs the package openai, which is not installed: pip install openai"
            ) from None
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)

    # --------------------------------------------------------------------------------------------- embeddings

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> types.CreateEmbeddingResponse:
        """Embeddings of texts as ``embed`` returns them, in OpenAI's embedding object."""
        require("input", input, (str, Sequence), "text, or a list of texts")
        texts = [input] if isinstance(input, str) else list(input)
        embeddings, n_tokens = self.embed(texts, return_count=True)
        return embedding_list(embeddings, self.model_path if model is None else model, n_tokens)

    def embed(
        self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Embeddings of texts: one per token, or pooled by the constructor's ``pooling_type``.

        ``normalize``: scale to length 1. ``truncate``: cut texts to ``n_batch`` tokens. ``return_count``: return a pair of
        the embeddings and the number of tokens.

        Raises EngineError (a RuntimeError) for a model created without ``embedding=True``, RequestError (a ValueError) for a
        text that is empty or too long.
        """
        if not self.embedding:
            raise EngineError("the model must be created with embedding=True to call this method")
        pooling = pooling_name(self._pooling_type)
        require("input", input, (str, Sequence), "text, or a list of texts")
        prompts = []
        for text in [input] if isinstance(input, str) else input:
            require("input", text, str, "text, or a list of texts")
            ids = self.tokenize(text.encode("utf-8"))
            ids = ids[: self.n_batch] if truncate else ids
            if len(ids) > self.n_batch:
                raise RequestError(f"Requested tokens ({len(ids)}) exceed batch size of {self.n_batch}")
            prompts.append(ids)
        if pooling is not None:
            vectors = self.llm.embed(prompts, pooling=pooling, normalize=normalize).tolist()
        else:  # a token's hidden state depends only on the tokens before it
            vectors = [
                self.llm.embed([ids[: i + 1] for i in range(len(ids))], pooling="last", normalize=normalize).tolist()
                for ids in prompts
            ]
        embeddings = vectors[0] if isinstance(input, str) else vectors
        return (embeddings, sum(map(len, prompts))) if return_count else embeddings

    def _params(self, controls: Controls, position: int, max_tokens: int | None = None) -> SamplingParams:
        """Parameters for generating after ``position`` tokens of the state, end-of-generation tokens included."""
        return controls.params(
            window=self.last_n_tokens_size,
            seed=self.position_seed(position),
            max_tokens=max_tokens,
            ignore_eos=True,
            prompt_lookup_tokens=self.prompt_lookup_tokens,
        )

    @staticmethod
    def logits_to_logprobs(logits: FloatArray | Sequence[float], axis: int = -1) -> FloatArray:
        """Log-probabilities of logits, float32, along ``axis``."""
        return log_softmax(np.asarray(logits), axis)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """Length of the common prefix of two token sequences."""
        return next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))
