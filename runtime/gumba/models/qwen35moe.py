"""qwen35moe: Qwen3.5 (Qwen 2026) with experts, and a shared expert with a sigmoid gate."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.models.qwen35 import Qwen35Config, forward, load_weights, read_named

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen35moe"
FAMILIES = "Qwen3.5-35B-A3B, 122B-A10B, 397B-A17B"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Qwen35Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_named(gguf, NAME, sparse=True)
