"""nomic-embed-text 1 and 1.5: BERT with RoPE, a gated feed-forward and no biases in its matrices."""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import boolean, u32

ARCHITECTURE = "nomic-bert"
HF_ARCHITECTURES = ("NomicBertModel",)
MODEL_TYPES = ("nomic_bert",)

NAMES = Names(norm_eps="layer_norm_eps", n_kv_heads="num_attention_heads")
DEFAULTS: decoder.Defaults = {"n_ctx": 2048, "norm_eps": 1e-12, "tied": True}
# The keys of Nomic's own configuration, and the common keys.
OWN = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Nomic BERT checkpoint.

    Raises:
        ConvertError: an unsupported configuration (experts among them) or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    if reader.has("n_embd"):
        reader = _translated(reader)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, theta=1000.0)
    types = reader.integer("type_vocab_size", 2)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values |= {"nomic-bert.attention.causal": boolean(False), "tokenizer.ggml.token_type_count": u32(types)}
    table = TensorTable(checkpoint, ignored=r"pooler\..*|cls\..*")
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor("token_types.weight", "embeddings.token_type_embeddings.weight", (types, d.n_embd))
    table.norm("token_embd_norm", "emb_ln", d.n_embd, bias=True)
    for layer in table.layers(d.n_layers, "encoder.layers"):
        layer.linear("attn_qkv", "attn.Wqkv", (3 * d.n_embd, d.n_embd))
        layer.linear("attn_output", "attn.out_proj", (d.n_embd, d.n_embd))
        layer.norm("attn_output_norm", "norm1", d.n_embd, bias=True)
        layer.linear("ffn_up", "mlp.fc11", (d.n_ff, d.n_embd))
        layer.linear("ffn_gate", "mlp.fc12", (d.n_ff, d.n_embd))
        layer.linear("ffn_down", "mlp.fc2", (d.n_embd, d.n_ff))
        layer.norm("layer_output_norm", "norm2", d.n_embd, bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, None)


def _translated(reader: ConfigReader) -> ConfigReader:
    """Nomic's own configuration with the common keys. Its models were trained on `max_trained_positions` tokens."""
    for key, wanted in (
        ("activation_function", "swiglu"),
        ("causal", False),
        ("qkv_proj_bias", False),
        ("mlp_fc1_bias", False),
        ("mlp_fc2_bias", False),
        ("prenorm", False),
        ("rotary_emb_fraction", 1.0),
        ("rotary_emb_interleaved", False),
    ):
        reader.must_be(key, wanted)
    reader.must_be("rotary_emb_scale_base")
    reader.must_be("moe_every_n_layers", 0)
    config = {OWN.get(key, key): value for key, value in reader.config.items()}
    positions = reader.integer("n_positions", 8192)
    config["max_position_embeddings"] = min(positions, reader.integer("max_trained_positions", 2048))
    return ConfigReader(config, reader.where, prefix=reader.prefix)
