"""gpt-oss: experts with biases and a clamped SwiGLU, attention sinks, and a window in every other layer.

A checkpoint's experts have gate and up interleaved column by column, and are transposed; OpenAI's own are in MXFP4, with rows as
in GGUF.
"""

from __future__ import annotations

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import Experts, expert_metadata, read_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "gpt-oss"
HF_ARCHITECTURES = ("GptOssForCausalLM",)
MODEL_TYPES = ("gpt_oss",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 131072, "head_dim": 64, "norm_eps": 1e-5}
PERIOD = 2


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a gpt-oss checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    config = dict(checkpoint.config)
    method = config.get("quantization_config")
    packed = isinstance(method, dict) and method.get("quant_method") == "mxfp4"
    if packed:
        del config["quantization_config"]
    reader = ConfigReader(config, f"{checkpoint.folder / 'config.json'}")
    d = decoder.read_decoder(reader, defaults=DEFAULTS, theta=150000.0)
    for key, wanted in (("attention_bias", True), ("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        reader.must_be(key, wanted)
    experts = read_experts(reader, "num_local_experts", n=128, n_used=4, n_ff=d.n_ff)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "yarn"), truncates=False)
    values |= expert_metadata(ARCHITECTURE, experts, width=True)
    values["gpt-oss.attention.sliding_window"] = u32(reader.integer("sliding_window", 128))
    usual = decoder.every(d.n_layers, PERIOD)
    sliding = decoder.sliding_layers(reader, d.n_layers, usual)
    if sliding != usual:
        values["gpt-oss.attention.sliding_window_pattern"] = decoder.booleans(sliding)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=True, output_bias=True)
        layer.tensor("attn_sinks.weight", "self_attn.sinks", (d.n_heads,))
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_gate_inp", "mlp.router", (experts.n, d.n_embd), bias=True)
        _experts(layer, d, experts, packed)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _experts(layer: Layer, d: Decoder, experts: Experts, packed: bool) -> None:
    """The experts' matrices and biases: gate has the even rows, up the odd ones."""
    n, n_ff, inner = experts.n, experts.n_ff, "mlp.experts."
    ours, theirs = layer.ours, layer.theirs + inner
    for i, name in enumerate(("gate", "up")):
        turn = slice(i, None, 2)
        if packed:
            rows = np.arange(n * 2 * n_ff)[turn]
            shape = (n, 2 * n_ff, d.n_embd)
            layer.table.mxfp4(f"{ours}ffn_{name}_exps.weight", f"{theirs}gate_up_proj", shape, rows=rows, n_rows=n_ff)
        else:
            shape = (n, d.n_embd, 2 * n_ff)
            layer.tensor(f"ffn_{name}_exps.weight", inner + "gate_up_proj", shape, columns=turn, transposed=True)
        layer.tensor(f"ffn_{name}_exps.bias", inner + "gate_up_proj_bias", (n, 2 * n_ff), columns=turn)
    if packed:
        down = np.arange(n * d.n_embd)
        shape = (n, d.n_embd, n_ff)
        layer.table.mxfp4(f"{ours}ffn_down_exps.weight", f"{theirs}down_proj", shape, rows=down, n_rows=d.n_embd)
    else:
        layer.tensor("ffn_down_exps.weight", inner + "down_proj", (n, n_ff, d.n_embd), transposed=True)
    layer.tensor("ffn_down_exps.bias", inner + "down_proj_bias", (n, d.n_embd))
