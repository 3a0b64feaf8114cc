"""Mixtral checkpoints: GGUF's architecture `llama` with experts."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.experts import expert_metadata, read_experts, separate_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.families.llama import ARCHITECTURE, llama_attention, read_window
from gumba_convert.gguf_writer import u32

HF_ARCHITECTURES = ("MixtralForCausalLM",)
MODEL_TYPES = ("mixtral",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 131072, "norm_eps": 1e-5}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Mixtral checkpoint; the weights of the selected experts are normalized to sum to 1.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, theta=1e6)
    experts = read_experts(reader, "num_local_experts", n_used=2, n_ff=d.n_ff)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    values |= expert_metadata(ARCHITECTURE, experts)
    window = read_window(reader, d, None)
    if window:
        values["llama.attention.sliding_window"] = u32(window)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        llama_attention(layer, d)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_gate_inp", "block_sparse_moe.gate", (experts.n, d.n_embd))
        separate_experts(layer, d, experts, "block_sparse_moe.experts", names=("w1", "w3", "w2"))
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
