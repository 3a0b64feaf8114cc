"""SmolLM3: Llama without RoPE in every fourth layer."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.families.llama import llama_attention

ARCHITECTURE = "smollm3"
HF_ARCHITECTURES = ("SmolLM3ForCausalLM",)
MODEL_TYPES = ("smollm3",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 4, "n_ctx": 32768, "tied": True}
PERIOD = 4


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a SmolLM3 checkpoint.

    Raises:
        ConvertError: an unsupported configuration (other layers without rotation, a window) or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, theta=2e6)
    reader.must_be("use_sliding_window", False)
    decoder.full_only(d)
    rotated = reader.config.get("no_rope_layers")  # despite its name: 1 for layers with RoPE
    if rotated is None:
        reader.must_be("no_rope_layer_interval", PERIOD)
    elif rotated != [int(yes) for yes in decoder.every(d.n_layers, PERIOD)]:
        raise reader.fail("no_rope_layers", f"is {str(rotated)[:100]}; only every {PERIOD}th layer may not rotate")
    attention_bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "linear", "yarn"))
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        llama_attention(layer, d, bias=attention_bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d, bias=mlp_bias)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
