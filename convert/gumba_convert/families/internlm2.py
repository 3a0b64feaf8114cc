"""InternLM2: Llama with Q, K and V fused in groups of heads that share one K and V, and its own tensor names."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.common.transforms import grouped_qkv, pairs

ARCHITECTURE = "internlm2"
HF_ARCHITECTURES = ("InternLM2ForCausalLM",)
MODEL_TYPES = ("internlm2",)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of an InternLM2 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    settings = reader.section("rope_scaling")
    if settings is not None and settings.config.get("type") == "dynamic":
        # It scales frequencies beyond the trained context only, which is the file's context length.
        reader.config = {key: value for key, value in reader.config.items() if key != "rope_scaling"}
    d = decoder.read_decoder(reader)
    reader.must_be("bias", False)
    reader.must_be("tie_word_embeddings", False)
    values, factors = decoder.metadata(ARCHITECTURE, d)
    q, k, v = grouped_qkv(d.n_kv_heads, d.n_heads // d.n_kv_heads, d.head_dim)
    q, k = q[pairs(d.n_heads, d.head_dim)], k[pairs(d.n_kv_heads, d.head_dim)]
    fused = (d.n_q + 2 * d.n_kv, d.n_embd)
    table = TensorTable(checkpoint)
    table.tensor("token_embd.weight", "model.tok_embeddings.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "attention_norm", d.n_embd)
        for name, rows in (("q", q), ("k", k), ("v", v)):
            layer.linear(f"attn_{name}", "attention.wqkv", fused, rows=rows)
        layer.linear("attn_output", "attention.wo", (d.n_embd, d.n_q))
        layer.norm("ffn_norm", "ffn_norm", d.n_embd)
        layer.linear("ffn_gate", "feed_forward.w1", (d.n_ff, d.n_embd))
        layer.linear("ffn_up", "feed_forward.w3", (d.n_ff, d.n_embd))
        layer.linear("ffn_down", "feed_forward.w2", (d.n_embd, d.n_ff))
    table.norm("output_norm", "model.norm", d.n_embd)
    table.tensor("output.weight", "output.weight", (d.n_vocab, d.n_embd))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
