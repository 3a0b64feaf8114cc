"""T5, flan-T5, mT5 and umT5: encoder and decoder, relative position biases, RMS norms."""

from __future__ import annotations

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder, Names
from gumba_convert.common.plan import Plan
from gumba_convert.common.table import TensorTable
from gumba_convert.gguf_writer import f32, u32

ARCHITECTURE = "t5"
#: Checkpoints of the encoder alone.
ENCODER = "t5encoder"
HF_ARCHITECTURES = (
    "T5ForConditionalGeneration",
    "T5WithLMHeadModel",
    "MT5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    "T5EncoderModel",
    "MT5EncoderModel",
    "UMT5EncoderModel",
)
MODEL_TYPES = ("t5", "mt5", "umt5")

NAMES = Names(
    "num_layers", "d_model", "d_ff", "num_heads", "num_heads", "n_positions", "layer_norm_epsilon", "dense_act_fn"
)
#: Unused position biases of cross attention in the first checkpoints.
UNUSED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
#: The activations that readers assume with and without a gate.
FEED_FORWARDS = {"gated-gelu": True, "relu": False}


def plan(checkpoint: Checkpoint) -> Plan:
    """Metadata and tensors of a T5 checkpoint.

    The first T5 models divide by sqrt(d_model) before the output matrix: theirs is stored divided. Readers divide if the file
    has no output matrix; so an undivided one is stored, too.

    Raises:
        ConvertError: an unsupported configuration or set of tensors.
    """
    reader = decoder.text_config(checkpoint)
    head_dim = reader.integer("d_kv", 64)
    defaults: decoder.Defaults = {"n_ctx": 512, "head_dim": head_dim, "tied": True}
    activations = ("gelu_new", "relu")
    d = decoder.read_decoder(reader, defaults=defaults, names=NAMES, activations=activations, theta=None)
    kind = reader.config.get("feed_forward_proj", "relu")
    if kind not in FEED_FORWARDS:
        raise reader.fail("feed_forward_proj", f"is {kind!r}; supported are {', '.join(FEED_FORWARDS)}")
    buckets = reader.integer("relative_attention_num_buckets", 32)
    reader.must_be("relative_attention_max_distance", 128)
    name = (checkpoint.config.get("architectures") or [""])[0]
    encodes = name.endswith("EncoderModel")
    architecture = ENCODER if encodes else ARCHITECTURE
    values, _ = decoder.metadata(architecture, d, eps=decoder.RMS_EPS)
    values |= {
        f"{architecture}.attention.layer_norm_epsilon": f32(d.norm_eps),
        f"{architecture}.attention.relative_buckets_count": u32(buckets),
    }
    table = TensorTable(checkpoint, ignored=UNUSED)
    shared = next(
        (name for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens") if table.has(f"{name}.weight")),
        "shared",
    )
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        table.ignore(f"{name}.weight")  # copies of one matrix
        read = name != shared and not (encodes and name.startswith("decoder"))
        if read and table.has(f"{name}.weight") and not table.same(f"{name}.weight", f"{shared}.weight"):
            raise ConvertError(
                f"{checkpoint.folder}: tensor {name}.weight differs from {shared}.weight; GGUF has one embedding for both"
            )
    table.tensor("token_embd.weight", f"{shared}.weight", (d.n_vocab, d.n_embd))
    stacks = {"enc": d.n_layers}
    if not encodes:
        stacks["dec"] = reader.integer("num_decoder_layers", d.n_layers)
        if stacks["dec"] > decoder.MAX_LAYERS:
            raise reader.fail("num_decoder_layers", f"is {stacks['dec']}; at most {decoder.MAX_LAYERS} are supported")
        values |= {"t5.decoder_block_count": u32(stacks["dec"]), "t5.decoder_start_token_id": u32(_start(reader))}
        _output(table, reader, d, shared)
    for stack, n_layers in stacks.items():
        _stack(table, d, stack, n_layers, buckets, FEED_FORWARDS[kind], every_layer=name.startswith("UMT5"))
    return decoder.finish(architecture, d, values, table, None)


def _output(table: TensorTable, reader: ConfigReader, d: Decoder, shared: str) -> None:
    """The output matrix, lm_head or the embedding; in the first models divided by the root of its width (never in mT5)."""
    name = "lm_head" if table.has("lm_head.weight") else shared
    plain = reader.config.get("tie_word_embeddings") is False or reader.config.get("model_type") == "mt5"
    scaled = reader.flag("scale_decoder_outputs", not plain)
    factor = np.float32(d.n_embd**-0.5 if scaled else 1.0)
    change = None if name == "lm_head" and factor == 1 else lambda rows: rows * factor
    table.tensor("output.weight", f"{name}.weight", (d.n_vocab, d.n_embd), change=change)


def _start(reader: ConfigReader) -> int:
    value = reader.config.get("decoder_start_token_id", reader.config.get("pad_token_id", 0))
    if type(value) is not int or not 0 <= value < 2**31:
        raise reader.fail("decoder_start_token_id", f"is {value!r}, expected a token's id")
    return value


def _stack(
    table: TensorTable, d: Decoder, stack: str, n_layers: int, buckets: int, gated: bool, *, every_layer: bool
) -> None:
    """Encoder or decoder; all layers share the first one's position biases, except in umT5."""
    theirs = {"enc": "encoder", "dec": "decoder"}[stack]
    for i in range(n_layers):
        ours, inner = f"{stack}.blk.{i}.", f"{theirs}.block.{i}.layer."
        _attention(table, d, ours + "attn", inner + "0.SelfAttention")
        if i == 0 or every_layer:
            name = "relative_attention_bias.weight"
            table.tensor(f"{ours}attn_rel_b.weight", f"{inner}0.SelfAttention.{name}", (buckets, d.n_heads))
        table.norm(ours + "attn_norm", inner + "0.layer_norm", d.n_embd)
        last = 1
        if stack == "dec":
            _attention(table, d, ours + "cross_attn", inner + "1.EncDecAttention")
            table.norm(ours + "cross_attn_norm", inner + "1.layer_norm", d.n_embd)
            last = 2
        dense = f"{inner}{last}.DenseReluDense."
        if gated:
            table.linear(ours + "ffn_gate", dense + "wi_0", (d.n_ff, d.n_embd))
        table.linear(ours + "ffn_up", dense + ("wi_1" if gated else "wi"), (d.n_ff, d.n_embd))
        table.linear(ours + "ffn_down", dense + "wo", (d.n_embd, d.n_ff))
        table.norm(ours + "ffn_norm", f"{inner}{last}.layer_norm", d.n_embd)
    table.norm(f"{stack}.output_norm", f"{theirs}.final_layer_norm", d.n_embd)


def _attention(table: TensorTable, d: Decoder, ours: str, theirs: str) -> None:
    for name in "qkv":
        table.linear(f"{ours}_{name}", f"{theirs}.{name}", (d.n_q, d.n_embd))
    table.linear(f"{ours}_o", f"{theirs}.o", (d.n_embd, d.n_q))
