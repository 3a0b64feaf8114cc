"""t5: T5, Flan-T5, mT5 and umT5 (Raffel et al. 2019): an encoder reads the source, a decoder writes the output.

Both have RMS norms before attention and feed-forward network, and no positions: attention adds a learned bias per head and
distance to the scores, which are not scaled. Two programs share the KV cache. The encoder needs keys and values within one
step only; it keeps them where the decoder's first layer has its own, one encoder layer after the other. At the end it stores
the keys and values of the decoder's cross attention in the pages of each decoder layer, at the positions of the source. The
decoder's own follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gumba.backends.base import Buffer, Matrix, Program
from gumba.backends.cache_shapes import KVShape
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.layers.decoder import AttentionOptions
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import add_feed_forward, add_norms
from gumba.loading.metadata import MetadataReader
from gumba.loading.relative_bias import biases, read_buckets
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, Loader
from gumba.loading.weights import Array, LayerWeights, Weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

NAME = "t5"
FAMILIES = "T5, Flan-T5, mT5, umT5"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class T5Config(Config):
    """``n_layers``: of the encoder; ``n_buckets``: buckets of distances, see ``loading/relative_bias.py``."""

    n_decoder_layers: int
    n_buckets: int

    @property
    def kv_shapes(self) -> list[KVShape]:
        """The decoder's layers; the encoder uses the first."""
        return [KVShape(self.n_kv_heads, self.head_dim, self.head_dim)] * max(1, self.n_decoder_layers)

    @property
    def max_ctx(self) -> int:
        """More than in training: beyond ``relative_bias.MAX_DISTANCE`` all tokens have the same bias."""
        return 1 << 16


class T5Layer(LayerWeights):
    """``attn_rel_b``: biases by bucket, [n_buckets, n_heads]; of the first layer only, if all have the same."""

    attn_o: Matrix
    attn_rel_b: Array
    cross_attn_norm: Array
    cross_attn_q: Matrix
    cross_attn_k: Matrix
    cross_attn_v: Matrix
    cross_attn_o: Matrix
    cross_attn_rel_b: Array | None = None


class T5Stack(Weights):
    layers: Sequence[T5Layer]


@dataclass(frozen=True, eq=False)
class T5Weights:
    """The decoder has the embedding, and the output matrix if the file has one."""

    encoder: T5Stack
    decoder: T5Stack


def read_config(gguf: GGUFFile) -> T5Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME) as metadata:
        n_vocab = metadata.vocabulary_size()
        start = metadata.size("decoder_start_token_id", n_vocab - 1)
        n_decoder = metadata.count("decoder_block_count", MAX_LAYERS, metadata.count("block_count", MAX_LAYERS))
        config = read_stack(metadata, n_decoder)
        # Source and output may each have the length of those in training.
        return replace(config, n_ctx_train=2 * config.n_ctx_train, start_token=start)


def read_stack(metadata: MetadataReader, n_decoder_layers: int = 0) -> T5Config:
    """The configuration that encoder and decoder share."""
    metadata.has("attention.layer_norm_epsilon")  # the same as the norms' other key
    common = read_common(metadata, neox=False)
    if common.n_kv_heads != common.n_heads:
        raise metadata.error("attention.head_count_kv", f"expected {common.n_heads}")
    n_buckets = read_buckets(metadata)
    return T5Config(**vars(common), n_decoder_layers=n_decoder_layers, n_buckets=n_buckets)


def load_weights(loader: Loader, c: T5Config) -> T5Weights:
    """Declare and load the weights."""
    t = TensorTable(loader.gguf, c.n_decoder_layers, "dec.")
    t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    t.add("output", "output.weight", c.n_vocab, c.n_embd, required=False)
    _add_stack(t, c, c.n_decoder_layers)
    for i in range(c.n_decoder_layers):
        add_norms(t, c, i, "cross_attn_norm")
        _add_attention(t, c, i, "cross_attn")
        # Some files have biases of the cross attention, which no model uses.
        t.add("cross_attn_rel_b", "cross_attn_rel_b.weight", c.n_buckets, c.n_heads, layer=i, required=False)
    decoder = t.load(loader, T5Stack, lambda name: name.startswith("enc."))
    encoder = load_encoder(loader, c, ignored=lambda name: not name.startswith("enc."))
    return T5Weights(encoder, decoder)


