"""Tokens to bytes and back, as llama-cpp-python's ``LlamaTokenizer`` does it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from gumba.compat.llama_cpp.errors import PackageError
from gumba.compat.llama_cpp.options import open_gguf, require
from gumba.compat.llama_cpp.state import Vocabulary
from gumba.tokenizer.tokenizer import Tokenizer


def tokenize(tokenizer: Tokenizer, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """Token ids of UTF-8 text; invalid UTF-8 is read as U+FFFD."""
    return tokenizer.encode(bytes(text).decode("utf-8", "replace"), add_special=add_bos, parse_special=special)


def detokenize(tokenizer: Tokenizer, tokens: Sequence[int], special: bool) -> bytes:
    """The bytes of tokens, of control tokens only if ``special``; drops a space right after a leading BOS."""
    pieces = (tokenizer.token_bytes(token) for token in tokens if special or not tokenizer.is_special(token))
    text = b"".join(pieces)
    return text[1:] if len(tokens) and tokens[0] == tokenizer.bos_id and text[:1] == b" " else text


class BaseLlamaTokenizer(ABC):
    """Base class of tokenizers for ``Llama(tokenizer=...)``."""

    @abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text."""

    @abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens that follow ``prev_tokens``."""


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the package transformers: encodes prompts; the file's tokenizer decodes the answers."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text. ``add_bos``: add the tokenizer's special tokens. Control tokens are always parsed."""
        ids: list[int] = self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=add_bos)
        return ids

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes that tokens add to the text of ``prev_tokens``."""
        prefix = self._text(prev_tokens or (), special)
        return self._text([*(prev_tokens or ()), *tokens], special)[len(prefix) :]

    def _text(self, tokens: Sequence[int], special: bool) -> bytes:
        text: str = self.hf_tokenizer.decode(list(tokens), skip_special_tokens=not special) if len(tokens) else ""
        return text.encode("utf-8", "ignore")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """The tokenizer of a checkpoint. Raises an ImportError if transformers is not installed."""
        return cls(auto_tokenizer(pretrained_model_name_or_path))


def auto_tokenizer(name: object) -> Any:
    """``AutoTokenizer.from_pretrained(name)`` of transformers. Raises PackageError (an ImportError) without it."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise PackageError(
            "Hugging Face tokenizers need the package transformers, which is not installed: pip install transformers"
        ) from None
    return AutoTokenizer.from_pretrained(name)


class FileVocabulary:
    """The vocabulary of a GGUF file, with llama-cpp-python's conventions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text."""
        return tokenize(self._tokenizer, text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens."""
        return detokenize(self._tokenizer, tokens, special)


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a ``Llama``."""

    def __init__(self, llama: Vocabulary) -> None:
        self._vocabulary = llama

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text."""
        return self._vocabulary.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens."""
        return self._vocabulary.detokenize(tokens, prev_tokens, special)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of text; unpaired surrogates in it are dropped."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; incomplete UTF-8 is dropped."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a GGUF file, without loading the weights. Raises what ``Llama(path, vocab_only=True)`` raises."""
        require("model_path", path, (str, os.PathLike), "a path")
        with open_gguf(path) as file:
            return cls(FileVocabulary(Tokenizer.from_gguf(file)))
