"""GPT-2: learned positions, LayerNorm and biases everywhere. Its matrices are transposed in checkpoints."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.families.phi2 import TANH_GELU

ARCHITECTURE = "gpt2"
HF_ARCHITECTURES = ("GPT2LMHeadModel",)
MODEL_TYPES = ("gpt2",)

NAMES = Names(
    "n_layer", "n_embd", "n_inner", "n_head", "n_head", "n_positions", "layer_norm_epsilon", "activation_function"
)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a GPT-2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    defaults: decoder.Defaults = {"n_ctx": 1024, "norm_eps": 1e-5, "tied": True, "n_ff": 4 * reader.integer("n_embd")}
    d = decoder.read_decoder(reader, defaults=defaults, names=NAMES, activations=TANH_GELU, theta=None)
    reader.must_be("scale_attn_weights", True)
    reader.must_be("scale_attn_by_inverse_layer_idx", False)
    reader.must_be("add_cross_attention", False)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    table = TensorTable(checkpoint, prefixes={"transformer.": ""})
    tied = d.tied and table.ties("lm_head.weight", "wte.weight")
    table.tensor("token_embd.weight", "wte.weight", (d.n_vocab, d.n_embd))
    table.tensor("position_embd.weight", "wpe.weight", (d.n_ctx, d.n_embd))
    for layer in table.layers(d.n_layers, "h"):
        layer.norm("attn_norm", "ln_1", d.n_embd, bias=True)
        layer.linear("attn_qkv", "attn.c_attn", (d.n_embd, 3 * d.n_embd), bias=True, transposed=True)
        layer.linear("attn_output", "attn.c_proj", (d.n_embd, d.n_embd), bias=True, transposed=True)
        layer.norm("ffn_norm", "ln_2", d.n_embd, bias=True)
        layer.linear("ffn_up", "mlp.c_fc", (d.n_embd, d.n_ff), bias=True, transposed=True)
        layer.linear("ffn_down", "mlp.c_proj", (d.n_ff, d.n_embd), bias=True, transposed=True)
    table.norm("output_norm", "ln_f", d.n_embd, bias=True)
    if not tied:
        table.tensor("output.weight", "lm_head.weight", (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, None)
