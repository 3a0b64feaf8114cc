"""modern-bert: ModernBERT (Warner et al. 2024): an encoder with norms before each half of a layer, GeGLU and no biases.

Of every three layers two see a window only, as many tokens to either side, and turn queries and keys at a rate of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gumba.gguf import GGUFFile
from gumba.models import decoder, encoder
from gumba.models.encoder import ENCODERS_WITHOUT, EncoderConfig
from gumba.models.keys import Keys
from gumba.models.loader import MAX_LAYERS, Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "modern-bert"
FAMILIES = "ModernBERT, GTE-ModernBERT, Granite Embedding R2, and their rerankers and classifiers"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """``window``: tokens that a token sees in the layers that are ``windowed``, itself among them, half on either side."""

    window: int
    windowed: tuple[bool, ...]
    local_freq_base: float


def read_config(gguf: GGUFFile) -> ModernBertConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be({key: values for key, values in ENCODERS_WITHOUT.items() if key != "attention.sliding_window"})
    common = decoder.read_common(keys, neox=True, norm="layer_norm_epsilon", freq_base=160000.0)
    # A head that judges the mean of all tokens is not run: heads here judge each token's state.
    keys.must_be({"hidden_activation": ("gelu",), "classifier.pooling_type": (2,)})
    key = "attention.sliding_window_pattern"
    if keys.is_array(key):
        windowed = keys.flags(key, common.n_layers) or ()
    else:
        period = keys.count(key, MAX_LAYERS, 3)
        windowed = tuple(i % period != 0 for i in range(common.n_layers))
    config: ModernBertConfig = encoder.read_encoder(
        keys,
        common,
        ModernBertConfig,
        window=keys.count("attention.sliding_window", 1 << 30, 128),
        windowed=windowed,
        local_freq_base=keys.number("rope.freq_base_swa", 10000.0, least=1.001),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: ModernBertConfig) -> Group:
    """Read and weave everything."""
    t = Tensors(loader.gguf, c.n_layers)
    encoder.add_embedding(t, c, bias=False)
    t.add("output_norm", "output_norm.weight", c.n_embd)
    for i in range(c.n_layers):
        t.add("attn_norm", "attn_norm.weight", c.n_embd, layer=i, required=i > 0)
        decoder.add_norms(t, c, i, "ffn_norm")
        decoder.add_attention(t, c, i)
        decoder.add_feed_forward(t, c, i, fused=True)
    encoder.add_head(t, c)
    return t.load(loader, numbers=("token_types",))


def forward(p: Program, c: ModernBertConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the head's, float32 [n_outputs, n_labels]."""
    everywhere = decoder.rotation(p, c.rope, n_ctx)
    local = decoder.rotation(p, replace(c.rope, freq_base=c.local_freq_base), n_ctx)
    x = p.layer_norm(encoder.embedded(p, c, w), w.token_embd_norm, None, c.norm_eps)
    for i, layer in enumerate(w.layers):
        h = x if layer.attn_norm is None else p.layer_norm(x, layer.attn_norm, None, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q, k = decoder.turned(p, c, q, k, local if c.windowed[i] else everywhere)
        seen = c.window // 2 + 1 if c.windowed[i] else 0
        a = p.attention(q, k, v, kv, layer=i, scale=1.0 / math.sqrt(c.head_dim), window=seen, causal=False)
        x = p.matmul(layer.attn_output, a, residual=x, bias=layer.attn_output_bias)
        x = decoder.gated(p, layer, p.layer_norm(x, layer.ffn_norm, None, c.norm_eps), "gelu", residual=x)
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, None, c.norm_eps)
    return encoder.outputs(p, c, w, hidden, "gelu")
