"""Seed-OSS: Llama with biases on Q, K and V, rotated as Qwen's are."""

from __future__ import annotations

from gumba_convert.checkpoint import Checkpoint
from gumba_convert.decoder import (
    attention,
    embedding_and_head,
    finish,
    gated_ffn,
    metadata,
    read_decoder,
    text_config,
)
from gumba_convert.plan import Plan
from gumba_convert.table import TensorTable

ARCHITECTURE = "seed_oss"
HF_ARCHITECTURES = ("SeedOssForCausalLM",)
MODEL_TYPES = ("seed_oss",)

DEFAULTS = {"n_kv_heads": 8, "n_ctx": 524288, "head_dim": 128}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Seed-OSS checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = text_config(checkpoint)
    d = read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("attention_out_bias", False)
    reader.must_be("mlp_bias", False)
    bias = reader.flag("attention_bias", True)
    values, factors = metadata(ARCHITECTURE, d)
    table = TensorTable(checkpoint)
    embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        attention(layer, d, bias=bias)
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
        gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return finish(ARCHITECTURE, d, values, table, factors)
