"""gemma4: Gemma 4's text: gemma3 whose layers with full attention have heads of another size, of which a part is rotary.

Small models have per-layer embeddings and share keys and values among the last layers. Others have no values of their own in
layers with full attention (keys serve as values), or have experts in parallel to the feed-forward network, with further norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gumba.backends.base import Buffer, Program
from gumba.errors import ModelError
from gumba.gguf import GGUFArray, GGUFFile
from gumba.layers import decoder, gemma
from gumba.layers.gemma import GemmaLayer, GemmaWeights, LayersConfig
from gumba.loading.config import EXPERT_KEYS, read_expert_counts, read_metadata
from gumba.loading.decoder_tensors import PRE_POST_NORMS, add_embeddings, add_feed_forward, add_norms
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH, Loader
from gumba.loading.weights import Array

NAME = "gemma4"
FAMILIES = "Gemma 4 (text)"
VERIFIED = ("transformers", "llama.cpp")


class Gemma4Layer(GemmaLayer):
    layer_output_scale: Array | None = None
    ffn_gate_inp_scale: Array
    ffn_down_exps_scale: Array | None = None
    post_ffw_norm_1: Array
    pre_ffw_norm_2: Array
    post_ffw_norm_2: Array


class Gemma4Weights(GemmaWeights):
    layers: Sequence[Gemma4Layer]


@dataclass(frozen=True)
class Gemma4Config(LayersConfig):
    """All layers have experts, or none. ``suppressed``: tokens that are never generated."""

    suppressed: tuple[int, ...]


def read_config(gguf: GGUFFile) -> Gemma4Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, *gemma.OWN_KEYS, *EXPERT_KEYS) as metadata:
        common = gemma.read_layers(metadata, period=6, n_own=MAX_LAYERS)
        n_experts, n_used = read_expert_counts(metadata)
        n_ff = metadata.size("expert_feed_forward_length", MAX_WIDTH)
        if n_experts and not n_ff:
            raise metadata.error("expert_feed_forward_length", "expected a positive number")
        common = replace(common, n_experts=n_experts, n_used=n_used, n_ff_expert=n_ff)
        return Gemma4Config(**vars(common), suppressed=_suppressed(gguf, common.n_vocab))


def _suppressed(gguf: GGUFFile, n_vocab: int) -> tuple[int, ...]:
    """Tokens that must not be generated: those of images and sound, which the text model would generate otherwise."""
    key = "tokenizer.ggml.suppress_tokens"
    value = gguf.metadata.get(key)
    values = value.to_list() if isinstance(value, GGUFArray) else [value] * (value is not None)
    tokens = tuple(token for token in values if type(token) is int and 0 <= token < n_vocab)
    if len(tokens) != len(values):
        raise ModelError(f"{gguf.path}: metadata {key}: expected integers from 0 to {n_vocab - 1}")
    return tokens


def load_weights(loader: Loader, c: Gemma4Config) -> Gemma4Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c)
    if c.n_per_layer:
        gemma.add_per_layer(t, c)
    for i in range(c.n_layers):
        add_norms(t, c, i, *PRE_POST_NORMS)
        gemma.add_attention(t, c, i, keys_are_values=not c.windowed[i])
        add_feed_forward(t, c, i, n_ff=c.n_ffs[i])
        t.add("layer_output_scale", "layer_output_scale.weight", 1, layer=i, required=False)
        if c.n_experts:
            _add_experts(t, c, i)
    return t.load(loader, Gemma4Weights, gemma.unused_kv(c))


def _add_experts(t: TensorTable, c: Gemma4Config, i: int) -> None:
    """Router and experts; gate and up of an expert are one matrix, or two."""
    add_norms(t, c, i, "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
    t.add("ffn_gate_inp", "ffn_gate_inp.weight", c.n_experts, c.n_embd, layer=i)
    t.add("ffn_gate_inp_scale", "ffn_gate_inp.scale", c.n_embd, layer=i)
    parts = {"ffn_gate_exps": c.n_ff_expert, "ffn_up_exps": c.n_ff_expert}
    if t.has(f"blk.{i}.ffn_gate_up_exps.weight"):
        t.split_experts("ffn_gate_up_exps.weight", c.n_experts, parts, c.n_embd, layer=i)
    else:
        for name, rows in parts.items():
            t.add(name, f"{name}.weight", c.n_experts, rows, c.n_embd, layer=i)
    t.add("ffn_down_exps", "ffn_down_exps.weight", c.n_experts, c.n_embd, c.n_ff_expert, layer=i)
    t.add("ffn_down_exps_scale", "ffn_down_exps.scale", c.n_experts, layer=i, required=False)


def forward(p: Program, c: Gemma4Config, w: Gemma4Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    tables = gemma.rope_tables(p, c, w)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    inputs = gemma.per_layer_inputs(p, c, w, x) if c.n_per_layer else None
    for i, layer in enumerate(w.layers):
        if i == c.n_own:
            x, inputs = p.select_outputs(x), None if inputs is None else p.select_outputs(inputs)
        h = gemma.attention(p, c, layer, p.rms_norm(x, layer.attn_norm, c.norm_eps), i, tables)
        halves = _halves_with_experts if c.n_experts else decoder.post_norm_block
        x = halves(p, c, layer, x, h, "gelu_tanh")
        if inputs is not None:
            x = p.add(x, gemma.per_layer_embedding(p, c, layer, x, inputs, i))
        if layer.layer_output_scale is not None:
            x = p.scale(x, float(layer.layer_output_scale[0]))
    hidden, logits = gemma.softcap_logits(p, c, *decoder.outputs(p, c, w, x))
    if c.suppressed:
        never = np.zeros(c.n_vocab, np.float32)
        never[list(c.suppressed)] = -np.inf
        logits = p.add_row(logits, never)
    return hidden, logits


def _halves_with_experts(
    p: Program, c: Gemma4Config, layer: Gemma4Layer, x: Buffer, attended: Buffer, kind: str
) -> Buffer:
    """``decoder.post_norm_block`` with experts in parallel; router and experts have norms of their own."""
    x = p.add(x, p.rms_norm(attended, layer.post_attention_norm, c.norm_eps))
    h = decoder.gated_ffn(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), kind)
    scores = p.matmul(layer.ffn_gate_inp, p.rms_norm(x, layer.ffn_gate_inp_scale / math.sqrt(c.n_embd), c.norm_eps))
    mixed = p.moe(
        p.rms_norm(x, layer.pre_ffw_norm_2, c.norm_eps), scores,
        layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps, c.n_used, kind,
        normalized=True, factors=layer.ffn_down_exps_scale,
    )  # fmt: skip
    mixed = p.rms_norm(mixed, layer.post_ffw_norm_2, c.norm_eps)
    h = p.add(p.rms_norm(h, layer.post_ffw_norm_1, c.norm_eps), mixed)
    return p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))
