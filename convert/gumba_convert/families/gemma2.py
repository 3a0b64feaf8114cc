"""Gemma 2: norms before and after each block, logit soft-capping, and sliding windows in every other layer."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import plus_one
from gumba_convert.gguf_writer import f32, u32

ARCHITECTURE = "gemma2"
HF_ARCHITECTURES = decoder.with_heads("Gemma2")
MODEL_TYPES = ("gemma2",)

NAMES = Names(activation="hidden_activation")
DEFAULTS: decoder.Defaults = {"n_kv_heads": 4, "n_ctx": 8192, "head_dim": 256, "tied": True}
PERIOD = 2
# Models with this many layers (27B) scale attention by embedding / heads, others by the width of a head.
WIDE = 46


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Gemma 2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu_pytorch_tanh",))
    reader.must_be("use_bidirectional_attention", False)
    check_scale(d, WIDE)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    values |= {
        "gemma2.attn_logit_softcapping": f32(reader.number("attn_logit_softcapping", 50.0)),
        "gemma2.final_logit_softcapping": f32(reader.number("final_logit_softcapping", 30.0)),
        "gemma2.attention.sliding_window": u32(reader.integer("sliding_window", 4096)),
    }
    usual = decoder.every(d.n_layers, PERIOD)
    sliding = decoder.sliding_layers(reader, d.n_layers, usual)
    if sliding != usual:
        values["gemma2.attention.sliding_window_pattern"] = decoder.booleans(sliding)
    bias = reader.flag("attention_bias", False)
    table = TensorTable(checkpoint, prefixes=decoder.BARE)
    values |= decoder.embedding_and_any_head(table, d, ARCHITECTURE)
    for layer in table.layers(d.n_layers):
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        gemma_block(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd, change=plus_one)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def gemma_block(layer: Layer, d: Decoder) -> None:
    """A layer's four norms and its feed-forward."""
    layer.norm("attn_norm", "input_layernorm", d.n_embd, change=plus_one)
    layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd, change=plus_one)
    layer.norm("ffn_norm", "pre_feedforward_layernorm", d.n_embd, change=plus_one)
    layer.norm("post_ffw_norm", "post_feedforward_layernorm", d.n_embd, change=plus_one)
    decoder.gated_ffn(layer, d)


def check_scale(d: Decoder, wide: int) -> None:
    """Check `query_pre_attn_scalar`, which has no GGUF key: readers derive it from the sizes.

    Raises:
        ConvertError: it differs from the derived value.
    """
    known = d.n_embd // d.n_heads if d.n_layers == wide else d.head_dim
    scalar = d.reader.number("query_pre_attn_scalar", 256)
    if scalar != known:
        raise d.reader.fail("query_pre_attn_scalar", f"is {scalar:g}; with these sizes only {known} is supported")
