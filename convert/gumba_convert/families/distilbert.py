"""DistilBERT: BERT with half of its layers, and without token types.

Its classifier's first layer has ReLU instead of BERT's tanh, stored in gumba's key `gumba.classifier.activation`.
"""

from __future__ import annotations

from dataclasses import replace

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import classifier_metadata, labels
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.gguf_writer import boolean, string, u32

ARCHITECTURE = "bert"
HF_ARCHITECTURES = ("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification")
MODEL_TYPES = ("distilbert",)

NAMES = Names("n_layers", "dim", "hidden_dim", "n_heads", "n_heads", norm_eps="layer_norm_eps", activation="activation")
#: The epsilon is in transformers' code, not in the configuration.
DEFAULTS: decoder.Defaults = {"n_ctx": 512, "norm_eps": 1e-12, "tied": True}
#: transformers also reads these names.
OTHER_NAMES = {
    "hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers", "hidden_act": "activation",
}  # fmt: skip
UNNEEDED = r"vocab_(transform|layer_norm|projector)\..*|embeddings\.position_ids"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a DistilBERT checkpoint; the masked-language-model head is omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    given = {OTHER_NAMES.get(key, key): value for key, value in reader.config.items()}
    reader.config = given | {key: value for key, value in reader.config.items() if key in OTHER_NAMES.values()}
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu",), theta=None)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values |= {"bert.attention.causal": boolean(False), "tokenizer.ggml.token_type_count": u32(1)}
    table = TensorTable(checkpoint, prefixes={"distilbert.": ""}, ignored=UNNEEDED)
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor("position_embd.weight", "embeddings.position_embeddings.weight", (d.n_ctx, d.n_embd))
    table.norm("token_embd_norm", "embeddings.LayerNorm", d.n_embd, bias=True)
    for layer in table.layers(d.n_layers, "transformer.layer"):
        _block(layer, d)
    classifies = decoder.architecture_name(checkpoint).endswith("ForSequenceClassification")
    if classifies:
        names = labels(reader)
        table.linear("cls", "pre_classifier", (d.n_embd, d.n_embd), bias=True)
        table.linear("cls.output", "classifier", (len(names), d.n_embd), bias=True)
        values |= classifier_metadata(ARCHITECTURE, names) | {"gumba.classifier.activation": string("relu")}
    result = decoder.finish(ARCHITECTURE, d, values, table, None)
    note = ["the classifier's first layer has ReLU: llama.cpp, which has tanh there, gives other scores"]
    return replace(result, warnings=[*(note if classifies else []), *result.warnings])


def _block(layer: Layer, d: Decoder) -> None:
    for name in "qkv":
        layer.linear(f"attn_{name}", f"attention.{name}_lin", (d.n_embd, d.n_embd), bias=True)
    layer.linear("attn_output", "attention.out_lin", (d.n_embd, d.n_embd), bias=True)
    layer.norm("attn_output_norm", "sa_layer_norm", d.n_embd, bias=True)
    layer.linear("ffn_up", "ffn.lin1", (d.n_ff, d.n_embd), bias=True)
    layer.linear("ffn_down", "ffn.lin2", (d.n_embd, d.n_ff), bias=True)
    layer.norm("layer_output_norm", "output_layer_norm", d.n_embd, bias=True)