def load_encoder(loader: Loader, c: T5Config, ignored: Callable[[str], bool] = lambda name: False) -> T5Stack:
    """The encoder's tensors; ``ignored``: others that the file may have. Without a decoder it has the embedding."""
    t = TensorTable(loader.gguf, c.n_layers, "enc.")
    if not c.n_decoder_layers:
        t.add("token_embd", "token_embd.weight", c.n_vocab, c.n_embd)
    _add_stack(t, c, c.n_layers)
    return t.load(loader, T5Stack, ignored)


def _add_stack(t: TensorTable, c: T5Config, n_layers: int) -> None:
    """Layers of encoder or decoder; the biases of the first layer serve those that have none."""
    t.add("output_norm", f"{t.prefix}output_norm.weight", c.n_embd)
    gate = t.has(f"{t.prefix}blk.0.ffn_gate.weight")
    for i in range(n_layers):
        add_norms(t, c, i, "attn_norm", "ffn_norm")
        _add_attention(t, c, i, "attn")
        t.add("attn_rel_b", "attn_rel_b.weight", c.n_buckets, c.n_heads, layer=i, required=i == 0)
        add_feed_forward(t, c, i, gate=gate)


def _add_attention(t: TensorTable, c: T5Config, i: int, name: str) -> None:
    for part in "qkv":
        t.add(f"{name}_{part}", f"{name}_{part}.weight", c.n_q, c.n_embd, layer=i)
    t.add(f"{name}_o", f"{name}_o.weight", c.n_embd, c.n_q, layer=i)


def encode(p: Program, c: T5Config, w: T5Weights) -> Buffer:
    """Write the encoder's program, which stores what the decoder needs. Returns the last hidden states [n_outputs, n_embd]."""
    x = encoded(p, c, w.decoder.token_embd, w.encoder)
    for i, layer in enumerate(w.decoder.layers):
        p.store_kv(p.matmul(layer.cross_attn_k, x), p.matmul(layer.cross_attn_v, x), i)
    return p.select_outputs(x)


def encoded(p: Program, c: T5Config, token_embd: Matrix, w: T5Stack) -> Buffer:
    """The source's hidden states after the encoder's last norm, [n_tokens, n_embd]."""
    x = p.embed(token_embd)
    for layer in w.layers:
        bias = biases(_relative_bias(layer, w), causal=False)
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = _attention(p, layer, h, 0, x, causal=False, bias=bias)
        x = _feed_forward(p, c, layer, x)
    return p.rms_norm(x, w.output_norm, c.norm_eps)


def forward(p: Program, c: T5Config, weights: T5Weights) -> tuple[Buffer, Buffer]:
    """Write the decoder's program. Returns its last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    w = weights.decoder
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        bias = biases(_relative_bias(layer, w), causal=True)
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = _attention(p, layer, h, i, x, part="answer", bias=bias)
        q = p.matmul(layer.cross_attn_q, p.rms_norm(x, layer.cross_attn_norm, c.norm_eps))
        a = p.attention(q, None, None, i, 1.0, part="source")
        x = _feed_forward(p, c, layer, p.matmul(layer.cross_attn_o, a, residual=x))
    hidden = p.rms_norm(p.select_outputs(x), w.output_norm, c.norm_eps)
    if w.output is not None:
        return hidden, p.matmul(w.output, hidden)
    # In the first models the output matrix is the embedding.
    return hidden, p.matmul(w.token_embd, p.scale(hidden, 1.0 / math.sqrt(c.n_embd)))


def _relative_bias(layer: T5Layer, w: T5Stack) -> Array:
    """A layer's biases by bucket: those of the first layer, if it has none of its own."""
    return layer.attn_rel_b if layer.has("attn_rel_b") else w.layers[0].attn_rel_b


def _attention(
    p: Program, layer: T5Layer, h: Buffer, i: int, residual: Buffer, **options: Unpack[AttentionOptions]
) -> Buffer:
    q, k, v = p.matmul(layer.attn_q, h), p.matmul(layer.attn_k, h), p.matmul(layer.attn_v, h)
    a = p.attention(q, k, v, i, 1.0, **options)
    return p.matmul(layer.attn_o, a, residual=residual)


def _feed_forward(p: Program, c: T5Config, layer: T5Layer, x: Buffer) -> Buffer:
    """With a gate in later models, without in the first."""
    h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
    if layer.has("ffn_gate"):
        return decoder.gated_ffn(p, layer, h, "gelu_tanh", residual=x)
    return decoder.plain_ffn(p, layer, h, "relu", residual=x)
