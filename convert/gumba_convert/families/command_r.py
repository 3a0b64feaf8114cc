"""Command R and R+, and Aya: one LayerNorm feeds attention and feed-forward; the larger ones normalize each head of Q and K.

Cohere's code rotates interleaved pairs, as GGUF's architecture does: rows keep their order.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import f32, string

ARCHITECTURE = "command-r"
HF_ARCHITECTURES = ("CohereForCausalLM",)
MODEL_TYPES = ("cohere",)

DEFAULTS: decoder.Defaults = {"n_ctx": 8192, "norm_eps": 1e-5, "tied": True}
#: Readers expect head norms in models of at least this many layers.
NORMED = 64


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Command R checkpoint; `model_max_length` is the context it was trained for.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    n_ctx = "model_max_length" if reader.has("model_max_length") else "max_position_embeddings"
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=Names(norm_eps="layer_norm_eps", n_ctx=n_ctx))
    reader.must_be("attention_bias", False)
    reader.must_be("tie_word_embeddings", True)
    heads = reader.flag("use_qk_norm", False)
    if heads != (d.n_layers >= NORMED):
        raise reader.fail("use_qk_norm", f"is {heads}; readers expect {not heads} with {d.n_layers} layers")
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values["command-r.logit_scale"] = f32(reader.number("logit_scale", 0.0625))
    values["command-r.rope.scaling.type"] = string("none")
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d)
        if heads:
            layer.tensor("attn_q_norm.weight", "self_attn.q_norm.weight", (d.n_heads, d.head_dim))
            layer.tensor("attn_k_norm.weight", "self_attn.k_norm.weight", (d.n_kv_heads, d.head_dim))
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, None)
