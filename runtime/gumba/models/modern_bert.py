"""modern-bert: ModernBERT (Warner et al. 2024): an encoder with pre-norms, GeGLU and no biases.

Two of three layers have a window that reaches to both sides, and rotary embeddings with a base frequency of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder, encoder
from gumba.loading.config import (
    ENCODER_INERT_KEYS,
    POOLINGS,
    EncoderConfig,
    read_common,
    read_encoder,
    read_metadata,
    read_windows,
)
from gumba.loading.decoder_tensors import add_attention, add_feed_forward, add_norms
from gumba.loading.encoder_tensors import add_classifier_head, add_encoder_embeddings
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "modern-bert"
FAMILIES = "ModernBERT, GTE-ModernBERT, Granite Embedding R2, and their rerankers and classifiers"
VERIFIED = ("transformers", "llama.cpp")
#: The number of "first" in ``POOLINGS``, the default of transformers' heads.
FIRST = POOLINGS.index("first")


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """Half of the window is on each side; ``classifies_mean``: the head reads the mean over all tokens, not the first token."""

    local_freq_base: float
    classifies_mean: bool


def read_config(gguf: GGUFFile) -> ModernBertConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window", inert=ENCODER_INERT_KEYS) as metadata:
        common = read_common(metadata, neox=True, norm="layer_norm_epsilon", freq_base=160000.0)
        metadata.must_be({"hidden_activation": ("gelu",)})
        pooling = POOLINGS[metadata.size("classifier.pooling_type", len(POOLINGS) - 1) or FIRST]
        if pooling not in ("mean", "first"):
            raise metadata.unsupported("classifier.pooling_type", f"is {pooling}, expected mean or first")
        return ModernBertConfig(
            **vars(read_windows(metadata, read_encoder(metadata, common), 3, default=128, first=True)),
            local_freq_base=metadata.number("rope.freq_base_swa", 10000.0, minimum=1.001),
            classifies_mean=pooling == "mean",
        )


def load_weights(loader: Loader, c: ModernBertConfig) -> Weights:
    """Declare and load the weights."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_encoder_embeddings(t, c, bias=False)
    t.add("output_norm", "output_norm.weight", c.n_embd)
    for i in range(c.n_layers):
        t.add("attn_norm", "attn_norm.weight", c.n_embd, layer=i, required=i > 0)
        add_norms(t, c, i, "ffn_norm")
        add_attention(t, c, i)
        add_feed_forward(t, c, i, fused=True)
    add_classifier_head(t, c)
    return t.load(loader, Weights)


def forward(p: Program, c: ModernBertConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the head's outputs [n_outputs, n_labels]."""
    everywhere = decoder.rope_table(p, c.rope)
    local = decoder.rope_table(p, replace(c.rope, freq_base=c.local_freq_base))
    x = p.layer_norm(encoder.embed(p, c, w), w.token_embd_norm, None, c.norm_eps)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, None, c.norm_eps) if layer.has("attn_norm") else x
        table, seen = (local, c.window // 2 + 1) if c.windowed[i] else (everywhere, 0)
        x = decoder.attention(p, c, layer, h, i, table, residual=x, window=seen, causal=False)
        x = decoder.gated_ffn(p, layer, p.layer_norm(x, layer.ffn_norm, None, c.norm_eps), "gelu", residual=x)
    if not (c.n_labels and c.classifies_mean):
        return encoder.outputs(p, c, w, p.layer_norm(p.select_outputs(x), w.output_norm, None, c.norm_eps), "gelu")
    x = p.layer_norm(x, w.output_norm, None, c.norm_eps)
    return encoder.outputs(p, c, w, p.select_outputs(x), "gelu", p.select_outputs(p.text_means(x)))
