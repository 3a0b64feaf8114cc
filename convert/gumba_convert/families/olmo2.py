"""OLMo 2 and 3: norms after attention and feed-forward, and over all of Q and of K; OLMo 3 has windows."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import u32

ARCHITECTURE = "olmo2"
HF_ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
MODEL_TYPES = ("olmo2", "olmo3")

DEFAULTS: decoder.Defaults = {"norm_eps": 1e-5}
PERIOD = 4


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of an OLMo 2 or 3 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("attention_bias", False)
    reader.must_be("tie_word_embeddings", False)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default", "yarn"))
    if checkpoint.config.get("architectures") == ["Olmo3ForCausalLM"] or checkpoint.config.get("model_type") == "olmo3":
        sliding = decoder.sliding_layers(reader, d.n_layers, decoder.every(d.n_layers, PERIOD))
        if any(sliding):
            values["olmo2.attention.sliding_window"] = u32(reader.integer("sliding_window", 4096))
            values["olmo2.attention.sliding_window_pattern"] = decoder.booleans(sliding)
    else:
        decoder.no_window(d)
    table = TensorTable(checkpoint)
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        decoder.attention(layer, d)
        layer.norm("attn_q_norm", "self_attn.q_norm", d.n_q)
        layer.norm("attn_k_norm", "self_attn.k_norm", d.n_kv)
        layer.norm("post_attention_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
        layer.norm("post_ffw_norm", "post_feedforward_layernorm", d.n_embd)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(ARCHITECTURE, d, values, table, factors)
