"""What Gemma 3n and 4 have in common: layers of different shapes, per-layer embeddings, shared keys and values.

The last layers have no keys and values of their own: they read those of the last layer before them that has some and the same
kind of attention (with a sliding window, or full). Each layer has a part of a second embedding of every token, and of a
projection of the first embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Matrix, Program, RopeTable
from gumba.backends.cache_shapes import KVShape
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_windows
from gumba.loading.metadata import MetadataReader
from gumba.loading.rope import Rope
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import MAX_LAYERS, MAX_WIDTH
from gumba.loading.weights import Array, LayerWeights, Weights

#: Keys of ``INERT_KEYS`` that are read here.
OWN_KEYS = ("attention.sliding_window", "final_logit_softcapping", "attention.scale")


class GemmaLayer(LayerWeights):
    inp_gate: Matrix
    proj: Matrix
    post_norm: Array


class GemmaWeights(Weights):
    """``per_layer_token_embd``: the second embedding, of all layers side by side."""

    layers: Sequence[GemmaLayer]
    per_layer_token_embd: Matrix
    per_layer_model_proj: Matrix
    per_layer_proj_norm: Array


@dataclass(frozen=True)
class LayersConfig(Config):
    """Per layer: ``kv_heads``; ``n_ffs``, the width of the feed-forward network; ``sources``, the layer whose keys and values
    it reads (itself, or one before it).

    ``local_rope``, ``local_head_dim``: of layers with a sliding window; ``n_per_layer``: width of the per-layer embeddings, 0
    without.
    """

    kv_heads: tuple[int, ...]
    n_ffs: tuple[int, ...]
    sources: tuple[int, ...]
    local_head_dim: int
    local_rope: Rope
    n_per_layer: int
    logit_cap: float

    def head_dim_of(self, i: int) -> int:
        """Elements of a head of layer ``i``."""
        return self.local_head_dim if self.windowed[i] else self.head_dim

    @property
    def n_own(self) -> int:
        """Number of layers with keys and values of their own. Later layers affect only the logits of their own tokens."""
        return len(set(self.sources))

    @property
    def kv_shapes(self) -> list[KVShape]:
        """What each layer keeps in the KV cache; nothing, if it reads another layer's keys and values."""
        shapes = [KVShape(0, 0, 0)] * len(self.sources)
        for i in set(self.sources):
            shapes[i] = KVShape(self.kv_heads[i], self.head_dim_of(i), self.head_dim_of(i), window=self.window_of(i))
        return shapes


def read_layers(metadata: MetadataReader, *, period: int, n_own: int) -> LayersConfig:
    """The configuration that Gemma 3n and 4 have in common.

    Defaults if the file does not say: the last of each ``period`` layers has full attention; the first ``n_own`` layers have
    keys of their own.
    """
    metadata.must_be({"attention.scale": (0.0, 1.0)})
    n_layers = metadata.count("block_count", MAX_LAYERS)
    kv_heads = metadata.counts("attention.head_count_kv", n_layers, MAX_WIDTH)
    n_ffs = metadata.counts("feed_forward_length", n_layers, MAX_WIDTH)
    if not all((*kv_heads, *n_ffs)):
        raise metadata.error("attention.head_count_kv", "or feed_forward_length holds 0")
    common = read_common(metadata, neox=True, freq_base=1e6, n_kv_heads=kv_heads[0], n_ff=n_ffs[0])
    if any(common.n_heads % n for n in kv_heads):
        raise metadata.error(
            "attention.head_count", f"{common.n_heads} is not a multiple of head_count_kv {max(kv_heads)}"
        )
    head_dim = metadata.count("attention.key_length_swa", 4096, common.head_dim)
    metadata.must_be({"attention.value_length_swa": (head_dim,)})
    rotary_dim = metadata.count("rope.dimension_count_swa", head_dim, head_dim)
    if rotary_dim % 2:
        raise metadata.error("rope.dimension_count_swa", f"is {rotary_dim}, expected an even number")
    freq_base = metadata.number("rope.freq_base_swa", 10000.0, minimum=1.001)
    common = read_windows(metadata, common, period)
    n_shared = metadata.size("attention.shared_kv_layers", n_layers, max(0, n_layers - n_own))
    return LayersConfig(
        **vars(common),
        kv_heads=kv_heads,
        n_ffs=n_ffs,
        sources=_sources(metadata, common.windowed, n_layers - n_shared),
        local_head_dim=head_dim,
        local_rope=replace(common.rope, dim=rotary_dim, freq_base=freq_base, scaling="none"),
        n_per_layer=metadata.size("embedding_length_per_layer_input", MAX_WIDTH),
        logit_cap=metadata.number("final_logit_softcapping", 0.0, or_zero=True),
    )


def _sources(metadata: MetadataReader, windowed: Sequence[bool], n_own: int) -> tuple[int, ...]:
    """The layer whose keys and values each layer reads; the first ``n_own`` have their own."""
    sources = list(range(n_own))
    for i in range(n_own, len(windowed)):
        alike = [j for j in range(n_own) if windowed[j] == windowed[i]]
        if not alike:
            raise metadata.error(
                "attention.shared_kv_layers", f"expected a layer before layer {n_own} that has keys for layer {i}"
            )
        sources.append(alike[-1])
    return tuple(sources)


