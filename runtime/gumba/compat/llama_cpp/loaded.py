"""The part of ``Llama`` below generation: loading, tokens, and the state."""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np

from gumba.chat.template import ChatTemplate
from gumba.compat.llama_cpp.errors import OptionError, PickleError
from gumba.compat.llama_cpp.llama_cache import BaseLlamaCache
from gumba.compat.llama_cpp.llama_cpp import LLAMA_DEFAULT_SEED, LLAMA_POOLING_TYPE_UNSPECIFIED
from gumba.compat.llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from gumba.compat.llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer, detokenize, tokenize
from gumba.compat.llama_cpp.options import (
    DEFAULT_CONTEXT,
    check_options,
    check_overrides,
    context_size,
    kv_type,
    loading,
    metadata_text,
    open_gguf,
    require,
    seed_bits,
)
from gumba.compat.llama_cpp.state import FloatArray, IntArray, LlamaState
from gumba.errors import EngineError, RequestError
from gumba.gguf import GGUFFile
from gumba.gguf.array import GGUFArray
from gumba.llm.llm import LLM
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import require_count, show

M = TypeVar("M", bound="LoadedModel")


class LoadedModel:
    """Base class of ``Llama``: the loaded file, its vocabulary, and the evaluated tokens (the state)."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        vocab_only: bool = False,
        seed: int | None = LLAMA_DEFAULT_SEED,
        n_ctx: int = DEFAULT_CONTEXT,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        pooling_type: int = LLAMA_POOLING_TYPE_UNSPECIFIED,
        logits_all: bool = False,
        embedding: bool = False,
        last_n_tokens_size: int = 64,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | None = None,
        draft_model: object = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **options: object,
    ) -> None:
        check_options(options, verbose)
        kv = kv_type(type_k, type_v)
        require("model_path", model_path, (str, os.PathLike), "a path")
        self.model_path = os.fspath(model_path)
        self.verbose = verbose
        self.logits_all = logits_all or draft_model is not None
        self.embedding = embedding
        self.last_n_tokens_size = last_n_tokens_size
        self.chat_format = chat_format
        self.chat_handler = chat_handler
        self.draft_model = draft_model
        self.spm_infill = spm_infill
        self.cache: BaseLlamaCache | None = None
        self._pooling_type = pooling_type
        self._seed = LLAMA_DEFAULT_SEED if seed is None else seed_bits(seed)
        self._lock = threading.Lock()
        self._llm: LLM | None = None
        with open_gguf(self.model_path) as file:
            self.metadata = _strings(file.metadata)
            check_overrides(options, self.metadata)
            trained = self._size("context_length")
            self._n_ctx = context_size(n_ctx, trained)
            self.n_batch = min(self._n_ctx, require_count("n_batch", n_batch, 1))
            if vocab_only:
                self._tokenizer = Tokenizer.from_gguf(file)
        if not vocab_only:
            with loading():
                self._llm = LLM(
                    self.model_path,
                    n_ctx=self._n_ctx,
                    n_threads=n_threads or n_threads_batch,
                    max_batch_tokens=self.n_batch,
                    kv_type=kv,
                )
            self._tokenizer = self._llm.tokenizer
        self.tokenizer_: BaseLlamaTokenizer = LlamaTokenizer(self) if tokenizer is None else tokenizer
        self.n_threads = self.n_threads_batch = n_threads or n_threads_batch or os.cpu_count() or 1
        #: The fields of llama.cpp's structures that applications read.
        self.context_params = SimpleNamespace(n_ctx=self._n_ctx, n_batch=self.n_batch)
        self.model_params = SimpleNamespace(vocab_only=vocab_only)
        self.n_tokens = 0
        self.input_ids: IntArray = np.zeros(self._n_ctx, np.intc)
        self._logits: FloatArray | None = None  # for the tokens of _scored
        self._scored: list[int] = []

    # ------------------------------------------------------------------------------------------------- tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text. ``add_bos``: add BOS and EOS as the model requires; ``special``: parse the texts of
        control tokens as control tokens."""
        require("text", text, (bytes, bytearray, memoryview), "bytes")
        if self.has_own_tokenizer:
            return tokenize(self._tokenizer, text, add_bos, special)
        return self.tokenizer_.tokenize(bytes(text), add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens, which may end inside a character; of control tokens only if ``special``."""
        if self.has_own_tokenizer:
            return detokenize(self._tokenizer, tokens, special)
        return self.tokenizer_.detokenize(list(tokens), prev_tokens and list(prev_tokens), special)

    def tokenizer(self) -> LlamaTokenizer:
        """The tokenizer."""
        return LlamaTokenizer(self)

    def token_eos(self) -> int:
        """The end-of-sequence token; -1 without one."""
        return -1 if self._tokenizer.eos_id is None else self._tokenizer.eos_id

    def token_bos(self) -> int:
        """The beginning-of-sequence token; -1 without one."""
        return -1 if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    def token_nl(self) -> int:
        """The token of a line break; -1 without one."""
        return ([-1] + self._tokenizer.encode("\n", add_special=False))[-1]

    def n_vocab(self) -> int:
        """Vocabulary size."""
        return self._tokenizer.n_vocab

    def n_ctx(self) -> int:
        """Context length in tokens: prompt and answer together."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Embedding length."""
        return self._size("embedding_length")

    def pooling_type(self) -> int:
        """The constructor's pooling type."""
        return self._pooling_type

    # -------------------------------------------------------------------------------------------------- state

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens of the state."""
        return deque(self.tokens(), maxlen=self._n_ctx)

    @property
    def scores(self) -> FloatArray:
        """Logits after every token of the state, float32 [n_ctx, n_vocab]; zeros after it, and without ``logits_all``.

        Computed on access, and cached while the state only grows.
        """
        if not self.logits_all:
            return np.broadcast_to(np.float32(0), (self.n_batch, self.n_vocab()))
        tokens = self.tokens()
        if self._logits is None:
            self._logits = np.zeros((self._n_ctx, self.n_vocab()), np.float32)
        if tokens != self._scored[: len(tokens)]:
            self._logits[: len(tokens)] = self.llm.logits(tokens)[:, : self.n_vocab()]
        self._logits[len(tokens) : len(self._scored)] = 0
        self._scored = tokens
        return self._logits

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Logits after every token of the state; only after the last one without ``logits_all``."""
        if self.logits_all:
            return deque(self.scores[: self.n_tokens].tolist(), maxlen=self._n_ctx)
        tokens = self.tokens()
        return deque(self.llm.logits(tokens)[-1:, : self.n_vocab()].tolist() if tokens else [], maxlen=1)

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Accepted without effect: the engine's prefix cache shares KV pages by itself."""
        self.cache = cache

    def set_seed(self, seed: int) -> None:
        """Seed the calls without a seed of their own."""
        self._seed = seed_bits(seed)

    def reset(self) -> None:
        """Clear the state."""
        self.n_tokens = 0

    def eval(self, tokens: Sequence[int]) -> None:
        """Append tokens to the state. Nothing is computed before its result is read.

        Raises RequestError (a ValueError) for a token that is not in the vocabulary, EngineError (a RuntimeError) when the
        context is full.
        """
        _ = self.llm  # raises without weights
        require("tokens", tokens, (Sequence, np.ndarray), "a list of token ids")
        ids = [self._tokenizer.check_id(token) for token in tokens]
        if self.n_tokens + len(ids) > self._n_ctx:
            raise EngineError(
                f"{len(ids)} tokens do not fit the context of {self._n_ctx}, which holds {self.n_tokens} already"
            )
        self.input_ids[self.n_tokens : self.n_tokens + len(ids)] = ids
        self.n_tokens += len(ids)

    def save_state(self) -> LlamaState:
        """The state, for ``load_state`` of this or another ``Llama`` with the same model."""
        scores = self.scores[: self.n_tokens].copy() if self.logits_all else np.empty((0, self.n_vocab()), np.float32)
        return LlamaState(self.input_ids.copy(), scores, self.n_tokens, self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Restore a saved state. Raises RequestError (a ValueError) for one of another vocabulary or larger context."""
        require("state", state, LlamaState, "a LlamaState")
        tokens = [self._tokenizer.check_id(token) for token in state.input_ids[: state.n_tokens].tolist()]
        if len(tokens) > self._n_ctx:
            raise RequestError(f"state: {len(tokens)} tokens do not fit the context of {self._n_ctx}")
        self.remember(tokens)
        self._seed = state.seed

    # ------------------------------------------------------------------------------------------------ closing

    def close(self) -> None:
        """Free the model. Further calls raise EngineError; closing twice is fine."""
        if self._llm is not None:
            self._llm.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise PickleError("a loaded model cannot be pickled: make one from the same file where it is needed")

    # ------------------------------------------------------------------------------- used by this package only

    @property
    def model(self: M) -> M:
        """The argument of ``llama_cpp.llama_model_get_vocab``."""
        return self

    @property
    def ctx(self) -> NoReturn:
        """Raises OptionError: there is no llama.cpp context."""
        raise OptionError("Llama.ctx: gumba has no llama.cpp context; use the methods of Llama")

    _model = _ctx = ctx

    @property
    def llm(self) -> LLM:
        """The model. Raises EngineError if only the vocabulary is loaded."""
        if self._llm is None:
            raise EngineError("the model was loaded with vocab_only=True: it has no weights")
        return self._llm

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the file's tokenizer encodes prompts, not one of the application."""
        return isinstance(self.tokenizer_, LlamaTokenizer)

    def file_template(self, name: str) -> ChatTemplate:
        """The file's chat template ``name``. Raises TemplateError for a malformed one, OptionError if there is none."""
        with GGUFFile(self.model_path) as file:
            if f"tokenizer.chat_template.{name}" not in file.metadata:
                raise OptionError(f"chat_format: the file has no chat template named {show(name)}")
            return ChatTemplate.from_gguf(file, self._tokenizer, name)

    def tokens(self) -> list[int]:
        """The tokens of the state."""
        tokens: list[int] = self.input_ids[: self.n_tokens].tolist()
        return tokens

    def remember(self, tokens: Sequence[int]) -> None:
        """Make ``tokens`` the state."""
        with self._lock:
            n_tokens = min(len(tokens), self._n_ctx)
            self.input_ids[:n_tokens] = tokens[:n_tokens]
            self.n_tokens = n_tokens

    @property
    def prompt_lookup_tokens(self) -> int:
        """Maximum number of tokens to draft at once; 0 for a draft model of another kind, which is slower but not different."""
        lookup = self.draft_model
        return min(lookup.num_pred_tokens, 1024) if isinstance(lookup, LlamaPromptLookupDecoding) else 0

    def next_seed(self, seed: int | None) -> int:
        """The seed of a call: ``seed``, or the next of the sequence that starts with the constructor's."""
        with self._lock:
            if seed is not None:
                self._seed = seed_bits(seed)
            elif self._seed == LLAMA_DEFAULT_SEED:
                return secrets.randbits(32)
            else:
                self._seed = random.Random(self._seed).randint(0, 0xFFFFFFFE)
            return self._seed

    def position_seed(self, position: int) -> int:
        """The seed for the token at a position of the state."""
        if self._seed == LLAMA_DEFAULT_SEED:
            return secrets.randbits(32)
        return self._seed << 32 | position

    def _size(self, key: str) -> int:
        """A size of the architecture from the metadata; 0 if the file does not have the key."""
        text = self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", "")
        return int(text) if text.isdecimal() else 0


def _strings(metadata: Mapping[str, object]) -> dict[str, str]:
    """Metadata as llama.cpp prints it: without arrays, floats with six digits."""
    return {key: metadata_text(value) for key, value in metadata.items() if not isinstance(value, GGUFArray)}
