"""Jina Embeddings 3: XLM-RoBERTa with rotated positions.

The first checkpoints are of code that is not in transformers: each matrix is the `original` of a parametrization, beside
low-rank adapters for tasks, which are omitted; the file has the model without a task.
"""

from __future__ import annotations

from dataclasses import replace

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import MODES, classifier_metadata, labels
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import boolean, u32

ARCHITECTURE = "jina-bert-v3"
HF_ARCHITECTURES = tuple(f"JinaEmbeddingsV3{head}" for head in ("Model", "ForMaskedLM", "ForSequenceClassification"))
MODEL_TYPES = ("jina_embeddings_v3",)

NAMES = Names(norm_eps="layer_norm_eps", n_kv_heads="num_attention_heads")
DEFAULTS: decoder.Defaults = {"n_ctx": 8194, "norm_eps": 1e-5, "tied": True}
ADAPTERS = r"|.*\.parametrizations\.weight\.0\.lora_[AB]"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Jina Embeddings 3 checkpoint; masked-language-model heads are omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    theta = reader.number("rotary_emb_base", 20000.0)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu",), theta=theta)
    reader.must_be("position_embedding_type", "rotary")
    types = reader.integer("type_vocab_size", 1)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS, kinds=("default",))
    values |= {
        f"{ARCHITECTURE}.attention.causal": boolean(False),
        f"{ARCHITECTURE}.pooling_type": u32(MODES["mean"]),
        "tokenizer.ggml.token_type_count": u32(types),
    }
    classifies = decoder.architecture_name(checkpoint).endswith(decoder.CLASSIFIER)
    table = TensorTable(
        checkpoint,
        prefixes={"roberta.": ""},
        suffixes={".parametrizations.weight.original": ".weight"},
        ignored=r"lm_head\..*|pooler\..*" + ADAPTERS,
    )
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor("token_types.weight", "embeddings.token_type_embeddings.weight", (types, d.n_embd))
    table.norm("token_embd_norm", "emb_ln", d.n_embd, bias=True)
    for layer in table.layers(d.n_layers, "encoder.layers"):
        layer.linear("attn_qkv", "mixer.Wqkv", (3 * d.n_embd, d.n_embd), bias=True)
        layer.linear("attn_output", "mixer.out_proj", (d.n_embd, d.n_embd), bias=True)
        layer.norm("attn_output_norm", "norm1", d.n_embd, bias=True)
        layer.linear("ffn_up", "mlp.fc1", (d.n_ff, d.n_embd), bias=True)
        layer.linear("ffn_down", "mlp.fc2", (d.n_embd, d.n_ff), bias=True)
        layer.norm("layer_output_norm", "norm2", d.n_embd, bias=True)
    if classifies:
        names = labels(reader)
        table.linear("cls", "classifier.dense", (d.n_embd, d.n_embd), bias=True)
        table.linear("cls.output", "classifier.out_proj", (len(names), d.n_embd), bias=True)
        values |= classifier_metadata(ARCHITECTURE, names)
    result = decoder.finish(ARCHITECTURE, d, values, table, None)
    tasks = reader.config.get("lora_adaptations")
    if not tasks:
        return result
    warning = f"the adapters for tasks ({', '.join(map(str, tasks))}) are omitted: the file is the model without a task"
    return replace(result, warnings=[*result.warnings, warning])
