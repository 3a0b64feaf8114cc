"""Gemma: wide heads, norms that multiply by 1 + weight, and an output matrix that is the embedding."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import plus_one

ARCHITECTURE = "gemma"
HF_ARCHITECTURES = decoder.with_heads("Gemma")
MODEL_TYPES = ("gemma",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 16, "n_ctx": 8192, "head_dim": 256, "tied": True}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Gemma checkpoint; in its first files `gelu` means the tanh form.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, activations=("gelu_pytorch_tanh", "gelu"))
    reader.must_be("hidden_activation", "gelu_pytorch_tanh")
    reader.must_be("use_bidirectional_attention", False)
    reader.must_be("tie_word_embeddings", True)
    bias = reader.flag("attention_bias", False)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    table = TensorTable(checkpoint, prefixes=decoder.BARE)
    values |= decoder.embedding_and_any_head(table, d, ARCHITECTURE)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, change=plus_one)
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd, change=plus_one)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd, change=plus_one)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
