"""IBM's Granite, dense and with experts: Llama with four multipliers."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.experts import Experts, expert_metadata, fused_experts, read_experts
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import part
from gumba_convert.families.llama import llama_attention
from gumba_convert.gguf_writer import Value, f32, u32

HF_ARCHITECTURES = ("GraniteForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM")
MODEL_TYPES = ("granite", "granitemoe", "granitemoeshared")

#: Keys of config.json and of GGUF.
MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Granite checkpoint: architecture `granite`, or `granitemoe` with experts.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader)
    mixture = checkpoint.config.get("architectures") not in (None, ["GraniteForCausalLM"]) or reader.config.get(
        "model_type"
    ) not in (None, "granite")
    architecture = "granitemoe" if mixture else "granite"
    values, factors = decoder.metadata(architecture, d)
    for theirs, ours in MULTIPLIERS.items():
        values[f"{architecture}.{ours}"] = f32(reader.number(theirs, 1.0))
    experts = read_experts(reader, "num_local_experts", n=8, n_used=2, n_ff=d.n_ff) if mixture else None
    shared = 0
    if experts is not None:
        values |= expert_metadata(architecture, experts)
        shared, more = _shared(d, architecture)
        values |= more
    attention_bias, mlp_bias = reader.flag("attention_bias", False), reader.flag("mlp_bias", False)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        llama_attention(layer, d, bias=attention_bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        if experts is None:
            decoder.gated_ffn(layer, d, bias=mlp_bias)
        else:
            _experts(layer, d, experts, shared)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(architecture, d, values, table, factors)


def _shared(d: Decoder, architecture: str) -> tuple[int, dict[str, Value]]:
    """The width of the shared expert (0: none), and its metadata."""
    width = d.reader.integer("shared_intermediate_size") if d.reader.config.get("shared_intermediate_size") else 0
    return width, {f"{architecture}.expert_shared_feed_forward_length": u32(width)} if width else {}


def _experts(layer: Layer, d: Decoder, experts: Experts, shared: int) -> None:
    """Router and experts; gate and up of each expert are one matrix, gate first."""
    layer.linear("ffn_gate_inp", "block_sparse_moe.router.layer", (experts.n, d.n_embd))
    fused_experts(layer, d, experts, "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")
    if shared:
        inner = "shared_mlp.input_linear"
        layer.linear("ffn_gate_shexp", inner, (2 * shared, d.n_embd), rows=part(0, shared))
        layer.linear("ffn_up_shexp", inner, (2 * shared, d.n_embd), rows=part(shared, shared))
        layer.linear("ffn_down_shexp", "shared_mlp.output_linear", (d.n_embd, shared))
