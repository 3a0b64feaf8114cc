"""Shared by Gemma 3n and 4: per-layer embeddings, and layers that share keys and values."""

from __future__ import annotations

import numpy as np

from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import BARE, Decoder, booleans
from gumba_convert.common.rope import Rope, read_rope
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import Value, f32, i32_array, u32

# Prefixes in checkpoints of a multimodal model, and names of its other parts.
PREFIXES = BARE | {"model.language_model.": "model.", "language_model.": "model."} | {
    name: f"model.{name}"
    for name in ("embed_tokens_per_layer.", "per_layer_", "altup_")
}  # fmt: skip
OTHER_PARTS = r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio)\..*"


def optional_integer(reader: ConfigReader, key: str, default: int = 0) -> int:
    """A non-negative integer; `default` if it is absent or null."""
    if not reader.has(key):
        return default
    is_zero = type(reader.config[key]) is int and reader.config[key] == 0
    return 0 if is_zero else reader.integer(key)


def counts(values: list[int]) -> Value:
    """One number per layer; a single one if all are equal."""
    return u32(values[0]) if len(set(values)) == 1 else i32_array(values)


def shared_layers(reader: ConfigReader, sliding: list[bool], default: int = 0) -> int:
    """Number of last layers that reuse the keys and values of an earlier layer, which has their kind."""
    key, n = "num_kv_shared_layers", len(sliding)
    shared = optional_integer(reader, key, default)
    if shared >= n or not set(sliding[n - shared :]) <= set(sliding[: n - shared]):
        raise reader.fail(key, f"is {shared}: no earlier layer has keys and values for them")
    return shared


def common_metadata(
    architecture: str, d: Decoder, sliding: list[bool], n_shared: int, n_per_layer: int, *, cap: float = 0.0
) -> dict[str, Value]:
    """Windows, shared layers, the width of per-layer embeddings, and logit soft-capping (`cap` by default).

    The cap is written as 0 if there is none, because llama.cpp's default is 30.
    """
    if d.reader.has("final_logit_softcapping"):
        cap = d.reader.number("final_logit_softcapping")
    values = {
        "attention.sliding_window": u32(d.reader.integer("sliding_window", 512)),
        "attention.sliding_window_pattern": booleans(sliding),
        "attention.shared_kv_layers": u32(n_shared),
        "embedding_length_per_layer_input": u32(n_per_layer),
        "final_logit_softcapping": f32(cap),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def local_rope(reader: ConfigReader, key: str = "rope_local_base_freq") -> Rope:
    """RoPE of sliding-window layers, without context extension; `key`: of its frequency in older files."""
    settings = reader.section("rope_parameters")
    if settings is not None and settings.section("sliding_attention") is not None:
        rope = read_rope(reader, layer_type="sliding_attention")
    else:
        rope = read_rope(ConfigReader({"rope_theta": reader.number(key, 1e4)}, reader.where))
    if rope.kind != "default" or rope.partial != 1:
        raise reader.fail("rope_parameters", "must have plain RoPE for sliding-window layers")
    return rope


def embeddings(table: TensorTable, d: Decoder, n_per_layer: int) -> None:
    """Per-layer embeddings, and the projection of the token embedding to them.

    Ids beyond their table (images, audio) have the embeddings of id 0, as in transformers.
    """
    width = d.n_layers * n_per_layer
    n_rows = d.reader.integer("vocab_size_per_layer_input", d.n_vocab)
    ids = np.arange(d.n_vocab)
    rows = None if n_rows == d.n_vocab else np.where(ids < n_rows, ids, 0)
    table.tensor("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", (n_rows, width), rows=rows)
    table.linear("per_layer_model_proj", "model.per_layer_model_projection", (width, d.n_embd))
    table.norm("per_layer_proj_norm", "model.per_layer_projection_norm", n_per_layer)


def gate(layer: Layer, d: Decoder, n_per_layer: int) -> None:
    """Tensors of a layer for its per-layer embeddings."""
    layer.linear("inp_gate", "per_layer_input_gate", (n_per_layer, d.n_embd))
    layer.linear("proj", "per_layer_projection", (d.n_embd, n_per_layer))
    layer.norm("post_norm", "post_per_layer_input_norm", d.n_embd)


def block_norms(layer: Layer, d: Decoder) -> None:
    """The four norms of a layer."""
    layer.norm("attn_norm", "input_layernorm", d.n_embd)
    layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
    layer.norm("ffn_norm", "pre_feedforward_layernorm", d.n_embd)
    layer.norm("post_ffw_norm", "post_feedforward_layernorm", d.n_embd)
