"""ChatGLM2, ChatGLM3 and GLM-4-9B, in their own form and in that of transformers (GlmForCausalLM).

Half of each head is rotated, in interleaved pairs as in GGUF's architecture; gate and up are one matrix, in ChatGLM's own form
also Q, K and V.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import f32

ARCHITECTURE = "chatglm"
HF_ARCHITECTURES = ("ChatGLMModel", "ChatGLMForConditionalGeneration", "GlmForCausalLM")
MODEL_TYPES = ("chatglm", "glm")

DEFAULTS: decoder.Defaults = {"n_kv_heads": 2, "n_ctx": 131072, "head_dim": 128, "norm_eps": 1.5625e-7}
# The keys of ChatGLM's own configuration, and the common keys.
OWN = {
    "num_layers": "num_hidden_layers",
    "ffn_hidden_size": "intermediate_size",
    "seq_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "padded_vocab_size": "vocab_size",
    "kv_channels": "head_dim",
    "multi_query_group_num": "num_key_value_heads",
}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a ChatGLM checkpoint; GLM-4's longer contexts scale the base frequency by `rope_ratio`.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    own = reader.has("num_layers")
    if own:
        reader = _translated(reader)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, partial=0.5)
    values, factors = decoder.metadata(ARCHITECTURE, d, kinds=("default",))
    if own:
        values["chatglm.rope.freq_base"] = f32(10000.0 * reader.number("rope_ratio", 1.0))
    table = TensorTable(checkpoint, prefixes={"transformer.": ""}, ignored=r"rotary_pos_emb\.inv_freq")
    if own:
        _own_tensors(table, d, reader.flag("add_qkv_bias", False))
    else:
        _tensors(table, d, reader.flag("attention_bias", True))
    return decoder.finish(ARCHITECTURE, d, values, table, factors)


def _translated(reader: ConfigReader) -> ConfigReader:
    """ChatGLM's configuration with the common keys; without groups, every head has its own K and V."""
    for key, wanted in (("rmsnorm", True), ("add_bias_linear", False), ("post_layer_norm", True)):
        reader.must_be(key, wanted)
    reader.must_be("apply_residual_connection_post_layernorm", False)
    reader.must_be("pre_seq_len")
    config = {OWN.get(key, key): value for key, value in reader.config.items()}
    config["num_hidden_layers"] = reader.config["num_layers"]
    if not reader.flag("multi_query_attention", False):
        config["num_key_value_heads"] = reader.config.get("num_attention_heads")
    if "padded_vocab_size" in reader.config:
        config["vocab_size"] = reader.config["padded_vocab_size"]
    return ConfigReader(config, reader.where, prefix=reader.prefix)


def _own_tensors(table: TensorTable, d: Decoder, bias: bool) -> None:
    table.tensor("token_embd.weight", "embedding.word_embeddings.weight", (d.n_vocab, d.n_embd))
    for layer in table.layers(d.n_layers, "encoder.layers"):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        layer.linear("attn_qkv", "self_attention.query_key_value", (d.n_q + 2 * d.n_kv, d.n_embd), bias=bias)
        layer.linear("attn_output", "self_attention.dense", (d.n_embd, d.n_q))
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_up", "mlp.dense_h_to_4h", (2 * d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.dense_4h_to_h", (d.n_embd, d.n_ff))
    table.norm("output_norm", "encoder.final_layernorm", d.n_embd)
    table.tensor("output.weight", "output_layer.weight", (d.n_vocab, d.n_embd))


def _tensors(table: TensorTable, d: Decoder, bias: bool) -> None:
    decoder.embedding_and_head(table, d)
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=bias)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        layer.linear("ffn_up", "mlp.gate_up_proj", (2 * d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.down_proj", (d.n_embd, d.n_ff))
    table.norm("output_norm", "model.norm", d.n_embd)
