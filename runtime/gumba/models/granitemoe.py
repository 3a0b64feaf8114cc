"""granitemoe: Granite 3 with experts (IBM 2024), with or without a shared one."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.models.granite import GraniteConfig, forward, load_weights, read_named

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "granitemoe"
FAMILIES = "Granite 3 1B-A400M, 3B-A800M"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> GraniteConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_named(gguf, NAME)
