"""seed_oss: Seed-OSS (ByteDance 2025): qwen2 with a given size of heads, and another name for the second norm."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import Config, read_plain_config
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights
from gumba.models.llama import forward

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "seed_oss"
FAMILIES = "Seed-OSS"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=True)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm",))
    for i in range(c.n_layers):
        t.add("ffn_norm", "post_attention_norm.weight", c.n_embd, layer=i)
    return t.load(loader, Weights)
