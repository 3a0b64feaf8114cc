"""LFM2: short gated convolutions in most layers, attention with norms on the heads in the others."""

from __future__ import annotations

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import i32_array, u32

ARCHITECTURE = "lfm2"
HF_ARCHITECTURES = ("Lfm2ForCausalLM", "LFM2ForCausalLM")
MODEL_TYPES = ("lfm2",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 128000, "norm_eps": 1e-5, "tied": True}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of an LFM2 checkpoint; layers without attention have no heads of K and V.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = _adjusted(decoder.text_config(checkpoint))
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=Names(norm_eps="norm_eps"), theta=1e6)
    reader.must_be("conv_bias", False)
    kernel = reader.integer("conv_L_cache", 3)
    attends = _attention_layers(reader, d.n_layers)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    values["lfm2.attention.head_count_kv"] = i32_array([d.n_kv_heads if yes else 0 for yes in attends])
    values["lfm2.shortconv.l_cache"] = u32(kernel)
    table = TensorTable(checkpoint)
    tied = d.tied and table.ties("lm_head.weight", "model.embed_tokens.weight")
    table.tensor("token_embd.weight", "model.embed_tokens.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "operator_norm", d.n_embd)
        if attends[layer.index]:
            decoder.attention(layer, d, names=("q_proj", "k_proj", "v_proj", "out_proj"))
            layer.norm("attn_q_norm", "self_attn.q_layernorm", d.head_dim)
            layer.norm("attn_k_norm", "self_attn.k_layernorm", d.head_dim)
        else:
            _convolution(layer, d, kernel)
        layer.norm("ffn_norm", "ffn_norm", d.n_embd)
        layer.linear("ffn_gate", "feed_forward.w1", (d.n_ff, d.n_embd))
        layer.linear("ffn_up", "feed_forward.w3", (d.n_ff, d.n_embd))
        layer.linear("ffn_down", "feed_forward.w2", (d.n_embd, d.n_ff))
    table.norm("token_embd_norm", "model.embedding_norm", d.n_embd)  # the norm before the output, despite its name
    if not tied:
        table.tensor("output.weight", "lm_head.weight", (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _convolution(layer: Layer, d: Decoder, kernel: int) -> None:
    layer.tensor("shortconv.conv.weight", "conv.conv.weight", (d.n_embd, 1, kernel), written=(d.n_embd, kernel))
    layer.linear("shortconv.in_proj", "conv.in_proj", (3 * d.n_embd, d.n_embd))
    layer.linear("shortconv.out_proj", "conv.out_proj", (d.n_embd, d.n_embd))


def _adjusted(reader: ConfigReader) -> ConfigReader:
    """The configuration with the actual feed-forward width, under one name per setting."""
    config = dict(reader.config)
    if "tie_embedding" in config:
        config["tie_word_embeddings"] = config["tie_embedding"]
    width = reader.integer("block_ff_dim" if reader.has("block_ff_dim") else "intermediate_size")
    if reader.flag("block_auto_adjust_ff_dim", True):
        unit = reader.integer("block_multiple_of", 256)
        width = int(reader.number("block_ffn_dim_multiplier", 1.0) * int(2 * width / 3))
        width = unit * -(-width // unit)
    config["intermediate_size"] = width
    return ConfigReader(config, reader.where, prefix=reader.prefix)


def _attention_layers(reader: ConfigReader, n_layers: int) -> np.ndarray:
    """Layers with attention, bool [n_layers]."""
    types = reader.config.get("layer_types")
    if types is None:
        chosen = reader.config.get("full_attn_idxs")
        chosen = list(range(n_layers)) if chosen is None else chosen
        if not isinstance(chosen, list) or any(type(i) is not int or not 0 <= i < n_layers for i in chosen):
            raise reader.fail("full_attn_idxs", f"is {str(chosen)[:100]}; expected numbers of layers")
        return np.isin(np.arange(n_layers), chosen)
    known = ("conv", "full_attention")
    if not isinstance(types, list) or len(types) != n_layers or any(kind not in known for kind in types):
        raise reader.fail("layer_types", f"is {str(types)[:100]}; expected {n_layers} of conv and full_attention")
    return np.array([kind == "full_attention" for kind in types])
