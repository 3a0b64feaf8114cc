"""Baichuan 1 and 2: Llama with Q, K and V in one matrix. The 13B models have ALiBi instead of RoPE.

Baichuan 2 normalizes each row of its output matrix at run time; the file stores normalized rows.
"""

from __future__ import annotations

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import pairs
from gumba_convert.gguf_writer import string

ARCHITECTURE = "baichuan"
HF_ARCHITECTURES = ("BaichuanForCausalLM", "BaiChuanForCausalLM")
MODEL_TYPES = ("baichuan",)

#: The vocabulary size of Baichuan 2, which distinguishes it from 1.
N_VOCAB_2 = 125696


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Baichuan checkpoint; readers recognize ALiBi models by their 40 layers.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    names = Names(n_ctx="max_position_embeddings" if reader.has("max_position_embeddings") else "model_max_length")
    d = decoder.read_decoder(reader, defaults={"n_ctx": 4096}, names=names)
    reader.must_be("num_key_value_heads", d.n_heads)
    reader.must_be("tie_word_embeddings", False)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    values["baichuan.tensor_data_layout"] = string("Meta AI original pth")
    order = pairs(d.n_heads, d.head_dim)
    table = TensorTable(checkpoint)
    table.tensor("token_embd.weight", "model.embed_tokens.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        for i, name in enumerate("qkv"):
            rows = i * d.n_q + (np.arange(d.n_q) if name == "v" else order)
            layer.linear(f"attn_{name}", "self_attn.W_pack", (3 * d.n_q, d.n_embd), rows=rows)
        layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_q))
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    head = unit_rows if d.n_vocab == N_VOCAB_2 else None
    table.tensor("output.weight", "lm_head.weight", (d.n_vocab, d.n_embd), change=head)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their length."""
    lengths = np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=1, keepdims=True))
    result: np.ndarray = (rows / np.maximum(lengths, 1e-7)).astype(np.float32)
    return result
