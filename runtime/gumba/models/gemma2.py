"""gemma2: Gemma 2 (Riviere et al. 2024): norms before and after attention and feed-forward network, soft caps, sliding windows.

Scores and logits are capped by a tanh; the first, third, ... layers have a sliding window. Scores have a scale of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata, read_windows
from gumba.loading.decoder_tensors import PRE_POST_NORMS, decoder_table
from gumba.loading.metadata import MetadataReader
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "gemma2"
FAMILIES = "Gemma 2"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Gemma2Config(Config):
    score_cap: float
    logit_cap: float
    query_scale: float


def read_config(gguf: GGUFFile) -> Gemma2Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    own = ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "attention.scale")
    with read_metadata(gguf, NAME, *own) as metadata:
        common = read_common(metadata, neox=True)
        return Gemma2Config(
            **vars(read_windows(metadata, common, 2, default=4096)),
            score_cap=metadata.number("attn_logit_softcapping", 50.0),
            logit_cap=metadata.number("final_logit_softcapping", 30.0),
            query_scale=read_query_scale(metadata, common, largest=46),
        )


def read_query_scale(metadata: MetadataReader, common: Config, largest: int) -> float:
    """The scale of the scores, 1 / sqrt(head_dim) by default.

    In the model of ``largest`` layers, the largest of its family, it is 1 / sqrt(n_embd / n_heads), which differs.
    """
    usual = common.n_embd // common.n_heads if common.n_layers == largest else common.head_dim
    return metadata.number("attention.scale", 1.0 / math.sqrt(usual))


def load_weights(loader: Loader, c: Gemma2Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norms=PRE_POST_NORMS, classifier_head=True).load(loader, Weights)


def forward(p: Program, c: Gemma2Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        h = decoder.attention(p, c, layer, h, i, table, scale=c.query_scale, window=c.window_of(i), softcap=c.score_cap)
        x = decoder.post_norm_block(p, c, layer, x, h, "gelu_tanh")
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, logits if c.n_labels else p.softcap(logits, c.logit_cap)
