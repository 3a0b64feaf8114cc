"""The saved state of a ``Llama``, and the views of a ``Llama`` that other modules of this package use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gumba.chat.template import ChatTemplate
    from gumba.llm.llm import LLM

IntArray: TypeAlias = "NDArray[np.intc]"
FloatArray: TypeAlias = "NDArray[np.float32]"
#: A message, tool or other object of a request.
JsonObject: TypeAlias = Mapping[str, Any]


class LlamaState:
    """The tokens of a ``Llama`` at one moment: the result of ``save_state``, the argument of ``load_state``.

    Keys and values are not part of it: they are recomputed, to the same bits.
    """

    def __init__(self, input_ids: IntArray, scores: FloatArray, n_tokens: int, seed: int) -> None:
        self.input_ids = input_ids
        self.scores = scores
        self.n_tokens = n_tokens
        self.seed = seed
        self.llama_state = input_ids[:n_tokens].tobytes()
        self.llama_state_size = len(self.llama_state)


class Vocabulary(Protocol):
    """Converts text to tokens and back."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text."""
        ...

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens."""
        ...


class CompletionModel(Vocabulary, Protocol):
    """The members of ``Llama`` that a completion uses."""

    model_path: str
    logits_all: bool
    last_n_tokens_size: int
    spm_infill: bool

    @property
    def llm(self) -> LLM:
        """The model."""
        ...

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the file's tokenizer encodes prompts, not one of the application."""
        ...

    @property
    def prompt_lookup_tokens(self) -> int:
        """Maximum number of tokens to draft from earlier text; 0 is off."""
        ...

    def n_ctx(self) -> int:
        """Context length in tokens."""
        ...

    def next_seed(self, seed: int | None) -> int:
        """The seed of a call."""
        ...

    def remember(self, tokens: Sequence[int]) -> None:
        """Make ``tokens`` the state."""
        ...


class ChatModel(Vocabulary, Protocol):
    """The members of ``Llama`` that a chat handler uses."""

    @property
    def llm(self) -> LLM:
        """The model."""
        ...

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the file's tokenizer encodes prompts, not one of the application."""
        ...

    def file_template(self, name: str) -> ChatTemplate:
        """The file's chat template of this name."""
        ...

    def create_completion(self, *args: object, **kwargs: object) -> Any:
        """Complete a prompt: a completion, or with ``stream`` an iterator of its chunks."""
        ...
