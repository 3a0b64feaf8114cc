"""chatglm: ChatGLM2, ChatGLM3, GLM-4-9B (Zeng et al. 2024): llama with half of each head rotary, and fused tensors.

Q, K and V have biases; the elements of a rotary pair are neighbours; gate and up are one tensor.
"""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_plain_config
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights
from gumba.models.llama import forward

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "chatglm"
FAMILIES = "ChatGLM2, ChatGLM3, GLM-4-9B"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=False)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, feed_forward="fused").load(loader, Weights)
