"""seed_oss: Seed-OSS (ByteDance 2025): as qwen2, with the size of a head given, and another name for the second norm."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT
from gumba.models.keys import Keys
from gumba.models.llama import LlamaConfig, forward
from gumba.models.loader import Loader
from gumba.models.tensors import Group, Tensors

__all__ = ["FAMILIES", "NAME", "VERIFIED", "forward", "load_weights", "read_config"]

NAME = "seed_oss"
FAMILIES = "Seed-OSS"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> LlamaConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be(WITHOUT)
    common = decoder.read_common(keys, neox=True)
    config: LlamaConfig = common.extended(LlamaConfig, window=0, n_experts=0, n_used=0)
    keys.finish()
    return config


def load_weights(loader: Loader, c: LlamaConfig) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm")
        decoder.add_attention(t, c, i)
        t.add("ffn_norm", "post_attention_norm.weight", c.n_embd, layer=i)
        decoder.add_feed_forward(t, c, i)
    return t.load(loader)
