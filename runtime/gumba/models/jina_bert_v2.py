"""jina-bert-v2: Jina Embeddings 2 (Günther et al. 2023): bert with a gated feed-forward network, and ALiBi (Press et al. 2022).

ALiBi subtracts from a score in proportion to the distance, to both sides. The models for code, German and others apply norms
to queries and keys, and add a layer's input a second time after its attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder, encoder
from gumba.loading.config import ENCODER_INERT_KEYS, EncoderConfig, read_common, read_encoder, read_metadata
from gumba.loading.decoder_tensors import add_attention, add_feed_forward, add_norms
from gumba.loading.encoder_tensors import add_encoder_embeddings
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array, LayerWeights, Weights

NAME = "jina-bert-v2"
FAMILIES = "Jina Embeddings 2"
VERIFIED = ("a plain NumPy forward", "llama.cpp")
ALIBI_BIAS = 8.0


class JinaLayer(LayerWeights):
    attn_q_norm_bias: Array | None = None
    attn_k_norm_bias: Array | None = None


class JinaWeights(Weights):
    layers: Sequence[JinaLayer]


def read_config(gguf: GGUFFile) -> EncoderConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.max_alibi_bias", inert=ENCODER_INERT_KEYS) as metadata:
        common = read_common(metadata, neox=False, norm="layer_norm_epsilon")
        metadata.must_be({"attention.max_alibi_bias": (ALIBI_BIAS,)})
        return read_encoder(metadata, common)


def load_weights(loader: Loader, c: EncoderConfig) -> JinaWeights:
    """Declare and load the weights."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_encoder_embeddings(t, c)
    for i in range(c.n_layers):
        add_attention(t, c, i)
        add_norms(t, c, i, "attn_output_norm", "layer_output_norm", bias=True)
        for name, width in (("attn_q_norm", c.n_q), ("attn_k_norm", c.n_kv), ("attn_norm_2", c.n_embd)):
            t.add(name, f"{name}.weight", width, layer=i, required=False)
            t.add(f"{name}_bias", f"{name}.bias", width, layer=i, required=False)
        _add_feed_forward(t, c, i, loader.gguf)
    return t.load(loader, JinaWeights)


def _add_feed_forward(t: TensorTable, c: EncoderConfig, i: int, gguf: GGUFFile) -> None:
    """Gate and up in two tensors or in one, or no gate. In one, the gate is first, except in models with ``attn_norm_2``."""
    up = gguf.tensors.get(f"blk.{i}.ffn_up.weight")
    if up is not None and up.shape[0] == 2 * c.n_ff:
        fields = ("ffn_up", "ffn_gate") if t.has(f"blk.{i}.attn_norm_2.weight") else ("ffn_gate", "ffn_up")
        t.split("ffn_up.weight", dict.fromkeys(fields, c.n_ff), c.n_embd, layer=i)
        t.add("ffn_up_bias", "ffn_up.bias", c.n_ff, layer=i, required=False)
        t.add("ffn_down", "ffn_down.weight", c.n_embd, c.n_ff, layer=i)
        t.add("ffn_down_bias", "ffn_down.bias", c.n_embd, layer=i, required=False)
    else:
        add_feed_forward(t, c, i, gate=False)
        t.add("ffn_gate", "ffn_gate.weight", c.n_ff, c.n_embd, layer=i, required=False)
    t.add("ffn_gate_bias", "ffn_gate.bias", c.n_ff, layer=i, required=False)


def forward(p: Program, c: EncoderConfig, w: JinaWeights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd], twice: there are no logits."""
    slopes = decoder.alibi_slopes(c.n_heads, ALIBI_BIAS)
    x = p.layer_norm(encoder.embed(p, c, w), w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        q, k, v = decoder.project_qkv(p, layer, x)
        if layer.attn_q_norm is not None:
            q = p.layer_norm(q, layer.attn_q_norm, layer.attn_q_norm_bias, c.norm_eps)
        if layer.attn_k_norm is not None:
            k = p.layer_norm(k, layer.attn_k_norm, layer.attn_k_norm_bias, c.norm_eps)
        h = decoder.attend(p, c, layer, (q, k, v), i, None, residual=x, slopes=slopes, causal=False)
        h = p.layer_norm(h, layer.attn_output_norm, layer.attn_output_norm_bias, c.norm_eps)
        if layer.attn_norm_2 is not None:
            h = p.layer_norm(p.add(h, x), layer.attn_norm_2, layer.attn_norm_2_bias, c.norm_eps)
        h = (decoder.gated_ffn if layer.has("ffn_gate") else decoder.plain_ffn)(p, layer, h, "gelu", residual=h)
        x = p.layer_norm(h, layer.layer_output_norm, layer.layer_output_norm_bias, c.norm_eps)
    hidden = p.select_outputs(x)
    return hidden, hidden
