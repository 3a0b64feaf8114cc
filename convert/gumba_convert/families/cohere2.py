"""Command R7B and Command A: one LayerNorm feeds attention and feed-forward; only layers with a window rotate.

Cohere's own code rotates pairs side by side, as GGUF's architecture does: no rows are moved.
"""

from __future__ import annotations

from gumba_convert.checkpoint import Checkpoint
from gumba_convert.decoder import (
    LAYER_EPS,
    Names,
    attention,
    booleans,
    embedding_and_head,
    every,
    finish,
    gated_ffn,
    metadata,
    read_decoder,
    sliding_layers,
    text_config,
)
from gumba_convert.gguf_writer import f32, string, u32
from gumba_convert.plan import Plan
from gumba_convert.table import TensorTable

ARCHITECTURE = "cohere2"
HF_ARCHITECTURES = ("Cohere2ForCausalLM",)
MODEL_TYPES = ("cohere2",)

NAMES = Names(norm_eps="layer_norm_eps")
DEFAULTS = {"n_ctx": 8192, "norm_eps": 1e-5, "tied": True}
PERIOD = 4


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Cohere 2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = text_config(checkpoint)
    d = read_decoder(reader, defaults=DEFAULTS, names=NAMES)
    for key, wanted in (("attention_bias", False), ("rotary_pct", 1.0), ("use_qk_norm", False)):
        reader.must_be(key, wanted)
    reader.must_be("tie_word_embeddings", True)
    reader.must_be("use_gated_activation", True)
    reader.must_be("use_parallel_block", True)
    values, _ = metadata(ARCHITECTURE, d, eps=LAYER_EPS, kinds=("default",))
    values["cohere2.logit_scale"] = f32(reader.number("logit_scale", 0.0625))
    values["cohere2.attention.sliding_window"] = u32(reader.integer("sliding_window", 4096))
    values["cohere2.rope.scaling.type"] = string("none")
    sliding = sliding_layers(reader, d.n_layers, every(d.n_layers, reader.integer("sliding_window_pattern", PERIOD)))
    if sliding != every(d.n_layers, PERIOD):
        values["cohere2.attention.sliding_window_pattern"] = booleans(sliding)
    table = TensorTable(checkpoint)
    embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        attention(layer, d)
        gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return finish(ARCHITECTURE, d, values, table, None)
