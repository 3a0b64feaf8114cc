"""qwen3vlmoe: the text of Qwen3-VL-30B-A3B and its like (Bai et al. 2025): qwen3moe with the positions of qwen3vl."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata
from gumba.models.qwen3moe import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen3vlmoe"
FAMILIES = "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text)"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, *EXPERT_KEYS, multimodal=True) as metadata:
        common = read_common(metadata, neox=True)
        return read_experts(metadata, common)
