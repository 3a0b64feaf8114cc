"""qwen: Qwen-1 (Bai et al. 2023): llama with biases on Q, K and V, which are one tensor.

``feed_forward_length`` counts gate and up together.
"""

from __future__ import annotations

from dataclasses import replace

from gumba.errors import ModelError
from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_plain_config
from gumba.models.llama import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen"
FAMILIES = "Qwen-1"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    common = read_plain_config(gguf, NAME, neox=True)
    if common.n_ff % 2:
        raise ModelError(f"{gguf.path}: metadata qwen.feed_forward_length is {common.n_ff}, expected an even number")
    return replace(common, n_ff=common.n_ff // 2)
