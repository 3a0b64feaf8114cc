"""DeepSeek V2 and V3: multi-head latent attention, and experts after a few dense layers.

GGUF stores the K and V parts of `kv_b_proj` separately, head by head, K's transposed: attention then works on the latent
vectors, as one head of K and V that all query heads share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import Experts, expert_metadata, read_experts, separate_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import Value, boolean, f32, u32

ARCHITECTURE = "deepseek2"
HF_ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
MODEL_TYPES = ("deepseek_v2", "deepseek_v3")

SOFTMAX, SIGMOID = 1, 2


@dataclass(frozen=True)
class Latent:
    """Widths of latent attention; `q_rank` is 0 if Q is one matrix."""

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a DeepSeek V2 or V3 checkpoint; multi-token-prediction layers are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    reader = ConfigReader({key: value for key, value in reader.config.items() if key != "head_dim"}, reader.where)
    latent = Latent(
        reader.integer("q_lora_rank") if reader.has("q_lora_rank") else 0,
        reader.integer("kv_lora_rank", 512),
        reader.integer("qk_nope_head_dim", 128),
        reader.integer("qk_rope_head_dim", 64),
        reader.integer("v_head_dim", 128),
    )
    d = replace(decoder.read_decoder(reader), head_dim=latent.rope, n_kv_heads=1)
    third = checkpoint.config.get("architectures") == ["DeepseekV3ForCausalLM"] or reader.config.get("model_type") == (
        "deepseek_v3"
    )
    for key, wanted in (
        ("attention_bias", False),
        ("mlp_bias", False),
        ("moe_layer_freq", 1),
        ("rope_interleave", True),
    ):
        reader.must_be(key, wanted)
    experts = read_experts(
        reader, "n_routed_experts", n=256 if third else 64, n_used=8 if third else None, n_ff=_width(reader)
    )
    shared = reader.integer("n_shared_experts", 1 if third else 2)
    dense = _count(reader, "first_k_dense_replace", d.n_layers)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "yarn"), log_multiplier=True)
    values |= _attention_metadata(latent)
    values |= expert_metadata(ARCHITECTURE, experts, width=True) | _routing(reader, third)
    values["deepseek2.expert_shared_count"] = u32(shared)
    values["deepseek2.leading_dense_block_count"] = u32(dense)
    extra = rf"model\.layers\.({'|'.join(str(d.n_layers + i) for i in range(_count(reader, 'num_nextn_predict_layers', 8)))})\..*"
    table = TensorTable(checkpoint, ignored=extra)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        _attention(layer, d, latent)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        if layer.index < dense:
            decoder.gated_ffn(layer, d)
        else:
            _mixture(layer, d, experts, shared, third)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _width(reader: ConfigReader) -> int:
    return reader.integer("moe_intermediate_size")


def _count(reader: ConfigReader, key: str, limit: int) -> int:
    """An integer from 0 to `limit`; 0 if the key is absent."""
    value = reader.config.get(key)
    if value is None or (type(value) is int and value == 0):
        return 0
    count = reader.integer(key)
    if count > limit:
        raise reader.fail(key, f"is {count}; expected at most {limit}")
    return count


def _attention_metadata(latent: Latent) -> dict[str, Value]:
    key = "deepseek2.attention."
    values = {
        key + "kv_lora_rank": u32(latent.kv_rank),
        key + "key_length": u32(latent.kv_rank + latent.rope),
        key + "value_length": u32(latent.kv_rank),
        key + "key_length_mla": u32(latent.nope + latent.rope),
        key + "value_length_mla": u32(latent.value),
    }
    return values | ({key + "q_lora_rank": u32(latent.q_rank)} if latent.q_rank else {})


def _routing(reader: ConfigReader, third: bool) -> dict[str, Value]:
    """Metadata of the expert routing."""
    reader.must_be("scoring_func", "sigmoid" if third else "softmax")
    reader.must_be("topk_method", "noaux_tc" if third else "greedy")
    values = {
        "deepseek2.expert_gating_func": u32(SIGMOID if third else SOFTMAX),
        "deepseek2.expert_weights_scale": f32(reader.number("routed_scaling_factor", 2.5 if third else 1.0)),
    }
    if reader.flag("norm_topk_prob", third):
        if not third:
            raise reader.fail("norm_topk_prob", "is true; only false is supported")
        values["deepseek2.expert_weights_norm"] = boolean(True)
    if third:
        values["deepseek2.expert_group_count"] = u32(reader.integer("n_group", 8))
        values["deepseek2.expert_group_used_count"] = u32(reader.integer("topk_group", 4))
    return values


def _attention(layer: Layer, d: Decoder, latent: Latent) -> None:
    n_q = d.n_heads * (latent.nope + latent.rope)
    if latent.q_rank:
        layer.linear("attn_q_a", "self_attn.q_a_proj", (latent.q_rank, d.n_embd))
        layer.norm("attn_q_a_norm", "self_attn.q_a_layernorm", latent.q_rank)
        layer.linear("attn_q_b", "self_attn.q_b_proj", (n_q, latent.q_rank))
    else:
        layer.linear("attn_q", "self_attn.q_proj", (n_q, d.n_embd))
    layer.linear("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", (latent.kv_rank + latent.rope, d.n_embd))
    layer.norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", latent.kv_rank)
    both = np.arange(d.n_heads * (latent.nope + latent.value)).reshape(d.n_heads, -1)
    shape = (both.size, latent.kv_rank)
    layer.tensor(
        "attn_k_b.weight",
        "self_attn.kv_b_proj.weight",
        shape,
        rows=both[:, : latent.nope].reshape(-1),
        transposed=True,
        written=(d.n_heads, latent.kv_rank, latent.nope),
    )
    layer.tensor(
        "attn_v_b.weight",
        "self_attn.kv_b_proj.weight",
        shape,
        rows=both[:, latent.nope :].reshape(-1),
        written=(d.n_heads, latent.value, latent.kv_rank),
    )
    layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_heads * latent.value))


def _mixture(layer: Layer, d: Decoder, experts: Experts, shared: int, third: bool) -> None:
    width = shared * experts.n_ff
    layer.linear("ffn_gate_inp", "mlp.gate", (experts.n, d.n_embd))
    if third:
        layer.tensor("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", (experts.n,))
    separate_experts(layer, d, experts, "mlp.experts")
    layer.linear("ffn_gate_shexp", "mlp.shared_experts.gate_proj", (width, d.n_embd))
    layer.linear("ffn_up_shexp", "mlp.shared_experts.up_proj", (width, d.n_embd))
    layer.linear("ffn_down_shexp", "mlp.shared_experts.down_proj", (d.n_embd, width))
