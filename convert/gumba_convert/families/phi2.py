"""Phi-1, Phi-1.5 and Phi-2: one LayerNorm feeds parallel attention and feed-forward; all matrices have biases."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable

ARCHITECTURE = "phi2"
HF_ARCHITECTURES = ("PhiForCausalLM",)
MODEL_TYPES = ("phi",)

NAMES = Names(norm_eps="layer_norm_eps")
DEFAULTS: decoder.Defaults = {"n_ctx": 2048, "norm_eps": 1e-5}
#: The tanh form of GELU under transformers' names.
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Phi-2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=TANH_GELU, partial=0.5)
    reader.must_be("qk_layernorm", False)
    reader.must_be("tie_word_embeddings", False)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    table = TensorTable(checkpoint)
    table.tensor("token_embd.weight", "model.embed_tokens.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd, bias=True)
        decoder.attention(layer, d, bias=True, output_bias=True, names=("q_proj", "k_proj", "v_proj", "dense"))
        layer.linear("ffn_up", "mlp.fc1", (d.n_ff, d.n_embd), bias=True)
        layer.linear("ffn_down", "mlp.fc2", (d.n_embd, d.n_ff), bias=True)
    table.norm("output_norm", "model.final_layernorm", d.n_embd, bias=True)
    table.linear("output", "lm_head", (d.n_vocab, d.n_embd), bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, None)
