"""qwen2vl: the text of Qwen2-VL and Qwen2.5-VL (Wang et al. 2024, Bai et al. 2025): qwen2.

Positions have several coordinates, which differ for image tokens only.
"""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_common, read_metadata
from gumba.models.llama import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen2vl"
FAMILIES = "Qwen2-VL, Qwen2.5-VL (text)"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, multimodal=True) as metadata:
        return read_common(metadata, neox=True)
