"""The architectures that run, by their names in files, and what the module of an architecture has."""

from __future__ import annotations

from typing import Any, Protocol

from gumba.backends.base import Buffer, Program
from gumba.errors import UnsupportedError
from gumba.gguf import GGUFFile
from gumba.loading.config import Config
from gumba.loading.weight_loader import Loader
from gumba.models import (
    baichuan,
    bert,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    gemma_embedding,
    glm4,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    granitemoe,
    internlm2,
    jina_bert_v2,
    jina_bert_v3,
    lfm2,
    llama,
    llama4,
    modern_bert,
    mpnet,
    nomic_bert,
    olmo2,
    phi2,
    phi3,
    qwen,
    qwen2,
    qwen2moe,
    qwen2vl,
    qwen3,
    qwen3moe,
    qwen3vl,
    qwen3vlmoe,
    qwen35,
    qwen35moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    t5encoder,
)


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


_MODULES: tuple[Architecture, ...] = (
    llama, llama4, qwen, qwen2, qwen2moe, qwen2vl, qwen3, qwen3moe, qwen3vl, qwen3vlmoe,
    chatglm, glm4, gemma, gemma2, gemma3, gemma3n, gemma4, phi2, phi3, gpt2,
    gptneox, starcoder2, stablelm, falcon, internlm2, olmo2, baichuan, granite, granitemoe, smollm3, exaone4,
    command_r, cohere2, deepseek2, gpt_oss, lfm2, qwen35, qwen35moe, seed_oss,
    bert, mpnet, nomic_bert, jina_bert_v2, jina_bert_v3, modern_bert, gemma_embedding,
    t5, t5encoder,
)  # fmt: skip

#: Every architecture that runs, by its name in files.
ARCHITECTURES = {module.NAME: module for module in _MODULES}


def architecture(gguf: GGUFFile) -> Architecture:
    """The module of a file's architecture. Raises UnsupportedError listing the known ones."""
    name = gguf.require("general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"{gguf.path}: architecture {name!r} is not known; this version runs: {known}")
    return ARCHITECTURES[name]
