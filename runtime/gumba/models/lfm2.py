"""lfm2: LFM2 (Liquid AI 2025): most layers mix neighbouring tokens by a short gated convolution, a few by attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gumba.backends.base import Buffer, Matrix, Program
from gumba.backends.cache_shapes import MAX_CONV_TAPS, NOTHING, ConvState, KVShape, StateShape
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import add_attention, add_embeddings, add_feed_forward, add_norms, add_qk_norms
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH, Loader
from gumba.loading.weights import Array, LayerWeights, Weights

NAME = "lfm2"
FAMILIES = "LFM2 (350M, 700M, 1.2B, 2.6B)"
VERIFIED = ("transformers", "llama.cpp")


class Lfm2Layer(LayerWeights):
    """``shortconv_conv``: [n_embd, n_taps]; ``shortconv_b``, ``_c`` and ``_x``: the three parts of the input projection."""

    shortconv_b: Matrix
    shortconv_c: Matrix
    shortconv_x: Matrix
    shortconv_conv: Array
    shortconv_out_proj: Matrix


class Lfm2Weights(Weights):
    layers: Sequence[Lfm2Layer]


@dataclass(frozen=True)
class Lfm2Config(Config):
    attends: tuple[bool, ...]  # whether each layer is attention, or else a convolution
    n_taps: int  # tokens that a convolution spans

    @property
    def kv_shapes(self) -> list[KVShape]:
        """Only attention layers have keys and values in the cache."""
        attention = KVShape(self.n_kv_heads, self.head_dim, self.head_dim)
        return [attention if yes else NOTHING for yes in self.attends]

    @property
    def state_parts(self) -> list[tuple[StateShape, ...]]:
        """float32 of what a convolution keeps: its last inputs."""
        return [() if yes else (ConvState(self.n_embd, self.n_taps),) for yes in self.attends]


def read_config(gguf: GGUFFile) -> Lfm2Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME) as metadata:
        of_layers = metadata.counts("attention.head_count_kv", metadata.count("block_count", MAX_LAYERS), MAX_WIDTH)
        counts = set(of_layers) - {0}
        if len(counts) != 1:
            raise metadata.error("attention.head_count_kv", "expected 0 or one and the same number")
        common = read_common(metadata, neox=True, freq_base=1000000.0, n_kv_heads=counts.pop())
        n_taps = metadata.count("shortconv.l_cache", MAX_CONV_TAPS)
        return Lfm2Config(**vars(common), attends=tuple(n > 0 for n in of_layers), n_taps=n_taps)


def load_weights(loader: Loader, c: Lfm2Config) -> Lfm2Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c, norm="token_embd_norm")
    for i, attends in enumerate(c.attends):
        add_norms(t, c, i, "attn_norm", "ffn_norm")
        if attends:
            add_attention(t, c, i)
            add_qk_norms(t, c, i)
        else:
            t.split(
                "shortconv.in_proj.weight",
                dict.fromkeys(("shortconv_b", "shortconv_c", "shortconv_x"), c.n_embd),
                c.n_embd,
                layer=i,
            )
            t.add("shortconv_conv", "shortconv.conv.weight", c.n_embd, c.n_taps, layer=i)
            t.add("shortconv_out_proj", "shortconv.out_proj.weight", c.n_embd, c.n_embd, layer=i)
        add_feed_forward(t, c, i)
    return t.load(loader, Lfm2Weights)


def forward(p: Program, c: Lfm2Config, w: Lfm2Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        if c.attends[i]:
            x = decoder.qk_norm_attention(p, c, layer, h, i, table, residual=x)
        else:
            x = _convolution(p, layer, h, i, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)


def _convolution(p: Program, layer: Lfm2Layer, h: Buffer, i: int, residual: Buffer) -> Buffer:
    """x and a gate b make the convolution's input; another gate c scales its result."""
    taken = p.multiply(p.matmul(layer.shortconv_b, h), p.matmul(layer.shortconv_x, h))
    mixed = p.causal_conv(taken, layer.shortconv_conv, i)
    return p.matmul(layer.shortconv_out_proj, p.multiply(p.matmul(layer.shortconv_c, h), mixed), residual=residual)
