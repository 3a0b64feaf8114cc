"""Tensor tables of encoders: functions that add the tensors that most architectures have."""

from __future__ import annotations

from gumba.gguf import GGUFFile
from gumba.loading.config import EncoderConfig
from gumba.loading.decoder_tensors import add_attention, add_feed_forward, add_norms
from gumba.loading.tensor_table import TensorTable


def encoder_table(gguf: GGUFFile, c: EncoderConfig, *, gate: bool) -> TensorTable:
    """The tensors of an encoder with a norm after attention and after the feed-forward network."""
    t = TensorTable(gguf, c.n_layers)
    add_encoder_embeddings(t, c)
    for i in range(c.n_layers):
        add_attention(t, c, i)
        add_norms(t, c, i, "attn_output_norm", "layer_output_norm", bias=True)
        add_feed_forward(t, c, i, gate=gate)
    add_classifier_head(t, c)
    return t


def add_encoder_embeddings(t: TensorTable, c: EncoderConfig, *, bias: bool = True) -> None:
    """Token embedding, token type embedding, and the norm after them; ``bias``: of that norm."""
    t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    t.add("token_types", "token_types.weight", c.n_types, c.n_embd, required=False)
    t.add("token_embd_norm", "token_embd_norm.weight", c.n_embd)
    if bias:
        t.add("token_embd_norm_bias", "token_embd_norm.bias", c.n_embd)


def add_classifier_head(t: TensorTable, c: EncoderConfig) -> None:
    """The classifier head: a dense layer of its own (absent in some), and the matrix that gives one number per label."""
    t.add("cls", "cls.weight", c.n_embd, c.n_embd, required=False)
    t.add("cls_bias", "cls.bias", c.n_embd, required=False)
    t.add("cls_norm", "cls.norm.weight", c.n_embd, required=False)
    t.add("cls_output", "cls.output.weight", c.n_labels, c.n_embd, required=c.n_labels > 0)
    t.add("cls_output_bias", "cls.output.bias", c.n_labels, required=False)
