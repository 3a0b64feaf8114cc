"""GPT-NeoX and Pythia: parallel attention and feed-forward, each after its own LayerNorm; partial RoPE.

A checkpoint's fused matrix has Q, K and V of the first head, then of the second; GGUF stores all of Q, then K, then V.
"""

from __future__ import annotations

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import grouped_qkv
from gumba_convert.gguf_writer import boolean

ARCHITECTURE = "gptneox"
HF_ARCHITECTURES = ("GPTNeoXForCausalLM",)
MODEL_TYPES = ("gpt_neox",)

NAMES = Names(norm_eps="layer_norm_eps")


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a GPT-NeoX checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(
        reader,
        defaults={"norm_eps": 1e-5},
        names=NAMES,
        activations=("gelu",),
        theta=reader.number("rotary_emb_base", 10000.0),
        partial=reader.number("rotary_pct", 0.25),
    )
    reader.must_be("num_key_value_heads", d.n_heads)
    reader.must_be("attention_bias", True)
    values, factors = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values["gptneox.use_parallel_residual"] = boolean(reader.flag("use_parallel_residual", True))
    qkv = np.concatenate(grouped_qkv(d.n_heads, 1, d.head_dim))
    table = TensorTable(checkpoint)
    tied = d.tied and table.ties("embed_out.weight", "gpt_neox.embed_in.weight")
    table.tensor("token_embd.weight", "gpt_neox.embed_in.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers, "gpt_neox.layers"):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, bias=True)
        layer.linear("attn_qkv", "attention.query_key_value", (3 * d.n_embd, d.n_embd), bias=True, rows=qkv)
        layer.linear("attn_output", "attention.dense", (d.n_embd, d.n_embd), bias=True)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd, bias=True)
        layer.linear("ffn_up", "mlp.dense_h_to_4h", (d.n_ff, d.n_embd), bias=True)
        layer.linear("ffn_down", "mlp.dense_4h_to_h", (d.n_embd, d.n_ff), bias=True)
    table.norm("output_norm", "gpt_neox.final_layer_norm", d.n_embd, bias=True)
    output = "gpt_neox.embed_in.weight" if tied else "embed_out.weight"  # readers require one
    table.tensor("output.weight", output, (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
