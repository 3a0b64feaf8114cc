"""Qwen 1: Q, K and V in one matrix with a bias. `intermediate_size` counts gate and up together, and so does GGUF."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable

ARCHITECTURE = "qwen"
HF_ARCHITECTURES = ("QWenLMHeadModel",)
MODEL_TYPES = ("qwen",)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen 1 checkpoint.

    Beyond `seq_length` these models scale frequencies and attention, which GGUF cannot express: that length is the file's
    context length.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    names = Names(
        n_ctx="seq_length" if reader.has("seq_length") else "max_position_embeddings",
        norm_eps="layer_norm_epsilon",
        n_kv_heads="num_attention_heads",
    )
    d = decoder.read_decoder(reader, names=names, theta=reader.number("rotary_emb_base", 10000.0))
    reader.must_be("no_bias", True)
    reader.must_be("rotary_pct", 1.0)
    reader.must_be("tie_word_embeddings", False)
    reader.must_be("kv_channels", d.head_dim)
    if d.n_ff % 2:
        raise reader.fail("intermediate_size", f"is {d.n_ff}; expected an even number")
    half = d.n_ff // 2
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    table = TensorTable(checkpoint, prefixes={"transformer.": ""}, ignored=r"rotary_emb\.inv_freq")
    table.tensor("token_embd.weight", "wte.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers, "h"):
        layer.norm("attn_norm", "ln_1", d.n_embd)
        layer.linear("attn_qkv", "attn.c_attn", (3 * d.n_q, d.n_embd), bias=True)
        layer.linear("attn_output", "attn.c_proj", (d.n_embd, d.n_q))
        layer.norm("ffn_norm", "ln_2", d.n_embd)
        layer.linear("ffn_gate", "mlp.w2", (half, d.n_embd))
        layer.linear("ffn_up", "mlp.w1", (half, d.n_embd))
        layer.linear("ffn_down", "mlp.c_proj", (d.n_embd, half))
    table.norm("output_norm", "ln_f", d.n_embd)
    table.tensor("output.weight", "lm_head.weight", (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
