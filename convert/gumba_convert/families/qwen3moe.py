"""Qwen3's mixtures of experts: Qwen3's attention, and experts only."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.experts import expert_metadata, read_experts, separate_experts
from gumba_convert.common.multimodal import position_sections
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.families.qwen2moe import every_layer_is_sparse
from gumba_convert.gguf_writer import Value

ARCHITECTURE = "qwen3moe"
HF_ARCHITECTURES = ("Qwen3MoeForCausalLM",)
MODEL_TYPES = ("qwen3_moe",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 4, "n_ctx": 32768}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen3-MoE checkpoint; the weights of the selected experts are normalized to sum to 1.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    return language_model(decoder.text_config(checkpoint), TensorTable(checkpoint), normalizes=False)


def language_model(
    reader: ConfigReader,
    table: TensorTable,
    *,
    architecture: str = ARCHITECTURE,
    normalizes: bool = True,
    sections: tuple[int, ...] = (),
    more: dict[str, Value] | None = None,
) -> Plan:
    """`plan` for a model that may be part of a multimodal one, with `more` metadata.

    `normalizes`: the default of `norm_topk_prob`; `sections`: see `position_sections`.
    """
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    every_layer_is_sparse(d)
    if not reader.flag("norm_topk_prob", normalizes):
        raise reader.fail("norm_topk_prob", "is false; only true is supported")
    experts = read_experts(reader, "num_experts", n=128, n_used=8, n_ff=reader.integer("moe_intermediate_size", 768))
    bias = reader.flag("attention_bias", False)
    values, factors = decoder.metadata(architecture, d)
    values |= expert_metadata(architecture, experts, width=True) | (more or {})
    if sections:
        values |= position_sections(architecture, d, sections)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        decoder.head_norms(layer, d)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_gate_inp", "mlp.gate", (experts.n, d.n_embd))
        separate_experts(layer, d, experts, "mlp.experts")
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(architecture, d, values, table, factors)
