"""command-r: Command R, R+, Aya (Cohere 2024): attention and feed-forward network in parallel after a LayerNorm without bias.

Command R+ applies a LayerNorm to each head of queries and keys, with weights per head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import add_qk_layer_norms, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "command-r"
FAMILIES = "Command R, Command R+, Aya 23, Aya Expanse"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class CommandRConfig(Config):
    logit_scale: float


def read_config(gguf: GGUFFile) -> CommandRConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "logit_scale") as metadata:
        common = read_common(metadata, neox=False, norm="layer_norm_epsilon")
        return CommandRConfig(**vars(common), logit_scale=metadata.number("logit_scale", 0.0, or_zero=True) or 1.0)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm",))
    for i in range(c.n_layers):
        add_qk_layer_norms(t, c, i)
    return t.load(loader, Weights)


def forward(p: Program, c: CommandRConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, None, c.norm_eps)
        q, k, v = decoder.project_qkv(p, layer, h)
        q, k = decoder.apply_rope(p, c, *decoder.qk_layer_norm(p, c, layer, q, k), table)
        a = p.attention(q, k, v, layer=i, scale=1.0 / math.sqrt(c.head_dim))
        x = p.matmul(layer.attn_output, a, residual=x, bias=layer.attn_output_bias)
        x = decoder.swiglu(p, layer, h, residual=x)
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, None, c.norm_eps)
    return hidden, p.scale(p.matmul(w.output or w.token_embd, hidden), c.logit_scale)
