"""internlm2: InternLM2, InternLM2.5 (Cai et al. 2024): llama.

Checkpoints hold Q, K and V in one tensor, files hold three.
"""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_plain_config
from gumba.models.llama import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "internlm2"
FAMILIES = "InternLM2, InternLM2.5"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=False)
