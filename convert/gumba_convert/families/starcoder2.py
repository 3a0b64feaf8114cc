"""StarCoder2: LayerNorm, biases, a feed-forward without gate, and a window in all layers."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.families.llama import read_window
from gumba_convert.families.phi2 import TANH_GELU
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "starcoder2"
HF_ARCHITECTURES = ("Starcoder2ForCausalLM",)
MODEL_TYPES = ("starcoder2",)

NAMES = Names(norm_eps="norm_epsilon")
DEFAULTS: decoder.Defaults = {"n_kv_heads": 2, "n_ctx": 4096, "norm_eps": 1e-5, "tied": True}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a StarCoder2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=TANH_GELU)
    reader.must_be("mlp_type", "default")
    reader.must_be("norm_type", "layer_norm")
    bias = reader.flag("use_bias", True)
    values, factors = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    window = read_window(reader, d, None)
    if window:
        values["starcoder2.attention.sliding_window"] = u32(window)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, bias=True)
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd, bias=True)
        layer.linear("ffn_up", "mlp.c_fc", (d.n_ff, d.n_embd), bias=bias)
        layer.linear("ffn_down", "mlp.c_proj", (d.n_embd, d.n_ff), bias=bias)
    table.norm("output_norm", "model.norm", d.n_embd, bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
