"""qwen2: Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen, QwQ (Yang et al. 2024): llama with biases on Q, K and V.

The elements of a rotary pair are half a head apart.
"""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_plain_config
from gumba.models.llama import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen2"
FAMILIES = "Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=True)
