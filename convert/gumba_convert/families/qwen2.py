"""Qwen2, Qwen2.5 and models distilled into them: Q, K and V have biases, the other matrices none."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.multimodal import position_sections
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable

ARCHITECTURE = "qwen2"
HF_ARCHITECTURES = decoder.with_heads("Qwen2")
MODEL_TYPES = ("qwen2",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 32, "n_ctx": 32768}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    return language_model(decoder.text_config(checkpoint), TensorTable(checkpoint, prefixes=decoder.BARE))


def language_model(
    reader: ConfigReader, table: TensorTable, *, architecture: str = ARCHITECTURE, sections: tuple[int, ...] = ()
) -> Plan:
    """`plan` for a model that may be part of a multimodal one; `sections`: see `position_sections`, None without any."""
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("use_sliding_window", False)
    decoder.full_only(d)
    values, factors = decoder.metadata(architecture, d)
    if sections:
        values |= position_sections(architecture, d, sections)
    values |= decoder.embedding_and_any_head(table, d, architecture)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=True)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(architecture, d, values, table, factors)
