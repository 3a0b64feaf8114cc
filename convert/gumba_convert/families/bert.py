"""BERT, RoBERTa and XLM-RoBERTa: encoders, LayerNorm after each part; embeddings, rerankers and classifiers.

RoBERTa counts positions from the padding token's id + 1: the rows before are omitted. A classifier's first layer
(BERT's pooler, RoBERTa's `classifier.dense`) is GGUF's `cls`, its last `cls.output`.
"""

from __future__ import annotations

from dataclasses import replace

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import classifier_metadata, labels
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import part
from gumba_convert.families import jina_bert_v3
from gumba_convert.gguf_writer import Value, boolean, u32

ARCHITECTURE = "bert"
ROBERTA = ("Roberta", "XLMRoberta", "Camembert")
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification")
HF_ARCHITECTURES = tuple(f"{name}{head}" for name in ("Bert", *ROBERTA) for head in HEADS)
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

NAMES = Names(norm_eps="layer_norm_eps", n_kv_heads="num_attention_heads")
DEFAULTS: decoder.Defaults = {"n_ctx": 512, "norm_eps": 1e-12, "tied": True}
UNNEEDED = r"cls\..*|lm_head\..*|embeddings\.position_ids"
POOLER = r"|pooler\..*"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a BERT checkpoint; masked-language-model heads are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    if reader.config.get("position_embedding_type") == "rotary":  # Jina Embeddings 3 has the model type of XLM-RoBERTa
        return jina_bert_v3.plan(checkpoint)
    name = (checkpoint.config.get("architectures") or [reader.config.get("model_type", "")])[0]
    roberta = name.startswith(ROBERTA) or "roberta" in name or "camembert" in name
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu",), theta=None)
    reader.must_be("position_embedding_type", "absolute")
    reader.must_be("is_decoder", False)
    n_positions = d.n_ctx
    skipped = reader.integer("pad_token_id", 1) + 1 if roberta else 0
    if skipped >= n_positions:
        raise reader.fail("pad_token_id", f"is {skipped - 1}, but there are {n_positions} positions")
    d = replace(d, n_ctx=n_positions - skipped)
    types = reader.integer("type_vocab_size", 2)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values |= {"bert.attention.causal": boolean(False), "tokenizer.ggml.token_type_count": u32(types)}
    classifies = name.endswith("ForSequenceClassification")
    table = TensorTable(
        checkpoint,
        prefixes=dict.fromkeys(("bert.", "roberta.", "camembert."), ""),
        suffixes={".gamma": ".weight", ".beta": ".bias"},
        ignored=UNNEEDED + ("" if classifies else POOLER),
    )
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor("token_types.weight", "embeddings.token_type_embeddings.weight", (types, d.n_embd))
    table.tensor(
        "position_embd.weight",
        "embeddings.position_embeddings.weight",
        (n_positions, d.n_embd),
        rows=part(skipped, d.n_ctx) if skipped else None,
    )
    table.norm("token_embd_norm", "embeddings.LayerNorm", d.n_embd, bias=True)
    for layer in table.layers(d.n_layers, "encoder.layer"):
        _block(layer, d)
    if classifies:
        values |= _head(table, reader, d, roberta)
    return decoder.finish(ARCHITECTURE, d, values, table, None)


def _block(layer: Layer, d: Decoder) -> None:
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        layer.linear(f"attn_{ours}", f"attention.self.{theirs}", (d.n_embd, d.n_embd), bias=True)
    layer.linear("attn_output", "attention.output.dense", (d.n_embd, d.n_embd), bias=True)
    layer.norm("attn_output_norm", "attention.output.LayerNorm", d.n_embd, bias=True)
    layer.linear("ffn_up", "intermediate.dense", (d.n_ff, d.n_embd), bias=True)
    layer.linear("ffn_down", "output.dense", (d.n_embd, d.n_ff), bias=True)
    layer.norm("layer_output_norm", "output.LayerNorm", d.n_embd, bias=True)


def _head(table: TensorTable, reader: ConfigReader, d: Decoder, roberta: bool) -> dict[str, Value]:
    names = labels(reader)
    dense, output = ("classifier.dense", "classifier.out_proj") if roberta else ("pooler.dense", "classifier")
    table.linear("cls", dense, (d.n_embd, d.n_embd), bias=True)
    table.linear("cls.output", output, (len(names), d.n_embd), bias=True)
    return classifier_metadata(ARCHITECTURE, names)
