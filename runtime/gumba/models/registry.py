"""The architectures that run, by their names in files, and what the module of an architecture has."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from gumba.errors import UnsupportedError

if TYPE_CHECKING:
    from gumba.backends.base import Buffer, Program
    from gumba.gguf import GGUFFile
    from gumba.loading.config import Config
    from gumba.loading.weight_loader import Loader


class Architecture(Protocol):
    """The module of an architecture: one file of ``gumba.models``."""

    @property
    def NAME(self) -> str:
        """GGUF's ``general.architecture``."""
        ...

    @property
    def FAMILIES(self) -> str:
        """The models that have it, for docs/models.md."""
        ...

    @property
    def VERIFIED(self) -> tuple[str, ...]:
        """The programs that its golden files were compared with."""
        ...

    def read_config(self, gguf: GGUFFile, /) -> Config:
        """Read the metadata. Raises ModelError (UnsupportedError)."""
        ...

    def load_weights(self, loader: Loader, c: Any, /) -> Any:
        """Declare and load the weights, for a configuration of ``read_config``. Raises ModelError, GGUFError."""
        ...

    def forward(self, p: Program, c: Any, w: Any, /) -> tuple[Buffer, Buffer]:
        """Write the program. Returns hidden states [n_outputs, n_embd], and logits or a head's outputs."""
        ...


class EncoderDecoder(Architecture, Protocol):
    """An architecture whose ``forward`` is the decoder: ``Config.start_token`` is not None."""

    def encode(self, p: Program, c: Any, w: Any, /) -> Buffer:
        """Write the encoder's program. Returns its hidden states [n_outputs, n_embd]."""
        ...


#: GGUF's ``general.architecture`` of every architecture that runs. Its module has that name, with ``_`` in place of ``-``.
_NAMES = (
    "llama", "llama4", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "chatglm",
    "glm4", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "phi2", "phi3", "gpt2", "gptneox", "starcoder2", "stablelm",
    "falcon", "internlm2", "olmo2", "baichuan", "granite", "granitemoe", "smollm3", "exaone4", "command-r", "cohere2",
    "deepseek2", "gpt-oss", "lfm2", "qwen35", "qwen35moe", "seed_oss", "bert", "mpnet", "nomic-bert", "jina-bert-v2",
    "jina-bert-v3", "modern-bert", "gemma-embedding", "t5", "t5encoder",
)  # fmt: skip


class _Architectures(Mapping[str, Architecture]):
    """The modules by name, each imported when it is first used: a process needs one of them, and all take 36 ms."""

    def __getitem__(self, name: str) -> Architecture:
        if name not in _NAMES:
            raise KeyError(name)
        return cast(Architecture, importlib.import_module(f"gumba.models.{name.replace('-', '_')}"))

    def __contains__(self, name: object) -> bool:
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


#: Every architecture that runs, by its name in files.
ARCHITECTURES: Mapping[str, Architecture] = _Architectures()


def architecture(gguf: GGUFFile) -> Architecture:
    """The module of a file's architecture. Raises UnsupportedError listing the known ones."""
    name = gguf.require("general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"{gguf.path}: architecture {name!r} is not known; this version runs: {known}")
    return ARCHITECTURES[name]
