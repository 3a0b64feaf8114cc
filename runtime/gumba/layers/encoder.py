"""What encoders have in common: all of a text in one step, how its hidden states become one vector, and classification heads.

A head (of a cross-encoder that ranks documents, or of a classifier) makes a number for each label from the state of a text's
first token, or from the mean of all. Without one there are no logits: what is asked for are hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gumba.backends.cpu.program.builder import Buffer, KVLayout, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.layers.decoder import INERT_KEYS, Config
from gumba.loading.metadata import MetadataReader
from gumba.loading.tensor_table import TensorTable, Weights

#: What no encoder has, but that a token sees all others.
ENCODERS_WITHOUT: dict[str, tuple[object, ...]] = {
    key: values for key, values in INERT_KEYS.items() if key != "attention.causal"
} | {"attention.causal": (False,)}


@dataclass(frozen=True)
class EncoderConfig(Config):
    """``n_types``: types of tokens told apart."""

    n_types: int = field(kw_only=True)

    causal = False


E = TypeVar("E", bound=EncoderConfig)


def read_plain(gguf: GGUFFile, name: str, *, neox: bool) -> EncoderConfig:
    """An architecture that has nothing beside what all encoders have; ``neox``: see ``Rope``."""
    with decoder.reading(gguf, name, without=ENCODERS_WITHOUT) as keys:
        return read_encoder(keys, decoder.read_common(keys, neox=neox, norm="layer_norm_epsilon"), EncoderConfig)


def read_encoder(keys: MetadataReader, common: Config, kind: type[E], **more: Any) -> E:
    """What encoders say of themselves beside their sizes: ``common`` as a ``kind`` of EncoderConfig, with ``more`` fields."""
    return common.extended(kind, n_types=_count_types(keys), **more)


def _count_types(keys: MetadataReader) -> int:
    """Types of tokens that the file has vectors for; 1 where it has none."""
    tensor = keys.gguf.tensors.get("token_types.weight")
    if tensor is None or len(tensor.shape) != 2:
        return 1
    return int(tensor.shape[0])


def add_embedding(t: TensorTable, c: EncoderConfig, *, bias: bool = True) -> None:
    """Token embedding, token types, and the norm behind them."""
    t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    t.add("token_types", "token_types.weight", c.n_types, c.n_embd, required=False)
    t.add("token_embd_norm", "token_embd_norm.weight", c.n_embd)
    if bias:
        t.add("token_embd_norm_bias", "token_embd_norm.bias", c.n_embd)


def table(gguf: GGUFFile, c: EncoderConfig, *, gate: bool) -> TensorTable:
    """The tensors of an encoder with a norm after each half of a layer."""
    t = TensorTable(gguf, c.n_layers)
    add_embedding(t, c)
    for i in range(c.n_layers):
        decoder.add_attention(t, c, i)
        decoder.add_norms(t, c, i, "attn_output_norm", "layer_output_norm", bias=True)
        decoder.add_feed_forward(t, c, i, gate=gate)
    add_head(t, c)
    return t


def add_head(t: TensorTable, c: EncoderConfig) -> None:
    """The head: a layer of its own (absent in some), and the product that gives the labels' numbers."""
    t.add("cls", "cls.weight", c.n_embd, c.n_embd, required=False)
    t.add("cls_bias", "cls.bias", c.n_embd, required=False)
    t.add("cls_norm", "cls.norm.weight", c.n_embd, required=False)
    t.add("cls_output", "cls.output.weight", c.n_labels, c.n_embd, required=c.n_labels > 0)
    t.add("cls_output_bias", "cls.output.bias", c.n_labels, required=False)


def embedded(p: Program, c: EncoderConfig, w: Weights) -> Buffer:
    """The tokens' vectors with those of their types, without a norm."""
    x = p.embed(w.token_embd)
    if w.token_types is None:
        return x
    return p.add_row(x, w.token_types[0]) if c.n_types == 1 else p.add_types(x, w.token_types, c.n_vocab)


def post_norm_block(p: Program, c: EncoderConfig, layer: Weights, x: Buffer, kind: str, *, gate: bool) -> Buffer:
    """The rest of a layer with a norm after each half, from the sum of its input and what its attention gives."""
    x = p.layer_norm(x, layer.attn_output_norm, layer.attn_output_norm_bias, c.norm_eps)
    x = (decoder.gated if gate else decoder.plain)(p, layer, x, kind, residual=x)
    return p.layer_norm(x, layer.layer_output_norm, layer.layer_output_norm_bias, c.norm_eps)


def rotary_forward(
    p: Program, c: EncoderConfig, w: Weights, kv: Sequence[KVLayout], n_ctx: int, kind: str, *, gate: bool
) -> tuple[Buffer, Buffer]:
    """The program of an encoder with rotary positions and a norm after each half of a layer; results as of ``outputs``.

    ``kind``, ``gate``: the activation of the feed-forward part, and whether it has a gate.
    """
    table = decoder.rope_table(p, c.rope, n_ctx)
    x = p.layer_norm(embedded(p, c, w), w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        x = decoder.attention(p, c, layer, x, kv, i, table, residual=x, causal=False)
        x = post_norm_block(p, c, layer, x, kind, gate=gate)
    return outputs(p, c, w, p.select_outputs(x))


def outputs(
    p: Program, c: EncoderConfig, w: Weights, hidden: Buffer, kind: str = "tanh", classified: Buffer | None = None
) -> tuple[Buffer, Buffer]:
    """The last hidden states, and what the head makes of them, float32 [n_outputs, n_labels]; without a head, them again.

    ``kind``: the activation of the head's own layer; ``classified``: what the head sees instead of the hidden states.
    """
    if not c.n_labels:
        return hidden, hidden
    x = classified or hidden
    if w.cls is not None:
        x = p.activation(p.matmul(w.cls, x, bias=w.cls_bias), kind)
        if w.cls_norm is not None:
            x = p.layer_norm(x, w.cls_norm, None, c.norm_eps)
    return hidden, p.matmul(w.cls_output, x, bias=w.cls_output_bias)
