"""Parts of an encoder that several architectures share, written as operations of a program.

An encoder reads a text in one step, with bidirectional attention. A classifier head (of a cross-encoder that ranks documents,
or of a classifier) turns the hidden state of a text's first token, or the mean over all tokens, into one number per label.
Without a head there are no logits; the results are hidden states.
"""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.layers import decoder
from gumba.loading.config import EncoderConfig
from gumba.loading.weights import LayerWeights, Weights


def embed(p: Program, c: EncoderConfig, w: Weights) -> Buffer:
    """Token embeddings plus token type embeddings, before the norm."""
    x = p.embed(w.token_embd)
    if w.token_types is None:
        return x
    return p.add_row(x, w.token_types[0]) if c.n_types == 1 else p.add_types(x, w.token_types, c.n_vocab)


def post_norm_block(p: Program, c: EncoderConfig, layer: LayerWeights, x: Buffer, kind: str, *, gate: bool) -> Buffer:
    """The rest of a layer with norms after attention and feed-forward network; ``x``: input plus attention."""
    x = p.layer_norm(x, layer.attn_output_norm, layer.attn_output_norm_bias, c.norm_eps)
    x = (decoder.gated_ffn if gate else decoder.plain_ffn)(p, layer, x, kind, residual=x)
    return p.layer_norm(x, layer.layer_output_norm, layer.layer_output_norm_bias, c.norm_eps)


def rotary_forward(p: Program, c: EncoderConfig, w: Weights, kind: str, *, gate: bool) -> tuple[Buffer, Buffer]:
    """The program of an encoder with rotary embeddings and ``post_norm_block``; returns the results of ``outputs``.

    ``kind``, ``gate``: the activation of the feed-forward network, and whether it has a gate.
    """
    table = decoder.rope_table(p, c.rope)
    x = p.layer_norm(embed(p, c, w), w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        x = decoder.attention(p, c, layer, x, i, table, residual=x, causal=False)
        x = post_norm_block(p, c, layer, x, kind, gate=gate)
    return outputs(p, c, w, p.select_outputs(x))


def outputs(
    p: Program, c: EncoderConfig, w: Weights, hidden: Buffer, kind: str = "tanh", classified: Buffer | None = None
) -> tuple[Buffer, Buffer]:
    """The last hidden states, and the outputs of the head [n_outputs, n_labels]; without a head, the hidden states again.

    ``kind``: the activation of the head's dense layer; ``classified``: the head's input, if not the hidden states.
    """
    if not c.n_labels:
        return hidden, hidden
    x = classified or hidden
    if w.cls is not None:
        x = p.activation(p.matmul(w.cls, x, bias=w.cls_bias), kind)
        if w.cls_norm is not None:
            x = p.layer_norm(x, w.cls_norm, None, c.norm_eps)
    return hidden, p.matmul(w.cls_output, x, bias=w.cls_output_bias)
