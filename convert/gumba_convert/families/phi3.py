"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Q, K and V in one matrix, gate and up in one, and LongRoPE.

GGUF keeps both fused matrices. LongRoPE divides each frequency by its own factor, with one set of factors for contexts up to the
original length and one for longer ones, and scales the rotated vectors.
"""

from __future__ import annotations

import math

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.rope import Rope
from gumba_convert.common.table import TensorTable
from gumba_convert.families.llama import read_window
from gumba_convert.gguf_writer import Value, f32, u32

ARCHITECTURE = "phi3"
HF_ARCHITECTURES = ("Phi3ForCausalLM",)
MODEL_TYPES = ("phi3",)

DEFAULTS: decoder.Defaults = {"n_ctx": 4096, "norm_eps": 1e-5}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Phi-3 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, partial=1.0)
    values, _ = decoder.metadata(ARCHITECTURE, d, kinds=("default", "longrope", "su"))
    values["phi3.attention.sliding_window"] = u32(read_window(reader, d, None))
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        layer.linear("attn_qkv", "self_attn.qkv_proj", (d.n_q + 2 * d.n_kv, d.n_embd))
        layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_q))
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_up", "mlp.gate_up_proj", (2 * d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.down_proj", (d.n_embd, d.n_ff))
    table.norm("output_norm", "model.norm", d.n_embd)
    if d.rope is not None:
        values |= _longrope(d.rope, d, table)
    return decoder.finish(ARCHITECTURE, d, values, table, None)


def _longrope(rope: Rope, d: Decoder, table: TensorTable) -> dict[str, Value]:
    """The original context, LongRoPE's scale, and its factors as tensors."""
    settings, key = rope.settings, "original_max_position_embeddings"
    original = settings.integer(key) if settings.has(key) else d.reader.integer(key, d.n_ctx)
    values = {"phi3.rope.scaling.original_context_length": u32(original)}
    if rope.kind == "default":
        return values
    for name in ("short_mscale", "long_mscale"):
        settings.must_be(name)
    factor = settings.number("factor", d.n_ctx / original)
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if settings.has("attention_factor"):
        scale = settings.number("attention_factor")
    values["phi3.rope.scaling.attn_factor"] = f32(scale)
    for length in ("long", "short"):
        factors = settings.numbers(f"{length}_factor", d.n_rotated // 2)
        table.computed(f"rope_factors_{length}.weight", np.array(factors, np.float32))
    return values
