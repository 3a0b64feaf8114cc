"""Tokens to bytes and back, as llama-cpp-python's ``LlamaTokenizer`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumba.compat.llama_cpp.loaded import LoadedModel
    from gumba.text import Tokenizer


def tokenize(tokenizer: Tokenizer, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """Token ids of UTF-8 text; wrong UTF-8 counts as U+FFFD."""
    return tokenizer.encode(bytes(text).decode("utf-8", "replace"), add_special=add_bos, parse_special=special)


def detokenize(tokenizer: Tokenizer, tokens: Sequence[int], special: bool) -> bytes:
    """The bytes of tokens; of control tokens only if ``special``. A space right after a leading BOS is left out."""
    pieces = (tokenizer.token_bytes(token) for token in tokens if special or not tokenizer.is_special(token))
    text = b"".join(pieces)
    return text[1:] if len(tokens) and tokens[0] == tokenizer.bos_id and text[:1] == b" " else text


class LlamaTokenizer:
    """The tokenizer of a ``Llama``."""

    def __init__(self, llama: LoadedModel) -> None:
        self._llama = llama

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text."""
        return self._llama.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of tokens."""
        return self._llama.detokenize(tokens, prev_tokens, special)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of text; half surrogate pairs in it are left out."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; incomplete UTF-8 is left out."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a GGUF file, whose weights are not loaded."""
        from gumba.compat.llama_cpp.llama import Llama

        return cls(Llama(path, vocab_only=True))
