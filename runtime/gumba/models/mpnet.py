"""mpnet: MPNet (Song et al. 2020): bert without token types, with T5's relative position biases besides learned positions.

One table of biases serves all layers. llama.cpp does not have this architecture; the name is gumba's.
"""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder, encoder
from gumba.loading.config import ENCODER_INERT_KEYS, EncoderConfig, read_common, read_encoder, read_metadata
from gumba.loading.encoder_tensors import encoder_table
from gumba.loading.relative_bias import biases, read_buckets
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array, Weights

NAME = "mpnet"
FAMILIES = "MPNet (all-mpnet-base-v2, multi-qa-mpnet-base)"
VERIFIED = ("transformers",)


class MPNetWeights(Weights):
    attn_rel_b: Array


@dataclass(frozen=True)
class MPNetConfig(EncoderConfig):
    """``n_buckets``: buckets of distances, see ``loading/relative_bias.py``."""

    n_buckets: int


def read_config(gguf: GGUFFile) -> MPNetConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, inert=ENCODER_INERT_KEYS) as metadata:
        common = read_common(metadata, neox=False, norm="layer_norm_epsilon")
        return MPNetConfig(**vars(read_encoder(metadata, common)), n_buckets=read_buckets(metadata))


def load_weights(loader: Loader, c: MPNetConfig) -> MPNetWeights:
    """Declare and load the weights."""
    t = encoder_table(loader.gguf, c, gate=False)
    t.add("position_embd", "position_embd.weight", c.n_ctx_train, c.n_embd)
    t.add("attn_rel_b", "attn_rel_b.weight", c.n_buckets, c.n_heads)
    return t.load(loader, MPNetWeights)


def forward(p: Program, c: MPNetConfig, w: MPNetWeights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the head's outputs [n_outputs, n_labels]."""
    bias = biases(w.attn_rel_b, causal=False)
    x = p.add_positions(encoder.embed(p, c, w), w.position_embd)
    x = p.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        x = decoder.attention(p, c, layer, x, i, None, residual=x, causal=False, bias=bias)
        x = encoder.post_norm_block(p, c, layer, x, "gelu", gate=False)
    return encoder.outputs(p, c, w, p.select_outputs(x))
