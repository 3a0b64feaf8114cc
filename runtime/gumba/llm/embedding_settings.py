"""Embedding settings of a model file: prompts, maximum text length, vector dimensions. Keys ``gumba.embedding.*``.

sentence-transformers stores these settings beside a model; GGUF has no keys for them. A file without them has no prompts,
and only its context limits texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gumba.chat.special_tokens import shielded
from gumba.errors import ModelError, RequestError
from gumba.gguf import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

PREFIX = "gumba.embedding."
_PROMPT = PREFIX + "prompt."
_KNOWN = ("default_prompt", "dimensions", "include_prompt", "max_seq_length", "truncation_side")
_SIDES = ("left", "right")
_MOST = (1 << 31) - 1


@dataclass(frozen=True)
class EmbeddingSettings:
    """The settings of one file.

    Attributes:
        prompts: Name -> text that is prepended to a text.
        default_prompt: Name of the prompt used if none is given; None: no prompt.
        max_seq_length: Tokens of the longest text; None: the context limits it.
        truncation_side: The side, "left" or "right", at which longer texts are truncated.
        include_prompt: Whether pooling includes the prompt's tokens.
        dimensions: Number of leading values of a vector that are kept; None: all.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_seq_length: int | None = None
    truncation_side: str = "right"
    include_prompt: bool = True
    dimensions: int | None = None

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> EmbeddingSettings:
        """Read the settings of a file.

        Raises ModelError for a value of the wrong type or range, and for an unknown key.
        """
        prompts = {}
        for key in gguf.metadata:
            if key.startswith(_PROMPT):
                prompts[key.removeprefix(_PROMPT)] = gguf.require(key, str)
            elif key.startswith(PREFIX) and key.removeprefix(PREFIX) not in _KNOWN:
                raise ModelError(
                    f"{gguf.path}: unknown metadata key {key}: this version knows {', '.join(_KNOWN)} and prompt.NAME"
                )
        default = gguf.get(PREFIX + "default_prompt", str)
        if default is not None and default not in prompts:
            raise ModelError(
                f"{gguf.path}: metadata {PREFIX}default_prompt is {default!r:.100}, expected the name of a prompt of the file"
            )
        side = gguf.get(PREFIX + "truncation_side", str, "right")
        if side not in _SIDES:
            raise ModelError(f"{gguf.path}: metadata {PREFIX}truncation_side is {side!r:.100}, expected left or right")
        return cls(
            prompts,
            default,
            _count(gguf, "max_seq_length"),
            side,
            gguf.get(PREFIX + "include_prompt", bool, True),
            _count(gguf, "dimensions"),
        )

    def prompt(self, name: str | None) -> str:
        """The text of the prompt ``name``: the default prompt for None, "" for "".

        Raises RequestError if the file has no prompt of that name.
        """
        if name is None:
            name = self.default_prompt or ""
        if isinstance(name, str) and name in self.prompts:
            return self.prompts[name]
        if not isinstance(name, str) or name:
            known = f"its prompts are {', '.join(map(repr, self.prompts))}" if self.prompts else "it has no prompts"
            raise RequestError(f"prompt: the model has no prompt {show(name)}: {known}")
        return ""


def _count(gguf: GGUFFile, name: str) -> int | None:
    """A positive integer, None without the key."""
    value = gguf.get(PREFIX + name, int)
    if value is not None and not 1 <= value <= _MOST:
        raise ModelError(f"{gguf.path}: metadata {PREFIX}{name} is {value}, expected a positive integer")
    return value


def encode_after(tokenizer: Tokenizer, prompt: str, text: str) -> list[int]:
    """Token ids of ``prompt + text``; control tokens are parsed in the model's prompt, not in the text."""
    if not any(control in prompt for control in tokenizer.control_texts):
        return tokenizer.encode(prompt + text)
    text, mark = shielded(text, tokenizer.control_texts, prompt)
    return tokenizer.encode(prompt + text, parse_special=True, shield=mark)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> int:
    """The number of leading tokens that belong to the prompt, special tokens at the start included.

    As in sentence-transformers: the tokens of the prompt alone, without a special token at the end.
    """
    ids = encode_after(tokenizer, prompt, "")
    return len(ids) - (1 if ids and tokenizer.is_special(ids[-1]) else 0)