def add_attention(t: TensorTable, c: LayersConfig, i: int, *, keys_are_values: bool) -> None:
    """The attention of layer ``i``. ``keys_are_values``: the file may have no ``attn_v``."""
    dim, n_kv = c.head_dim_of(i), c.kv_heads[i] * c.head_dim_of(i)
    t.add("attn_q", "attn_q.weight", c.n_heads * dim, c.n_embd, layer=i)
    t.add("attn_q_norm", "attn_q_norm.weight", dim, layer=i)
    t.add("attn_output", "attn_output.weight", c.n_embd, c.n_heads * dim, layer=i)
    if c.sources[i] == i:
        t.add("attn_k", "attn_k.weight", n_kv, c.n_embd, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", dim, layer=i)
        t.add("attn_v", "attn_v.weight", n_kv, c.n_embd, layer=i, required=not keys_are_values)


def unused_kv(c: LayersConfig) -> Callable[[str], bool]:
    """A test for names of tensors that are ignored: keys and values of layers that read another layer's."""
    names = {
        f"blk.{i}.{name}.weight"
        for i, source in enumerate(c.sources)
        for name in ("attn_k", "attn_v", "attn_k_norm")
        if source != i
    }
    return names.__contains__


def add_per_layer(t: TensorTable, c: LayersConfig) -> None:
    """The tensors of the per-layer embeddings."""
    width = c.n_layers * c.n_per_layer
    t.add("per_layer_token_embd", "per_layer_token_embd.weight", c.n_vocab, width)
    t.add("per_layer_model_proj", "per_layer_model_proj.weight", width, c.n_embd)
    t.add("per_layer_proj_norm", "per_layer_proj_norm.weight", c.n_per_layer)
    for i in range(c.n_layers):
        t.add("inp_gate", "inp_gate.weight", c.n_per_layer, c.n_embd, layer=i)
        t.add("proj", "proj.weight", c.n_embd, c.n_per_layer, layer=i)
        t.add("post_norm", "post_norm.weight", c.n_embd, layer=i)


def rope_tables(p: Program, c: LayersConfig, w: GemmaWeights) -> tuple[RopeTable, RopeTable]:
    """Rotary tables of layers with full attention, and of layers with a sliding window."""
    return decoder.rope_table(p, c.rope, w.rope_freqs), decoder.rope_table(p, c.local_rope)


def attention(
    p: Program, c: LayersConfig, layer: GemmaLayer, h: Buffer, i: int, tables: tuple[RopeTable, RopeTable]
) -> Buffer:
    """Attention with norms on each head of q, k and v and unscaled scores, and the output projection."""
    windowed, dim, n_kv = c.windowed[i], c.head_dim_of(i), c.kv_heads[i]
    rope, table = c.local_rope if windowed else c.rope, tables[windowed]
    q = p.head_norm(p.matmul(layer.attn_q, h), layer.attn_q_norm, c.norm_eps, c.n_heads, dim)
    q = p.rope(q, c.n_heads, dim, rope.dim, table, neox=rope.neox)
    k = v = None
    if c.sources[i] == i:
        plain = p.matmul(layer.attn_k, h)
        k = p.head_norm(plain, layer.attn_k_norm, c.norm_eps, n_kv, dim)
        k = p.rope(k, n_kv, dim, rope.dim, table, neox=rope.neox)
        v = p.head_norm(p.matmul(layer.attn_v, h) if layer.has("attn_v") else plain, None, c.norm_eps, n_kv, dim)
    a = p.attention(q, k, v, layer=c.sources[i], scale=1.0, window=c.window_of(i))
    return p.matmul(layer.attn_output, a)


def per_layer_inputs(p: Program, c: LayersConfig, w: GemmaWeights, x: Buffer) -> Buffer:
    """Per-layer embeddings of all layers, [n_tokens, n_layers * n_per_layer]; ``x``: the scaled token embeddings."""
    own = p.scale(p.embed(w.per_layer_token_embd), math.sqrt(c.n_per_layer))
    projected = p.scale(p.matmul(w.per_layer_model_proj, x), 1.0 / math.sqrt(c.n_embd))
    projected = p.head_norm(projected, w.per_layer_proj_norm, c.norm_eps, c.n_layers, c.n_per_layer)
    return p.scale(p.add(projected, own), math.sqrt(0.5))


def per_layer_embedding(p: Program, c: LayersConfig, layer: GemmaLayer, x: Buffer, inputs: Buffer, i: int) -> Buffer:
    """The contribution of layer ``i``'s part of ``inputs``, gated by x."""
    part = p.slice(inputs, i * c.n_per_layer, c.n_per_layer)
    h = p.matmul(layer.proj, p.gated(p.matmul(layer.inp_gate, x), part, "gelu_tanh"))
    return p.rms_norm(h, layer.post_norm, c.norm_eps)


def softcap_logits(p: Program, c: LayersConfig, hidden: Buffer, logits: Buffer) -> tuple[Buffer, Buffer]:
    """The last hidden states, and the logits with the model's soft cap, if it has one."""
    return hidden, p.softcap(logits, c.logit_cap) if c.logit_cap else logits
