"""gemma3n: Gemma 3n's text (Gemma Team 2025): a layer computes on one of several streams and corrects the others by its result.

That is AltUp (Baykal et al. 2023); LAuReL (Menghani et al. 2024) adds a low-rank product to a layer's residual. In the first
layers the gate of the feed-forward network keeps only its largest values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gumba.backends.base import Buffer, Experts, Matrix, Program, Streams
from gumba.gguf import GGUFFile
from gumba.layers import decoder, gemma
from gumba.layers.gemma import GemmaLayer, GemmaWeights, LayersConfig
from gumba.loading.config import read_metadata
from gumba.loading.decoder_tensors import PRE_POST_NORMS, add_embeddings, add_feed_forward, add_norms
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array

NAME = "gemma3n"
FAMILIES = "Gemma 3n (text)"
VERIFIED = ("transformers", "llama.cpp")
#: Layers with keys of their own, if the file does not say.
N_OWN = 20
#: The smallest mean square of a stream that is scaled to the magnitude of another.
LEAST = 1e-5


class Gemma3nLayer(GemmaLayer):
    altup_router: Matrix
    altup_router_norm: Array
    altup_predict_coef: Matrix
    altup_correct_coef: Matrix
    altup_correct_scale: Array
    laurel_l: Matrix
    laurel_r: Matrix
    laurel_post_norm: Array


class Gemma3nWeights(GemmaWeights):
    layers: Sequence[Gemma3nLayer]
    altup_proj: Experts
    altup_unembd_proj: Experts


@dataclass(frozen=True)
class Gemma3nConfig(LayersConfig):
    """``active``: the stream that layers compute on. ``cutoffs``: for each layer, how many standard deviations above the mean a
    gate must be to open; None: all open."""

    n_streams: int
    active: int
    cutoffs: tuple[float | None, ...]
    n_laurel: int


def read_config(gguf: GGUFFile) -> Gemma3nConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, *gemma.OWN_KEYS) as metadata:
        common = gemma.read_layers(metadata, period=5, n_own=N_OWN)
        n_streams = metadata.count("altup.num_inputs", 16, 4)
        laurel = gguf.tensors.get("blk.0.laurel_l.weight")  # no metadata key has its width
        cutoffs = metadata.numbers("activation_sparsity_scale", common.n_layers) or (-math.inf,) * common.n_layers
        return Gemma3nConfig(
            **vars(common),
            n_streams=n_streams,
            active=metadata.size("altup.active_idx", n_streams - 1),
            cutoffs=tuple(None if cutoff == -math.inf else cutoff for cutoff in cutoffs),
            n_laurel=laurel.shape[0] if laurel is not None and len(laurel.shape) == 2 else 64,
        )


def load_weights(loader: Loader, c: Gemma3nConfig) -> Gemma3nWeights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c)
    gemma.add_per_layer(t, c)
    n = c.n_streams
    for name in ("altup_proj", "altup_unembd_proj"):
        t.add(name, f"{name}.weight", n - 1, c.n_embd, c.n_embd)
    for i in range(c.n_layers):
        add_norms(t, c, i, *PRE_POST_NORMS, "altup_router_norm", "altup_correct_scale", "laurel_post_norm")
        gemma.add_attention(t, c, i, keys_are_values=False)
        add_feed_forward(t, c, i, n_ff=c.n_ffs[i])
        t.add("altup_router", "altup_router.weight", n, c.n_embd, layer=i)
        t.add("altup_predict_coef", "altup_predict_coef.weight", n * n, n, layer=i)
        t.add("altup_correct_coef", "altup_correct_coef.weight", n, n, layer=i)
        t.add("laurel_l", "laurel_l.weight", c.n_laurel, c.n_embd, layer=i)
        t.add("laurel_r", "laurel_r.weight", c.n_embd, c.n_laurel, layer=i)
    return t.load(loader, Gemma3nWeights, gemma.unused_kv(c))


def forward(p: Program, c: Gemma3nConfig, w: Gemma3nWeights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    tables = gemma.rope_tables(p, c, w)
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    inputs = gemma.per_layer_inputs(p, c, w, x)
    others = [p.match_magnitude(p.matmul(m, x), x, LEAST) for m in w.altup_proj.matrices]
    all_streams = p.stack_streams([x, *others])
    for i, layer in enumerate(w.layers):
        if i == c.n_own:
            all_streams, inputs = p.select_output_streams(all_streams), p.select_outputs(inputs)
        before = p.stream(all_streams, c.active)
        predicted = p.mix_streams(all_streams, _coefficients(p, c, layer, before, layer.altup_predict_coef))
        active = p.stream(predicted, c.active)
        h = p.rms_norm(active, layer.attn_norm, c.norm_eps)
        a = p.rms_norm(gemma.attention(p, c, layer, h, i, tables), layer.post_attention_norm, c.norm_eps)
        x = p.scale(p.add(p.add(active, a), _laurel(p, c, layer, h)), math.sqrt(0.5))
        h = _feed_forward(p, layer, p.rms_norm(x, layer.ffn_norm, c.norm_eps), c.cutoffs[i])
        x = p.add(x, p.rms_norm(h, layer.post_ffw_norm, c.norm_eps))
        corrected = _correct(p, c, layer, predicted, active, x)
        first = p.multiply_row(p.stream(corrected, c.active), layer.altup_correct_scale)
        h = gemma.per_layer_embedding(p, c, layer, first, inputs, i)
        all_streams = p.add_to_streams(corrected, h, [0.0] + [1.0] * (c.n_streams - 1))
    return _outputs(p, c, w, p.select_output_streams(all_streams))


def _coefficients(p: Program, c: Gemma3nConfig, layer: Gemma3nLayer, x: Buffer, matrix: Matrix) -> Buffer:
    """Coefficients to mix the streams, computed from ``x`` by the router and ``matrix``."""
    routed = p.matmul(layer.altup_router, p.rms_norm(x, layer.altup_router_norm / c.n_embd, c.norm_eps))
    return p.matmul(matrix, p.activation(routed, "tanh"))


def _correct(
    p: Program, c: Gemma3nConfig, layer: Gemma3nLayer, predicted: Streams[Buffer], active: Buffer, x: Buffer
) -> Streams[Buffer]:
    """Each predicted stream plus its coefficient times the difference of x, the layer's result, from the active stream."""
    coefficients = p.add_row(_coefficients(p, c, layer, x, layer.altup_correct_coef), np.ones(c.n_streams, np.float32))
    return p.add_to_streams(predicted, p.add(x, p.scale(active, -1.0)), coefficients)


