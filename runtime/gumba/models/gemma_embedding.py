"""gemma-embedding: EmbeddingGemma (Vera et al. 2025): gemma3 as an encoder, whose windows reach to both sides.

Some files have two projections without biases at the end. They are linear, so they can come before the mean over all tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Matrix, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import (
    ENCODER_INERT_KEYS,
    EncoderConfig,
    read_common,
    read_encoder,
    read_metadata,
    read_windows,
)
from gumba.loading.decoder_tensors import PRE_POST_NORMS, decoder_table
from gumba.loading.weight_loader import MAX_WIDTH, Loader
from gumba.loading.weights import Weights

NAME = "gemma-embedding"
FAMILIES = "EmbeddingGemma"
VERIFIED = ("transformers", "llama.cpp")


class GemmaEmbeddingWeights(Weights):
    dense_2: Matrix
    dense_3: Matrix


@dataclass(frozen=True)
class GemmaEmbeddingConfig(EncoderConfig):
    """Half of the window is on each side; ``n_dense``: width between the two projections, 0 without them."""

    local_freq_base: float
    query_scale: float
    n_dense: int


def read_config(gguf: GGUFFile) -> GemmaEmbeddingConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    own = ("attention.sliding_window", "attention.scale")
    with read_metadata(gguf, NAME, *own, inert=ENCODER_INERT_KEYS) as metadata:
        common = read_common(metadata, neox=True, freq_base=1000000.0)
        metadata.must_be({"dense_2_feat_in": (common.n_embd,), "dense_3_feat_out": (common.n_embd,)})
        n_dense = metadata.size("dense_2_feat_out", MAX_WIDTH)
        metadata.must_be({"dense_3_feat_in": (n_dense,)})
        return GemmaEmbeddingConfig(
            **vars(read_windows(metadata, read_encoder(metadata, common), 6)),
            local_freq_base=metadata.number("rope.freq_base_swa", 10000.0, minimum=1.001),
            query_scale=metadata.number("attention.scale", 1.0 / math.sqrt(common.head_dim)),
            n_dense=n_dense,
        )


def load_weights(loader: Loader, c: GemmaEmbeddingConfig) -> GemmaEmbeddingWeights:
    """Declare and load the weights."""
    t = decoder_table(loader.gguf, c, norms=PRE_POST_NORMS, head_norms=True)
    if c.n_dense:
        t.add("dense_2", "dense_2.weight", c.n_dense, c.n_embd)
        t.add("dense_3", "dense_3.weight", c.n_embd, c.n_dense)
    return t.load(loader, GemmaEmbeddingWeights)


def forward(p: Program, c: GemmaEmbeddingConfig, w: GemmaEmbeddingWeights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd], twice: there are no logits."""
    everywhere = decoder.rope_table(p, c.rope, w.rope_freqs)
    local = decoder.rope_table(p, replace(c.rope, freq_base=c.local_freq_base, scaling="none"))
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        table, seen = (local, c.window // 2 + 1) if c.windowed[i] else (everywhere, 0)
        h = decoder.qk_norm_attention(p, c, layer, h, i, table, scale=c.query_scale, window=seen, causal=False)
        x = decoder.post_norm_block(p, c, layer, x, h, "gelu_tanh")
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    if c.n_dense:
        hidden = p.matmul(w.dense_3, p.matmul(w.dense_2, hidden))
    return hidden, hidden
