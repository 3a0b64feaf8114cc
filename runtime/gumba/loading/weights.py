"""The weights of a loaded model, by GGUF's names: what each tensor is for the program, a packed matrix or a float32 array.

An architecture whose files have further tensors declares them in a subclass of its own, in its own file::

    class ScaledLayer(LayerWeights):
        layer_output_scale: Array

    class ScaledWeights(Weights):
        layers: Sequence[ScaledLayer]

``TensorTable.load`` reads each tensor as the type that its field declares. A field ``X | None`` is None in files without the
tensor; for any other tensor that some files lack, ``has`` says whether it was loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from gumba.backends.base import Experts, Matrix

#: float32 numbers that operations take as they are: norms, biases, learned tables.
Array: TypeAlias = np.ndarray


class _Tensors:
    def has(self, field: str) -> bool:
        """Whether the file has the tensor of ``field``."""
        return getattr(self, field, None) is not None


class LayerWeights(_Tensors):
    """The tensors of one layer that several architectures have; those that an architecture lacks are not set."""

    attn_norm: Array
    attn_norm_bias: Array
    attn_norm_2: Array | None = None
    attn_norm_2_bias: Array | None = None
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    attn_q_bias: Array | None = None
    attn_k_bias: Array | None = None
    attn_v_bias: Array | None = None
    attn_q_norm: Array | None = None
    attn_k_norm: Array | None = None
    attn_output: Matrix
    attn_output_bias: Array | None = None
    attn_output_norm: Array
    attn_output_norm_bias: Array
    post_attention_norm: Array

    ffn_norm: Array
    ffn_norm_bias: Array
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_down: Matrix
    ffn_gate_bias: Array | None = None
    ffn_up_bias: Array | None = None
    ffn_down_bias: Array | None = None
    post_ffw_norm: Array
    layer_output_norm: Array
    layer_output_norm_bias: Array

    #: The router of a mixture of experts, its experts, and the shared expert.
    ffn_gate_inp: Matrix
    ffn_gate_inp_bias: Array | None = None
    ffn_gate_exps: Experts
    ffn_up_exps: Experts
    ffn_down_exps: Experts
    ffn_gate_inp_shexp: Matrix
    ffn_gate_shexp: Matrix
    ffn_up_shexp: Matrix
    ffn_down_shexp: Matrix


class Weights(_Tensors):
    """The tensors outside the layers, and ``layers``."""

    layers: Sequence[LayerWeights]
    token_embd: Matrix
    token_embd_norm: Array
    token_embd_norm_bias: Array
    #: Learned positions, [n_ctx_train, n_embd].
    position_embd: Array
    #: Learned token types, [n_types, n_embd].
    token_types: Array | None = None
    #: Factors of the rotary frequencies, [rope.dim / 2].
    rope_freqs: Array | None = None
    output_norm: Array
    output_norm_bias: Array
    #: None: tied to ``token_embd``.
    output: Matrix | None = None
    output_bias: Array | None = None

    #: The classifier head: a dense layer, its norm, and the matrix [n_labels, n_embd].
    cls: Matrix | None = None
    cls_bias: Array | None = None
    cls_norm: Array | None = None
    cls_output: Matrix
    cls_output_bias: Array | None = None
