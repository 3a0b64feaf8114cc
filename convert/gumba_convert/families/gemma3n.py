"""Gemma 3n's language models: AltUp streams, of which layers process one; windows in four layers of five.

Readers assume some sizes: llama.cpp assumes 4 streams, 20 layers with their own keys, and per-layer embeddings of width 256, as
in all released models.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder, per_layer
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import f32, f32_array, u32

ARCHITECTURE = "gemma3n"
HF_ARCHITECTURES = ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")
MODEL_TYPES = ("gemma3n", "gemma3n_text")

NAMES = Names(activation="hidden_activation")
DEFAULTS: decoder.Defaults = {
    "n_layers": 35,
    "n_embd": 2048,
    "n_ff": 16384,
    "n_heads": 8,
    "n_kv_heads": 2,
    "n_ctx": 32768,
    "head_dim": 256,
    "tied": True,
    "vocab_size": 262400,
}
PERIOD = 5


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Gemma 3n checkpoint; vision and audio parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    n_ffs = _widths(reader)
    config = reader.config | {"intermediate_size": n_ffs[0]}
    reader = ConfigReader(config, reader.where, prefix=reader.prefix)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu_pytorch_tanh",), theta=1e6)
    for key, wanted in (("attention_bias", False), ("altup_correct_scale", True)):
        reader.must_be(key, wanted)
    sliding = decoder.sliding_layers(reader, d.n_layers, decoder.every(d.n_layers, PERIOD))
    n_shared = per_layer.shared_layers(reader, sliding, 15)
    n_per_layer = reader.integer("hidden_size_per_layer_input", 256)
    n_streams, active = reader.integer("altup_num_inputs", 4), per_layer.optional_integer(reader, "altup_active_idx")
    if active >= n_streams:
        raise reader.fail("altup_active_idx", f"is {active}, but there are {n_streams} streams")
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    values |= per_layer.common_metadata(ARCHITECTURE, d, sliding, n_shared, n_per_layer, cap=30.0)
    values |= {
        f"{ARCHITECTURE}.{key}": value
        for key, value in {
            "feed_forward_length": per_layer.counts(n_ffs),
            "altup.num_inputs": u32(n_streams),
            "altup.active_idx": u32(active),
            "activation_sparsity_scale": f32_array(_cutoffs(reader, d.n_layers)),
            "rope.freq_base_swa": f32(per_layer.local_rope(reader).theta),
        }.items()
    }
    table = TensorTable(checkpoint, prefixes=per_layer.PREFIXES, ignored=per_layer.OTHER_PARTS)
    decoder.embedding_and_head(table, d)
    per_layer.embeddings(table, d, n_per_layer)
    for ours, theirs in (("altup_proj", "altup_projections"), ("altup_unembd_proj", "altup_unembed_projections")):
        parts = [f"model.{theirs}.{i}.weight" for i in range(n_streams - 1)]
        table.tensor(f"{ours}.weight", parts, (d.n_embd, d.n_embd))
    n_laurel = reader.integer("laurel_rank", 64)
    for layer, n_ff in zip(table.layers(d.n_layers), n_ffs, strict=True):
        per_layer.block_norms(layer, d)
        _attention(layer, d, own=layer.index < d.n_layers - n_shared)
        decoder.gated_ffn(layer, replace(d, n_ff=n_ff))
        per_layer.gate(layer, d, n_per_layer)
        _streams(layer, d, n_streams)
        layer.linear("laurel_l", "laurel.linear_left", (n_laurel, d.n_embd))
        layer.linear("laurel_r", "laurel.linear_right", (d.n_embd, n_laurel))
        layer.norm("laurel_post_norm", "laurel.post_laurel_norm", d.n_embd)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _widths(reader: ConfigReader) -> list[int]:
    """Feed-forward widths of all layers, from a list or one number."""
    key, n_layers = "intermediate_size", reader.integer("num_hidden_layers", DEFAULTS["n_layers"])
    widths = reader.config.get(key)
    if not isinstance(widths, list):
        return [reader.integer(key, DEFAULTS["n_ff"])] * n_layers
    if len(widths) != n_layers or not all(type(n) is int and 0 < n < 2**31 for n in widths):
        raise reader.fail(key, f"is {str(widths)[:80]}, expected {n_layers} positive integers")
    return widths


def _cutoffs(reader: ConfigReader, n_layers: int) -> list[float]:
    """Cutoff of each layer's sparse gate in standard deviations above the mean, from the fraction of zeros."""
    key = "activation_sparsity_pattern"
    default = [0.95 if i < 10 < n_layers else 0.0 for i in range(n_layers)]
    sparsity = reader.config[key] if reader.has(key) else default
    fractions = sparsity if isinstance(sparsity, list) else [sparsity] * n_layers
    if len(fractions) != n_layers or not all(type(share) in (int, float) and 0 <= share < 1 for share in fractions):
        raise reader.fail(key, f"is {str(sparsity)[:80]}, expected {n_layers} numbers from 0 to 1")
    return [NormalDist().inv_cdf(share) if share else float("-inf") for share in fractions]


def _attention(layer: Layer, d: Decoder, *, own: bool) -> None:
    """The attention of a layer; llama.cpp also expects K and V of layers that reuse others' (`own` is false)."""
    layer.linear("attn_q", "self_attn.q_proj", (d.n_q, d.n_embd))
    layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_q))
    if own or layer.has("self_attn.k_proj.weight"):
        layer.linear("attn_k", "self_attn.k_proj", (d.n_kv, d.n_embd))
        layer.linear("attn_v", "self_attn.v_proj", (d.n_kv, d.n_embd))
        decoder.head_norms(layer, d)
    else:  # transformers 5 does not write them
        layer.norm("attn_q_norm", "self_attn.q_norm", d.head_dim)
        for name in ("attn_k", "attn_v"):
            layer.table.computed(f"{layer.ours}{name}.weight", np.zeros((d.n_kv, d.n_embd), np.float32))
        layer.table.computed(f"{layer.ours}attn_k_norm.weight", np.ones(d.head_dim, np.float32))


def _streams(layer: Layer, d: Decoder, n: int) -> None:
    """Tensors of AltUp: prediction and correction of the streams."""
    layer.linear("altup_router", "altup.modality_router", (n, d.n_embd))
    layer.norm("altup_router_norm", "altup.router_norm", d.n_embd)
    layer.linear("altup_predict_coef", "altup.prediction_coefs", (n * n, n))
    layer.linear("altup_correct_coef", "altup.correction_coefs", (n, n))
    layer.tensor("altup_correct_scale.weight", "altup.correct_output_scale", (d.n_embd,))
