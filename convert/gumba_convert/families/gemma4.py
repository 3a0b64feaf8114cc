"""Gemma 4's language models: global layers with another head size and partial RoPE; experts in some models.

Partial RoPE that keeps the pairs of the full head is expressed by frequency factors: frequencies of unrotated pairs are divided
by a huge number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder, per_layer
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.experts import Experts, expert_metadata, read_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.rope import Rope, read_rope
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import f32, i32_array, u32

ARCHITECTURE = "gemma4"
HF_ARCHITECTURES = (
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForCausalLM",
    "Gemma4UnifiedForConditionalGeneration",
)
MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")

NAMES = Names(activation="hidden_activation")
DEFAULTS: decoder.Defaults = {
    "n_layers": 30,
    "n_embd": 2304,
    "n_ff": 9216,
    "n_heads": 8,
    "n_kv_heads": 4,
    "n_ctx": 131072,
    "head_dim": 256,
    "tied": True,
    "vocab_size": 262144,
}
PERIOD = 6
NO_TURN = np.float32(1e30)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Gemma 4 checkpoint; vision and audio parts are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu_pytorch_tanh",), theta=None)
    reader.must_be("attention_bias", False)
    reader.must_be("use_bidirectional_attention", "vision")  # of images only
    sliding = decoder.sliding_layers(reader, d.n_layers, decoder.every(d.n_layers, PERIOD))
    n_shared = per_layer.shared_layers(reader, sliding)
    n_own = d.n_layers - n_shared
    n_per_layer = per_layer.optional_integer(reader, "hidden_size_per_layer_input")
    wide = reader.flag("use_double_wide_mlp", False)
    n_ffs = [2 * d.n_ff if wide and i >= n_own else d.n_ff for i in range(d.n_layers)]
    full = _global_sizes(d, sliding)
    kinds = [d if windowed else full for windowed in sliding]
    rope, local = read_rope(reader, theta=1e6), per_layer.local_rope(reader)
    experts = _experts(reader)
    values, _ = decoder.metadata(ARCHITECTURE, d)
    values |= per_layer.common_metadata(ARCHITECTURE, d, sliding, n_shared, n_per_layer)
    values |= {
        f"{ARCHITECTURE}.{key}": value
        for key, value in {
            "attention.key_length": u32(full.head_dim),
            "attention.value_length": u32(full.head_dim),
            "attention.key_length_swa": u32(d.head_dim),
            "attention.value_length_swa": u32(d.head_dim),
            "attention.head_count_kv": per_layer.counts([kind.n_kv_heads for kind in kinds]),
            "feed_forward_length": per_layer.counts(n_ffs),
            "rope.dimension_count": u32(full.head_dim),
            "rope.dimension_count_swa": u32(d.head_dim),
            "rope.freq_base": f32(rope.theta),
            "rope.freq_base_swa": f32(local.theta),
        }.items()
    }
    if experts is not None:
        values |= expert_metadata(ARCHITECTURE, experts, width=True)
    if suppressed := _suppressed(checkpoint, d.n_vocab):
        values["tokenizer.ggml.suppress_tokens"] = i32_array(suppressed)
    table = TensorTable(checkpoint, prefixes=per_layer.PREFIXES, ignored=per_layer.OTHER_PARTS)
    decoder.embedding_and_head(table, d)
    if n_per_layer:
        per_layer.embeddings(table, d, n_per_layer)
    equal = reader.flag("attention_k_eq_v", False)
    for layer, kind, windowed, n_ff in zip(table.layers(d.n_layers), kinds, sliding, n_ffs, strict=True):
        per_layer.block_norms(layer, d)
        _attention(layer, kind, own=layer.index < n_own, values=windowed or not equal)
        decoder.gated_ffn(layer, replace(d, n_ff=n_ff))
        if layer.has("layer_scalar"):
            layer.tensor("layer_output_scale.weight", "layer_scalar", (1,))
        if n_per_layer:
            per_layer.gate(layer, d, n_per_layer)
        if experts is not None:
            _expert_tensors(layer, d, experts)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, _factors(reader, rope, full.head_dim))


def _global_sizes(d: Decoder, sliding: list[bool]) -> Decoder:
    """The sizes of global layers; transformers 5 writes them layer by layer."""
    reader = d.reader
    by_layer = reader.section("per_layer_config")
    if by_layer is None:
        own = reader.flag("attention_k_eq_v", False) and reader.has("num_global_key_value_heads")
        n_kv_heads = reader.integer("num_global_key_value_heads") if own else d.n_kv_heads
        sizes_seen = {(reader.integer("global_head_dim", 512), n_kv_heads)}
    else:
        sizes_seen = set()
        for i, windowed in enumerate(sliding):
            layer = by_layer.section(str(i)) or ConfigReader({}, reader.where)
            sizes = layer.integer("head_dim", d.head_dim), layer.integer("num_key_value_heads", d.n_kv_heads)
            if not set(layer.config) <= {"head_dim", "num_key_value_heads"} or (
                windowed and sizes != (d.head_dim, d.n_kv_heads)
            ):
                raise reader.fail(
                    "per_layer_config", f"of layer {i} is {str(layer.config)[:100]}, which is not supported"
                )
            if not windowed:
                sizes_seen.add(sizes)
    if len(sizes_seen) != 1:
        raise reader.fail("per_layer_config", "must have global layers, all of the same sizes")
    head_dim, n_kv_heads = sizes_seen.pop()
    if d.n_heads % n_kv_heads or head_dim % 2:
        raise reader.fail("num_attention_heads", f"is {d.n_heads}: {n_kv_heads} KV heads of {head_dim} do not fit")
    return replace(d, head_dim=head_dim, n_kv_heads=n_kv_heads)


def _factors(reader: ConfigReader, rope: Rope, head_dim: int) -> np.ndarray:
    """Divisors of the frequencies of global layers, float32 [head_dim / 2]."""
    if rope.kind != "proportional":
        raise reader.fail(
            "rope_parameters", f"is of type {rope.kind!r} for full attention; only proportional is supported"
        )
    factors = np.full(head_dim // 2, NO_TURN)
    factors[: int(rope.partial * head_dim // 2)] = rope.settings.number("factor", 1.0)
    return factors


def _attention(layer: Layer, d: Decoder, *, own: bool, values: bool) -> None:
    """The attention of a layer; `own`: it has its own keys; `values`: and a matrix for values."""
    layer.linear("attn_q", "self_attn.q_proj", (d.n_q, d.n_embd))
    layer.norm("attn_q_norm", "self_attn.q_norm", d.head_dim)
    layer.linear("attn_output", "self_attn.o_proj", (d.n_embd, d.n_q))
    for name in ("k_proj", "v_proj", "k_norm"):
        layer.table.ignore(f"{layer.theirs}self_attn.{name}.weight")  # earlier layers' are used instead
    if own:
        layer.linear("attn_k", "self_attn.k_proj", (d.n_kv, d.n_embd))
        layer.norm("attn_k_norm", "self_attn.k_norm", d.head_dim)
        if values:
            layer.linear("attn_v", "self_attn.v_proj", (d.n_kv, d.n_embd))


def _suppressed(checkpoint: Checkpoint, n_vocab: int) -> list[int]:
    """Tokens that are never generated, such as placeholders of images and audio."""
    tokens = (checkpoint.json("generation_config.json") or {}).get("suppress_tokens") or []
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < n_vocab for token in tokens):
        where = checkpoint.folder / "generation_config.json"
        raise ConvertError(f"{where}: suppress_tokens is {str(tokens)[:80]}, expected ids below {n_vocab}")
    return tokens


def _experts(reader: ConfigReader) -> Experts | None:
    if not reader.flag("enable_moe_block", False):
        return None
    n_ff = reader.integer("moe_intermediate_size")
    return read_experts(reader, "num_experts", used_key="top_k_experts", n_ff=n_ff)


def _expert_tensors(layer: Layer, d: Decoder, experts: Experts) -> None:
    """Router and experts, in addition to the dense feed-forward."""
    for name in ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"):
        when, number = name.split("_ffw_norm_")
        layer.norm(name, f"{when}_feedforward_layernorm_{number}", d.n_embd)
    layer.linear("ffn_gate_inp", "router.proj", (experts.n, d.n_embd))
    layer.tensor("ffn_gate_inp.scale", "router.scale", (d.n_embd,))
    layer.tensor("ffn_gate_up_exps.weight", "experts.gate_up_proj", (experts.n, 2 * experts.n_ff, d.n_embd))
    layer.tensor("ffn_down_exps.weight", "experts.down_proj", (experts.n, d.n_embd, experts.n_ff))
    layer.tensor("ffn_down_exps.scale", "router.per_expert_scale", (experts.n,))
