"""Qwen3: each head of Q and K is normed before it is rotated."""

from __future__ import annotations

from gumba_convert.checkpoint import Checkpoint
from gumba_convert.decoder import (
    BARE,
    attention,
    embedding_and_any_head,
    finish,
    full_only,
    gated_ffn,
    head_norms,
    metadata,
    read_decoder,
    text_config,
    with_heads,
)
from gumba_convert.plan import Plan
from gumba_convert.table import TensorTable

ARCHITECTURE = "qwen3"
HF_ARCHITECTURES = with_heads("Qwen3")
MODEL_TYPES = ("qwen3",)

DEFAULTS = {"n_kv_heads": 32, "n_ctx": 32768, "head_dim": 128}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen3 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = text_config(checkpoint)
    d = read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("use_sliding_window", False)
    full_only(d)
    bias = reader.flag("attention_bias", False)
    values, factors = metadata(ARCHITECTURE, d)
    table = TensorTable(checkpoint, renamed=BARE)
    values |= embedding_and_any_head(table, d, ARCHITECTURE)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        attention(layer, d, bias=bias, output_bias=bias)
        head_norms(layer, d)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return finish(ARCHITECTURE, d, values, table, factors)
