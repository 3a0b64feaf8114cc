"""Qwen3.5, dense and with experts: gated delta-net layers, and attention with an output gate in every fourth.

A delta net may have more heads of V than of Q and K. Checkpoints store the V heads of one K head consecutively; GGUF
stores the first of every K head, then the second of every one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import expert_metadata, read_experts
from gumba_convert.common.multimodal import PREFIXES, position_sections
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import plus_one
from gumba_convert.families.qwen2moe import mixture
from gumba_convert.gguf_writer import Value, u32

DENSE = ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration")
SPARSE = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
HF_ARCHITECTURES = DENSE + SPARSE
MODEL_TYPES = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")

DEFAULTS: decoder.Defaults = {"n_kv_heads": 4, "n_ctx": 32768, "head_dim": 256}
PERIOD = 4
SECTIONS = (11, 11, 10)
UNNEEDED = r"mtp\..*|model\.visual\..*"


@dataclass(frozen=True)
class DeltaNet:
    """Heads of Q and K, heads of V, the width of either's, and taps of the convolution."""

    n_keys: int
    n_values: int
    width: int
    kernel: int

    def order(self, width: int) -> np.ndarray:
        """Rows of all V heads, `width` each, in GGUF's order."""
        rows = np.arange(self.n_values * width).reshape(self.n_keys, -1, width)
        return rows.swapaxes(0, 1).reshape(-1)

    @property
    def channels(self) -> np.ndarray:
        """Rows of Q, K and V together in GGUF's order."""
        first = 2 * self.n_keys * self.width
        return np.concatenate([np.arange(first), first + self.order(self.width)])


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen3.5 checkpoint: architecture `qwen35`, or `qwen35moe` with experts.

    Vision parts and multi-token-prediction layers are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    name = decoder.architecture_name(checkpoint)
    sparse = name in SPARSE or (not name and "moe" in str(reader.config.get("model_type")))
    architecture = "qwen35moe" if sparse else "qwen35"
    if sparse and not reader.has("intermediate_size"):
        reader.config = reader.config | {"intermediate_size": reader.integer("moe_intermediate_size", 512)}
    d = decoder.read_decoder(reader, defaults=DEFAULTS, partial=0.25)
    reader.must_be("attention_bias", False)
    net = _delta_net(reader)
    linear = _linear_layers(reader, d.n_layers)
    values, factors = decoder.metadata(architecture, d, kinds=("default",))
    values |= _net_metadata(architecture, net, linear, d)
    experts = None
    shared = 0
    if sparse:
        width = reader.integer("moe_intermediate_size", 512)
        experts = read_experts(reader, "num_experts", n=256, n_used=8, n_ff=width)
        shared = reader.integer("shared_expert_intermediate_size", 512)
        values |= expert_metadata(architecture, experts, width=True)
        values[f"{architecture}.expert_shared_feed_forward_length"] = u32(shared)
    table = TensorTable(checkpoint, prefixes=PREFIXES, ignored=UNNEEDED)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, change=plus_one)
        if linear[layer.index]:
            _delta_net_tensors(layer, d, net)
        else:
            _attention(layer, d)
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd, change=plus_one)
        if experts is None:
            decoder.gated_ffn(layer, d)
        else:
            mixture(layer, d, experts, shared)
    table.norm("output_norm", "model.norm", d.n_embd, change=plus_one)
    return decoder.finish(architecture, d, values, table, factors)


def _delta_net(reader: ConfigReader) -> DeltaNet:
    width = reader.integer("linear_key_head_dim", 128)
    reader.must_be("linear_value_head_dim", width)
    keys, n_values = reader.integer("linear_num_key_heads", 16), reader.integer("linear_num_value_heads", 32)
    if n_values % keys:
        raise reader.fail("linear_num_key_heads", f"is {keys}, which does not divide the {n_values} heads of V")
    return DeltaNet(keys, n_values, width, reader.integer("linear_conv_kernel_dim", 4))


def _linear_layers(reader: ConfigReader, n_layers: int) -> list[bool]:
    """Layers that are delta nets, bool [n_layers]."""
    types = reader.config.get("layer_types")
    if types is None:
        period = reader.integer("full_attention_interval", PERIOD)
        return [bool((i + 1) % period) for i in range(n_layers)]
    known = ("linear_attention", "full_attention")
    if not isinstance(types, list) or len(types) != n_layers or any(kind not in known for kind in types):
        raise reader.fail("layer_types", f"is {str(types)[:100]}; expected {n_layers} of {known[0]} and {known[1]}")
    return [kind == "linear_attention" for kind in types]


def _net_metadata(architecture: str, net: DeltaNet, linear: list[bool], d: Decoder) -> dict[str, Value]:
    """The delta net's sizes, and the M-RoPE sections of image positions; text has the same position in all sections."""
    values = {
        "ssm.conv_kernel": u32(net.kernel),
        "ssm.state_size": u32(net.width),
        "ssm.group_count": u32(net.n_keys),
        "ssm.time_step_rank": u32(net.n_values),
        "ssm.inner_size": u32(net.n_values * net.width),
        "attention.recurrent_layers": decoder.booleans(linear),
        "full_attention_interval": u32(d.reader.integer("full_attention_interval", PERIOD)),
    }
    sections = position_sections(architecture, d, SECTIONS)
    return {f"{architecture}.{key}": value for key, value in values.items()} | sections


def _delta_net_tensors(layer: Layer, d: Decoder, net: DeltaNet) -> None:
    inner, n_inner = "linear_attn.", net.n_values * net.width
    n_channels = len(net.channels)
    heads, wide = net.order(1), net.order(net.width)
    layer.linear("attn_qkv", inner + "in_proj_qkv", (n_channels, d.n_embd), rows=net.channels)
    layer.linear("attn_gate", inner + "in_proj_z", (n_inner, d.n_embd), rows=wide)
    layer.tensor(
        "ssm_conv1d.weight",
        inner + "conv1d.weight",
        (n_channels, 1, net.kernel),
        rows=net.channels,
        written=(n_channels, net.kernel),
    )
    layer.tensor("ssm_dt.bias", inner + "dt_bias", (net.n_values,), rows=heads)
    layer.tensor("ssm_a", inner + "A_log", (net.n_values,), rows=heads, change=_decay)
    layer.linear("ssm_beta", inner + "in_proj_b", (net.n_values, d.n_embd), rows=heads)
    layer.linear("ssm_alpha", inner + "in_proj_a", (net.n_values, d.n_embd), rows=heads)
    layer.norm("ssm_norm", inner + "norm", net.width)
    layer.tensor("ssm_out.weight", inner + "out_proj.weight", (d.n_embd, n_inner), columns=wide)


def _decay(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = -np.exp(values)
    return result


def _attention(layer: Layer, d: Decoder) -> None:
    """Attention; each head of Q is followed by its gate."""
    layer.linear("attn_q", "self_attn.q_proj", (2 * d.n_q, d.n_embd))
    layer.linear("attn_k", "self_attn.k_proj", (d.n_kv, d.n_embd))
    layer.linear("attn_v", "self_attn.v_proj", (d.n_kv, d.n_embd))
    layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_q))
    decoder.head_norms(layer, d, change=plus_one)
