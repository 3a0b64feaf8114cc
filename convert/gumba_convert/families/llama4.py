"""Llama 4's text models: chunked attention, layers without RoPE, experts in every layer or in every other.

Queries and keys have interleaved pairs, as in GGUF.
"""

from __future__ import annotations

from dataclasses import replace

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import expert_metadata, fused_experts, read_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import f32, u32

ARCHITECTURE = "llama4"
HF_ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
MODEL_TYPES = ("llama4", "llama4_text")

DEFAULTS: decoder.Defaults = {"n_kv_heads": 8, "n_ctx": 131072, "norm_eps": 1e-5}
#: Readers assume no RoPE in every fourth layer, and that only the model with this many experts lacks head norms.
PERIOD, PLAIN_EXPERTS = 4, 128
PREFIXES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
VISION = r"(vision_model|multi_modal_projector)\..*"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Llama 4 checkpoint; vision parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, theta=500000.0)
    experts = read_experts(reader, "num_local_experts", n=16, n_used=1, n_ff=d.n_ff)
    d = replace(d, n_ff=reader.integer("intermediate_size_mlp", 16384))
    step = reader.integer("interleave_moe_layer_step", 1)
    _check(d, experts.n, step)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "llama3"))
    values |= expert_metadata(ARCHITECTURE, experts, width=True)
    values |= {
        "llama4.interleave_moe_layer_step": u32(step),
        "llama4.attention.sliding_window": u32(reader.integer("attention_chunk_size", 8192)),
        "llama4.attention.temperature_length": u32(reader.integer("floor_scale", 8192)),
        "llama4.attention.temperature_scale": f32(reader.number("attn_scale", 0.1)),
    }
    table = TensorTable(checkpoint, prefixes=PREFIXES, ignored=VISION)
    decoder.embedding_and_head(table, d)
    for i, layer in enumerate(table.layers(d.n_layers)):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        if (i + 1) % step:
            decoder.gated_ffn(layer, d, inner="feed_forward")
            continue
        layer.linear("ffn_gate_inp", "feed_forward.router", (experts.n, d.n_embd))
        fused_experts(layer, d, experts, "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj")
        shared, inner = experts.n_ff, "feed_forward.shared_expert"
        layer.linear("ffn_gate_shexp", f"{inner}.gate_proj", (shared, d.n_embd))
        layer.linear("ffn_up_shexp", f"{inner}.up_proj", (shared, d.n_embd))
        layer.linear("ffn_down_shexp", f"{inner}.down_proj", (d.n_embd, shared))
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _check(d: Decoder, n_experts: int, step: int) -> None:
    """Refuse settings that readers assume and that GGUF has no key for."""
    reader, layers = d.reader, range(d.n_layers)
    usual = [int((i + 1) % PERIOD != 0) for i in layers]
    kinds = ["chunked_attention" if yes else "full_attention" for yes in usual]
    expected = {
        "no_rope_layer_interval": PERIOD,
        "layer_types": kinds,
        "moe_layers": [i for i in layers if (i + 1) % step == 0],
        "use_qk_norm": n_experts != PLAIN_EXPERTS,
        "attention_bias": False,
    }
    for key, wanted in expected.items():
        reader.must_be(key, wanted)
    reader.must_be("no_rope_layers", usual, [])
    reader.must_be("attn_temperature_tuning", True, 4)
