"""How a file wants texts embedded: prompts, the longest text, what of a vector counts. Keys ``gumba.embedding.*``.

sentence-transformers keeps these beside a model; GGUF has no keys for them. A file without them has no prompts, and its context
alone limits texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gumba.errors import ModelError, RequestError
from gumba.gguf import GGUFFile
from gumba.params import show
from gumba.text import Tokenizer
from gumba.text.shield import shielded

PREFIX = "gumba.embedding."
_PROMPT = PREFIX + "prompt."
_KNOWN = ("default_prompt", "dimensions", "include_prompt", "max_seq_length", "truncation_side")
_SIDES = ("left", "right")
_MOST = (1 << 31) - 1


@dataclass(frozen=True)
class EmbeddingSettings:
    """The settings of one file.

    ``prompts``: texts that are put before a text, by name; ``default_prompt``: the name of the one that is if none is named.
    ``max_seq_length``: tokens of the longest text, None: the context's. ``truncation_side``: where longer texts are cut.
    ``include_prompt``: whether the prompt's tokens are pooled. ``dimensions``: how many values of a vector are kept, None: all.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_seq_length: int | None = None
    truncation_side: str = "right"
    include_prompt: bool = True
    dimensions: int | None = None

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> EmbeddingSettings:
        """The settings that a file has.

        Raises ModelError for a value of another type or out of range, and for a key that is not known.
        """
        prompts = {}
        for key in gguf.metadata:
            if key.startswith(_PROMPT):
                prompts[key.removeprefix(_PROMPT)] = gguf.require(key, str)
            elif key.startswith(PREFIX) and key.removeprefix(PREFIX) not in _KNOWN:
                raise ModelError(f"{gguf.path}: metadata {key} is not known to this version")
        default = gguf.get(PREFIX + "default_prompt", str)
        if default is not None and default not in prompts:
            raise ModelError(
                f"{gguf.path}: metadata {PREFIX}default_prompt is {default!r:.100}, but there is no such prompt"
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
        """The text of a prompt: of the default one for None, "" for "".

        Raises RequestError for a name that the file does not have.
        """
        if name is None:
            name = self.default_prompt or ""
        if isinstance(name, str) and name in self.prompts:
            return self.prompts[name]
        if not isinstance(name, str) or name:
            known = f"it has {', '.join(map(repr, self.prompts))}" if self.prompts else "it has none"
            raise RequestError(f"prompt: the model has no prompt {show(name)}: {known}")
        return ""


def _count(gguf: GGUFFile, name: str) -> int | None:
    """A positive integer, None without the key."""
    value = gguf.get(PREFIX + name, int)
    if value is not None and not 1 <= value <= _MOST:
        raise ModelError(f"{gguf.path}: metadata {PREFIX}{name} is {value}, expected a positive integer")
    return value


def encode_after(tokenizer: Tokenizer, prompt: str, text: str) -> list[int]:
    """Token ids of a text behind a prompt of the model; control tokens are parsed in the prompt, not in the text."""
    if not any(control in prompt for control in tokenizer.control_texts):
        return tokenizer.encode(prompt + text)
    text, mark = shielded(text, tokenizer.control_texts, prompt)
    return tokenizer.encode(prompt + text, parse_special=True, shield=mark)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> int:
    """How many tokens a text begins with that are the prompt's, those that begin every text among them.

    As sentence-transformers counts them: those of the prompt alone, without a special token at the end.
    """
    ids = encode_after(tokenizer, prompt, "")
    return len(ids) - (1 if ids and tokenizer.is_special(ids[-1]) else 0)