def _laurel(p: Program, c: Gemma3nConfig, layer: Gemma3nLayer, h: Buffer) -> Buffer:
    mixed = p.matmul(layer.laurel_r, p.matmul(layer.laurel_l, h))
    return p.add(h, p.rms_norm(mixed, layer.laurel_post_norm, c.norm_eps))


def _feed_forward(p: Program, layer: Gemma3nLayer, h: Buffer, cutoff: float | None) -> Buffer:
    """Feed-forward network with a gate; with a ``cutoff``, only the largest values of the gate are kept."""
    if cutoff is None:
        return decoder.gated_ffn(p, layer, h, "gelu_tanh")
    gate = p.keep_greatest(p.matmul(layer.ffn_gate, h), cutoff)
    return p.matmul(layer.ffn_down, p.gated(gate, p.matmul(layer.ffn_up, h), "gelu_tanh"))


def _outputs(p: Program, c: Gemma3nConfig, w: Gemma3nWeights, x: Streams[Buffer]) -> tuple[Buffer, Buffer]:
    """The mean of all streams, scaled to the magnitude of the first, as hidden states; and their logits."""
    first = p.stream(x, 0)
    total = first
    for i, matrix in enumerate(w.altup_unembd_proj.matrices, 1):
        total = p.add(total, p.match_magnitude(p.matmul(matrix, p.stream(x, i)), first, LEAST))
    hidden = p.rms_norm(p.scale(total, 1.0 / x.n), w.output_norm, c.norm_eps)
    return gemma.softcap_logits(p, c, hidden, p.matmul(w.output or w.token_embd, hidden))
