"""qwen3vl: the text of Qwen3-VL (Bai et al. 2025): qwen3, whose positions have several coordinates for image tokens."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_common, read_metadata
from gumba.models.qwen3 import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen3vl"
FAMILIES = "Qwen3-VL (text)"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, multimodal=True) as metadata:
        return read_common(metadata, neox=True)
