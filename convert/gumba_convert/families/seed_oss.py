"""Seed-OSS: Llama with biases on Q, K and V, with RoPE as in Qwen."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable

ARCHITECTURE = "seed_oss"
HF_ARCHITECTURES = ("SeedOssForCausalLM",)
MODEL_TYPES = ("seed_oss",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 524288, "head_dim": 128}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Seed-OSS checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("attention_out_bias", False)
    reader.must_be("mlp_bias", False)
    bias = reader.flag("attention_bias", True)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=bias)
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
