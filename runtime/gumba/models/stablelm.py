"""stablelm: StableLM 2 and StableLM-3B (Bellagente et al. 2024): llama with LayerNorm, and a part of each head rotary.

StableLM 2 12B applies a LayerNorm to each head of queries and keys, and has no norm before the feed-forward network, which has
the same input as attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import PRE_NORMS, add_qk_layer_norms, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "stablelm"
FAMILIES = "StableLM-3B, StableLM 2 1.6B and 12B"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class StableLMConfig(Config):
    parallel: bool


def read_config(gguf: GGUFFile) -> StableLMConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "use_parallel_residual") as metadata:
        common = read_common(metadata, neox=True, norm="layer_norm_epsilon")
        metadata.flag("use_parallel_residual", False)
        return StableLMConfig(**vars(common), parallel="blk.0.ffn_norm.weight" not in gguf.tensors)


def load_weights(loader: Loader, c: StableLMConfig) -> Weights:
    """Declare and load the weights."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm",) if c.parallel else PRE_NORMS, norm_bias=True)
    for i in range(c.n_layers):
        add_qk_layer_norms(t, c, i)
    return t.load(loader, Weights)


def forward(p: Program, c: StableLMConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        q, k, v = decoder.project_qkv(p, layer, h)
        q, k = decoder.qk_layer_norm(p, c, layer, q, k)
        x = decoder.attend(p, c, layer, (q, k, v), i, table, residual=x)
        if not c.parallel:
            h = p.layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.layer_norm_outputs(p, c, w, x)
