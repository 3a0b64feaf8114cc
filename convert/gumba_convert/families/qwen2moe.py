"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, many small experts, and a shared expert."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import Experts, expert_metadata, read_experts, separate_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "qwen2moe"
HF_ARCHITECTURES = ("Qwen2MoeForCausalLM",)
MODEL_TYPES = ("qwen2_moe",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 16, "n_ctx": 32768}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen2-MoE checkpoint; the weights of the selected experts are not normalized.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    every_layer_is_sparse(d)
    reader.must_be("norm_topk_prob", False)
    reader.must_be("qkv_bias", True)
    experts = read_experts(reader, "num_experts", n=60, n_used=4, n_ff=reader.integer("moe_intermediate_size", 1408))
    shared = reader.integer("shared_expert_intermediate_size", 5632)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    values |= expert_metadata(ARCHITECTURE, experts, width=True)
    values["qwen2moe.expert_shared_feed_forward_length"] = u32(shared)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=True)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        mixture(layer, d, experts, shared)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def mixture(layer: Layer, d: Decoder, experts: Experts, shared: int) -> None:
    """Router and experts, and the shared expert with its own gate."""
    layer.linear("ffn_gate_inp", "mlp.gate", (experts.n, d.n_embd))
    separate_experts(layer, d, experts, "mlp.experts")
    layer.linear("ffn_gate_inp_shexp", "mlp.shared_expert_gate", (1, d.n_embd))
    layer.linear("ffn_gate_shexp", "mlp.shared_expert.gate_proj", (shared, d.n_embd))
    layer.linear("ffn_up_shexp", "mlp.shared_expert.up_proj", (shared, d.n_embd))
    layer.linear("ffn_down_shexp", "mlp.shared_expert.down_proj", (d.n_embd, shared))


def every_layer_is_sparse(d: Decoder) -> None:
    """Refuse Qwen's dense layers, and its windows."""
    d.reader.must_be("decoder_sparse_step", 1)
    d.reader.must_be("mlp_only_layers", [])
    d.reader.must_be("use_sliding_window", False)
    decoder.full_only(d)
