"""MPNet: BERT without token types, and with relative position biases that all layers share.

Positions are counted from two on, regardless of the padding token's id: the rows before are omitted.
"""

from __future__ import annotations

from dataclasses import replace

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import Layer, TensorTable
from gumba_convert.common.transforms import part
from gumba_convert.families.bert import DEFAULTS, NAMES, POOLER
from gumba_convert.gguf_writer import boolean, u32

ARCHITECTURE = "mpnet"
HF_ARCHITECTURES = ("MPNetModel", "MPNetForMaskedLM")
MODEL_TYPES = ("mpnet",)

SKIPPED = 2
#: Fixed in transformers' code, regardless of the configuration.
BUCKETS = 32
UNNEEDED = r"lm_head\..*|embeddings\.position_ids"


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of an MPNet checkpoint; the masked-language-model head is omitted.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    d = decoder.read_decoder(reader, defaults=DEFAULTS, names=NAMES, activations=("gelu",), theta=None)
    reader.must_be("relative_attention_num_buckets", BUCKETS)
    reader.must_be("is_decoder", False)
    n_positions = d.n_ctx
    if n_positions <= SKIPPED:
        raise reader.fail(
            "max_position_embeddings", f"is {n_positions}, of which the first {SKIPPED} are not positions"
        )
    d = replace(d, n_ctx=n_positions - SKIPPED)
    values, _ = decoder.metadata(ARCHITECTURE, d, eps=decoder.LAYER_EPS)
    values |= {
        f"{ARCHITECTURE}.attention.causal": boolean(False),
        f"{ARCHITECTURE}.attention.relative_buckets_count": u32(BUCKETS),
        "tokenizer.ggml.token_type_count": u32(1),
    }
    table = TensorTable(checkpoint, prefixes={"mpnet.": ""}, ignored=UNNEEDED + POOLER)
    table.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (d.n_vocab, d.n_embd))
    table.tensor(
        "position_embd.weight",
        "embeddings.position_embeddings.weight",
        (n_positions, d.n_embd),
        rows=part(SKIPPED, d.n_ctx),
    )
    table.norm("token_embd_norm", "embeddings.LayerNorm", d.n_embd, bias=True)
    table.tensor("attn_rel_b.weight", "encoder.relative_attention_bias.weight", (BUCKETS, d.n_heads))
    for layer in table.layers(d.n_layers, "encoder.layer"):
        _block(layer, d)
    result = decoder.finish(ARCHITECTURE, d, values, table, None)
    note = f"llama.cpp does not have the architecture {ARCHITECTURE}: only gumba runs this file"
    return replace(result, warnings=[note, *result.warnings])


def _block(layer: Layer, d: Decoder) -> None:
    for name in "qkv":
        layer.linear(f"attn_{name}", f"attention.attn.{name}", (d.n_embd, d.n_embd), bias=True)
    layer.linear("attn_output", "attention.attn.o", (d.n_embd, d.n_embd), bias=True)
    layer.norm("attn_output_norm", "attention.LayerNorm", d.n_embd, bias=True)
    layer.linear("ffn_up", "intermediate.dense", (d.n_ff, d.n_embd), bias=True)
    layer.linear("ffn_down", "output.dense", (d.n_embd, d.n_ff), bias=True)
    layer.norm("layer_output_norm", "output.LayerNorm", d.n_embd, bias=True)
