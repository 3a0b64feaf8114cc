"""Command R7B and Command A: one LayerNorm feeds attention and feed-forward; only sliding-window layers have RoPE.

Cohere's code rotates interleaved pairs, as GGUF's architecture does: rows keep their order.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import f32, string, u32

ARCHITECTURE = "cohere2"
HF_ARCHITECTURES = ("Cohere2ForCausalLM",)
MODEL_TYPES = ("cohere2",)

NAMES = Names(norm_eps="layer_norm_eps")
DEFAULTS: decoder.Defaults = {"n_ctx": 8192, "norm_eps": 1e-5, "tied": True}
PERIOD = 4


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Cohere 2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES)
    for key, wanted in (("attention_bias", False), ("rotary_pct", 1.0), ("use_qk_norm", False)):
        reader.must_be(key, wanted)
    reader.must_be("tie_word_embeddings", True)
    reader.must_be("use_gated_activation", True)
    reader.must_be("use_parallel_block", True)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values["cohere2.logit_scale"] = f32(reader.number("logit_scale", 0.0625))
    values["cohere2.attention.sliding_window"] = u32(reader.integer("sliding_window", 4096))
    values["cohere2.rope.scaling.type"] = string("none")
    sliding = decoder.sliding_layers(
        reader, d.n_layers, decoder.every(d.n_layers, reader.integer("sliding_window_pattern", PERIOD))
    )
    if sliding != decoder.every(d.n_layers, PERIOD):
        values["cohere2.attention.sliding_window_pattern"] = decoder.booleans(sliding)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, None)
