"""qwen3vlmoe: the text of Qwen3-VL-30B-A3B and its like (Bai et al. 2025): qwen3moe, with qwen3vl's positions."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.layers.decoder import ExpertsConfig
from gumba.models.qwen3moe import forward, load_weights

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "qwen3vlmoe"
FAMILIES = "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text)"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> ExpertsConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    with decoder.reading(gguf, NAME, *decoder.EXPERT_KEYS, pictures=True) as keys:
        common = decoder.read_common(keys, neox=True)
        return common.extended(ExpertsConfig, **decoder.read_required_experts(keys, common))
