"""Qwen3: each head of Q and K is normalized before RoPE.

Qwen3-Reranker is a language model whose prompt is the question whether a document answers a query. Only its logits of the words
yes and no are needed, so its file has these two rows as a head, and the question as a template.
"""

from __future__ import annotations

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint, name_in_cache
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.multimodal import position_sections
from gumba_convert.common.plan import Plan
from gumba_convert.common.pooling import classifier_metadata
from gumba_convert.common.sentence_transformers import LOGIT_SCORE, PACKAGE, modules
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import Value, string, strings

ARCHITECTURE = "qwen3"
HF_ARCHITECTURES = decoder.with_heads("Qwen3")
MODEL_TYPES = ("qwen3",)

DEFAULTS: decoder.Defaults = {"n_kv_heads": 32, "n_ctx": 32768, "head_dim": 128}
WORDS = ("yes", "no")
#: The instruction in Qwen3-Reranker's prompt, which no other model has.
INSTRUCTION = "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
#: The prompt that Qwen3-Reranker was trained with, with its default instruction.
QUESTION = (
    f"<|im_start|>system\n{INSTRUCTION} "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a Qwen3 checkpoint.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    return language_model(decoder.text_config(checkpoint), TensorTable(checkpoint, prefixes=decoder.BARE))


def language_model(
    reader: ConfigReader,
    table: TensorTable,
    *,
    architecture: str = ARCHITECTURE,
    sections: tuple[int, ...] = (),
    more: dict[str, Value] | None = None,
) -> Plan:
    """`plan` for a model that may be part of a multimodal one, with `more` metadata; `sections`: see `position_sections`."""
    d = decoder.read_decoder(reader, defaults=DEFAULTS)
    reader.must_be("use_sliding_window", False)
    decoder.full_only(d)
    bias = reader.flag("attention_bias", False)
    values, factors = decoder.metadata(architecture, d)
    values |= more or {}
    if sections:
        values |= position_sections(architecture, d, sections)
    reranks = is_reranker(table.checkpoint)
    if reranks and decoder.architecture_name(table.checkpoint).endswith("ForCausalLM"):
        values |= _yes_and_no(table, d)
    else:
        values |= decoder.embedding_and_any_head(table, d, architecture)
    if not reranks:
        table.warnings += _name_warnings(table.checkpoint)
    else:
        values |= {
            "tokenizer.chat_template.rerank": string(QUESTION),
            "tokenizer.chat_templates": strings(["rerank"]),
        }
    for layer in table.layers(d.n_layers):
        layer.norm("attn_norm", "input_layernorm", d.n_embd)
        decoder.attention(layer, d, bias=bias, output_bias=bias)
        decoder.head_norms(layer, d)
        layer.norm("ffn_norm", "post_attention_layernorm", d.n_embd)
        decoder.gated_ffn(layer, d)
    table.norm("output_norm", "model.norm", d.n_embd)
    return decoder.finish(architecture, d, values, table, factors)


def is_reranker(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is Qwen3-Reranker, or derived from it.

    Its configuration and its tensors are those of any Qwen3. It is recognized by sentence-transformers' module of such models,
    vLLM's key in config.json, or the question, which is in the model card and in chat templates of such models.
    """
    if not decoder.architecture_name(checkpoint).endswith(("ForCausalLM", decoder.CLASSIFIER)):
        return False
    if checkpoint.config.get("is_original_qwen3_reranker") is True:
        return True
    if any(module.full_name.startswith(PACKAGE) and module.kind == LOGIT_SCORE for module in modules(checkpoint)):
        return True
    texts = [checkpoint.text(name) for name in ("chat_template.jinja", "tokenizer_config.json")]
    return any(INSTRUCTION in (text or "") for text in (checkpoint.outer.text("README.md"), *texts))


def _name_warnings(checkpoint: Checkpoint) -> list[str]:
    """A warning if only the name suggests a reranker, because names alone do not decide."""
    names = (
        name_in_cache(checkpoint.folder) or checkpoint.folder.resolve().name,
        checkpoint.config.get("_name_or_path"),
    )
    if not any("qwen3-reranker" in str(name).lower() for name in names):
        return []
    return [
        "the model's name is that of a reranker, but no file says so (modules.json with a LogitScore, or the README.md of "
        "Qwen3-Reranker, which has its question): it is converted as a plain model, without a head of the words yes and no "
        "and without the question. If it is one, add that README.md to the folder"
    ]


def _yes_and_no(table: TensorTable, d: Decoder) -> dict[str, Value]:
    """Token embedding, the rows of the output matrix for yes and no, and their metadata."""
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    output = embedding if d.tied and table.ties(head, embedding) else head
    table.tensor("token_embd.weight", embedding, (d.n_vocab, d.n_embd))
    tokenizer = table.checkpoint.json("tokenizer.json") or {}
    vocabulary = tokenizer.get("model", {}).get("vocab", {}) if isinstance(tokenizer.get("model"), dict) else {}
    ids = [vocabulary.get(word) if isinstance(vocabulary, dict) else None for word in WORDS]
    if not all(type(token) is int and 0 <= token < d.n_vocab for token in ids):
        raise ConvertError(f"{table.checkpoint.folder}: a reranker's tokenizer.json must have the tokens yes and no")
    table.tensor("cls.output.weight", output, (d.n_vocab, d.n_embd), rows=np.array(ids))
    return classifier_metadata(ARCHITECTURE, list(WORDS))
