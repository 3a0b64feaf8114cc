"""Gemma 3's language models: norms on the heads of Q and K, five sliding-window layers to one global layer.

Sliding-window layers have their own RoPE base frequency, without context extension. EmbeddingGemma has bidirectional attention.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.sentence_transformers import projections
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import plus_one
from gumba_convert.families.gemma2 import check_scale, gemma_block
from gumba_convert.gguf_writer import Value, boolean, f32, u32

ARCHITECTURE = "gemma3"
HF_ARCHITECTURES = (
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3TextForSequenceClassification",
    "Gemma3TextModel",
)
MODEL_TYPES = ("gemma3", "gemma3_text")

NAMES = Names(activation="hidden_activation")
DEFAULTS: decoder.Defaults = {
    "n_layers": 26,
    "n_embd": 2304,
    "n_ff": 9216,
    "n_heads": 8,
    "n_kv_heads": 4,
    "n_ctx": 131072,
    "head_dim": 256,
    "tied": True,
    "vocab_size": 262208,
}
PERIOD = 6
WIDE = 62
# Prefixes in checkpoints of a larger model.
PREFIXES = decoder.BARE | {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "model.language_model.": "model.",
}
VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Gemma 3 checkpoint; vision parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu_pytorch_tanh",), theta=1e6)
    both_sides = reader.flag("use_bidirectional_attention", False)
    architecture = decoder.PROJECTED if both_sides else ARCHITECTURE
    reader.must_be("attn_logit_softcapping")
    check_scale(d, WIDE)
    values, factors = decoder.metadata(architecture, d, kinds=("default", "linear"))
    settings = reader.section("rope_parameters")
    local = settings.section("sliding_attention") if settings is not None else None
    if local is not None:
        local.must_be("rope_type", "default")  # sliding-window layers have no context extension
    theta = local.number("rope_theta", 1e4) if local is not None else reader.number("rope_local_base_freq", 1e4)
    if both_sides:
        values["gemma-embedding.attention.causal"] = boolean(False)
    if reader.has("final_logit_softcapping"):
        values[f"{architecture}.final_logit_softcapping"] = f32(reader.number("final_logit_softcapping"))
    usual = decoder.every(d.n_layers, reader.integer("sliding_window_pattern", PERIOD))
    sliding = decoder.sliding_layers(reader, d.n_layers, usual)
    if any(sliding):
        values[f"{architecture}.attention.sliding_window"] = u32(reader.integer("sliding_window", 4096))
        values[f"{architecture}.rope.freq_base_swa"] = f32(theta)
        if sliding != decoder.every(d.n_layers, PERIOD):
            values[f"{architecture}.attention.sliding_window_pattern"] = decoder.booleans(sliding)
    bias = reader.flag("attention_bias", False)
    table = TensorTable(checkpoint, prefixes=PREFIXES, ignored=VISION)
    values |= decoder.embedding_and_any_head(table, d, architecture)
    for layer in table.layers(d.n_layers):
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        decoder.head_norms(layer, d, change=plus_one)
        gemma_block(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd, change=plus_one)
    if both_sides:
        values |= _projections(table, d)
    return decoder.finish(architecture, d, values, table, factors)


def _projections(table: TensorTable, d: Decoder) -> dict[str, Value]:
    """EmbeddingGemma's two matrices after the pooling, if the checkpoint has them."""
    values = {}
    for i, (part, columns, rows) in enumerate(projections(table.checkpoint, d.n_embd), 2):
        table.include(f"dense_{i}.", part)
        table.tensor(f"dense_{i}.weight", f"dense_{i}.linear.weight", (rows, columns))
        values[f"{decoder.PROJECTED}.dense_{i}_feat_in"] = u32(columns)
        values[f"{decoder.PROJECTED}.dense_{i}_feat_out"] = u32(rows)
    return values
