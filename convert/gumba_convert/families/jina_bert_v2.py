"""Jina Embeddings 2: BERT with ALiBi and a gated feed-forward. Its code is not in transformers; it has two layouts.

One has the matrices of gate and up in `mlp.gated_layers`, the gate first. The other (models for code, German, Spanish) has
them in `mlp.up_gated_layer`, the gate last, norms on Q and K, and adds a layer's input again after its attention.
Models with `feed_forward_type` "original" have BERT's own feed-forward.
"""

from __future__ import annotations

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import MODES
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import part
from gumba_convert.gguf_writer import boolean, u32

ARCHITECTURE = "jina-bert-v2"
HF_ARCHITECTURES = ("JinaBertModel", "JinaBertForMaskedLM")
MODEL_TYPES = ("jina_bert",)

NAMES = Names(norm_eps="layer_norm_eps", n_kv_heads="num_attention_heads")
DEFAULTS: decoder.Defaults = {"n_ctx": 8192, "norm_eps": 1e-12, "tied": True}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Jina BERT 2 checkpoint; masked-language-model heads are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu",), theta=None)
    reader.must_be("position_embedding_type", "alibi")
    reader.must_be("is_decoder", False)
    reader.must_be("feed_forward_type", "geglu", "original")
    reader.must_be("emb_pooler", "mean")
    types = reader.integer("type_vocab_size", 2)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values |= {
        f"{ARCHITECTURE}.attention.causal": boolean(False),
        f"{ARCHITECTURE}.pooling_type": u32(MODES["mean"]),
        "tokenizer.ggml.token_type_count": u32(types),
    }
    table = TensorTable(
        checkpoint, prefixes={"bert.": ""}, ignored=r"cls\..*|lm_head\..*|embeddings\.position_ids|pooler\..*"
    )
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor("token_types.weight", "embeddings.token_type_embeddings.weight", (types, d.n_embd))
    table.norm("token_embd_norm", "embeddings.LayerNorm", d.n_embd, bias=True)
    gated = reader.config.get("feed_forward_type") != "original"
    for layer in table.layers(d.n_layers, "encoder.layer"):
        _attention(layer, d)
        if not gated:
            layer.linear("ffn_up", "intermediate.dense", (d.n_ff, d.n_embd), bias=True)
            layer.linear("ffn_down", "output.dense", (d.n_embd, d.n_ff), bias=True)
            layer.norm("layer_output_norm", "output.LayerNorm", d.n_embd, bias=True)
        elif layer.has("mlp.up_gated_layer.weight"):
            layer.norm("attn_norm_2", "layer_norm_1", d.n_embd, bias=True)
            _gated(layer, d, "mlp.up_gated_layer", gate=d.n_ff, up=0)
            layer.linear("ffn_down", "mlp.down_layer", (d.n_embd, d.n_ff), bias=True)
            layer.norm("layer_output_norm", "layer_norm_2", d.n_embd, bias=True)
        else:
            _gated(layer, d, "mlp.gated_layers", gate=0, up=d.n_ff)
            layer.linear("ffn_down", "mlp.wo", (d.n_embd, d.n_ff), bias=True)
            layer.norm("layer_output_norm", "mlp.layernorm", d.n_embd, bias=True)
    return decoder.finish(ARCHITECTURE, d, values, table, None)


def _attention(layer: Layer, d: Decoder) -> None:
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        layer.linear(f"attn_{ours}", f"attention.self.{theirs}", (d.n_embd, d.n_embd), bias=True)
    for ours in "qk":
        if layer.has(f"attention.self.layer_norm_{ours}.weight"):
            layer.norm(f"attn_{ours}_norm", f"attention.self.layer_norm_{ours}", d.n_embd, bias=True)
    layer.linear("attn_output", "attention.output.dense", (d.n_embd, d.n_embd), bias=True)
    layer.norm("attn_output_norm", "attention.output.LayerNorm", d.n_embd, bias=True)


def _gated(layer: Layer, d: Decoder, theirs: str, *, gate: int, up: int) -> None:
    """Split a fused matrix in two tensors, because readers differ in which half is the gate."""
    for ours, first in (("ffn_gate", gate), ("ffn_up", up)):
        layer.tensor(f"{ours}.weight", f"{theirs}.weight", (2 * d.n_ff, d.n_embd), rows=part(first, d.n_ff))
