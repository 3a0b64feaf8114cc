"""EXAONE 4: norms after each block and on the heads of Q and K. In models with windows, only sliding-window layers have RoPE."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "exaone4"
HF_ARCHITECTURES = ("Exaone4ForCausalLM",)
MODEL_TYPES = ("exaone4",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 32, "norm_eps": 1e-5}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of an EXAONE 4 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    if reader.has("sliding_window"):
        values["exaone4.attention.sliding_window"] = u32(reader.integer("sliding_window"))
        values["exaone4.attention.sliding_window_pattern"] = decoder.booleans(
            decoder.sliding_layers(reader, d.n_layers, _pattern(d))
        )
    elif any(decoder.sliding_layers(reader, d.n_layers, [])):
        raise reader.fail("layer_types", "has sliding attention, but there is no sliding_window")
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        decoder.attention(layer, d)
        decoder.head_norms(layer, d)
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
        layer.norm("post_ffw_norm", "post_feedforward_layernorm", d.n_embd)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _pattern(d: Decoder) -> list[bool]:
    """`sliding_window_pattern`: a period, or a letter per layer: L (local) or G (global)."""
    pattern = d.reader.config.get("sliding_window_pattern", 4)
    if type(pattern) is int and pattern > 0:
        pattern = "L" * (pattern - 1) + "G"
    if not isinstance(pattern, str) or not pattern or set(pattern) - {"L", "G"}:
        raise d.reader.fail("sliding_window_pattern", f"is {pattern!r}; expected a period or letters L and G")
    return [pattern[i % len(pattern)] == "L" for i in range(d.n_layers)]
