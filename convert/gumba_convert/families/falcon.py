"""Falcon: parallel attention and feed-forward; Q, K and V fused in groups that share one K and V.

GGUF stores all of Q, then all of K, then all of V.
"""

from __future__ import annotations

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import grouped_qkv
from gumba_convert.gguf_writer import string

ARCHITECTURE = "falcon"
HF_ARCHITECTURES = ("FalconForCausalLM", "RWForCausalLM")
MODEL_TYPES = ("falcon", "RefinedWeb", "RefinedWebModel")


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Falcon checkpoint.

    Raises:
        ConvertError: an unsupported configuration (ALiBi, biases, attention before feed-forward) or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    new = reader.flag("new_decoder_architecture", reader.has("n_head_kv"))
    d = decoder.read_decoder(
        reader,
        defaults={"n_ff": 4 * reader.integer("hidden_size"), "norm_eps": 1e-5, "tied": True},
        names=_names(reader, new),
        activations=("gelu",),
    )
    for key, wanted in (("alibi", False), ("bias", False), ("parallel_attn", True)):
        reader.must_be(key, wanted)
    groups = d.n_kv_heads if new else (1 if reader.flag("multi_query", True) else d.n_heads)
    values, factors = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values["falcon.attention.head_count_kv"] = values["falcon.attention.head_count_kv"]._replace(value=groups)
    values["falcon.tensor_data_layout"] = string("jploski")
    two_norms = new and reader.config.get("num_ln_in_parallel_attn") in (None, 2)
    qkv = np.concatenate(grouped_qkv(groups, d.n_heads // groups, d.head_dim))
    table = TensorTable(checkpoint)
    tied = d.tied and table.ties("lm_head.weight", "transformer.word_embeddings.weight")
    table.tensor("token_embd.weight", "transformer.word_embeddings.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers, "transformer.h"):
        if two_norms:
            layer.norm("attn_norm_2", "ln_attn", d.n_embd, bias=True)
            layer.norm("attn_norm", "ln_mlp", d.n_embd, bias=True)
        else:
            layer.norm("attn_norm", "input_layernorm", d.n_embd, bias=True)
        layer.linear("attn_qkv", "self_attention.query_key_value", (len(qkv), d.n_embd), rows=qkv)
        layer.linear("attn_output", "self_attention.dense", (d.n_embd, d.n_embd))
        layer.linear("ffn_up", "mlp.dense_h_to_4h", (d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.dense_4h_to_h", (d.n_embd, d.n_ff))
    table.norm("output_norm", "transformer.ln_f", d.n_embd, bias=True)
    if not tied:
        table.tensor("output.weight", "lm_head.weight", (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _names(reader: ConfigReader, new: bool) -> Names:
    """Keys of the sizes; the first checkpoints have shorter ones. Without groups, `num_kv_heads` has no effect."""
    heads = "num_attention_heads" if reader.has("num_attention_heads") else "n_head"
    groups = ("num_kv_heads" if reader.has("num_kv_heads") else "n_head_kv") if new else heads
    layers = "num_hidden_layers" if reader.has("num_hidden_layers") else "n_layer"
    return Names(
        layers,
        n_ff="ffn_hidden_size",
        n_heads=heads,
        n_kv_heads=groups,
        norm_eps="layer_norm_epsilon",
        activation="activation",
    )
