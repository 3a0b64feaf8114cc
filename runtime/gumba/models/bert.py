"""bert: BERT and RoBERTa (Devlin et al. 2019, Liu et al. 2019): encoders with bidirectional attention.

Learned positions and token types; LayerNorm after attention and after the feed-forward network; GELU; biases everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.errors import UnsupportedError
from gumba.gguf import GGUFFile
from gumba.layers import decoder, encoder
from gumba.loading.config import ENCODER_INERT_KEYS, EncoderConfig, read_common, read_encoder, read_metadata
from gumba.loading.encoder_tensors import encoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "bert"
FAMILIES = (
    "BERT, DistilBERT, MiniLM, E5, BGE, GTE, Arctic Embed, RoBERTa, XLM-RoBERTa, and their rerankers and classifiers"
)
VERIFIED = ("transformers", "llama.cpp")


#: The activation of the head's dense layer: tanh in BERT, ReLU in DistilBERT. A key that only gumba writes.
HEAD_ACTIVATION = "gumba.classifier.activation"


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """``head_activation``: of the head's dense layer."""

    head_activation: str


def read_config(gguf: GGUFFile) -> BertConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    activation = gguf.get(HEAD_ACTIVATION, str, "tanh")
    if activation not in ("tanh", "relu"):
        raise UnsupportedError(f"{gguf.path}: metadata {HEAD_ACTIVATION} is {activation!r:.100}, expected tanh or relu")
    with read_metadata(gguf, NAME, inert=ENCODER_INERT_KEYS) as metadata:
        common = read_common(metadata, neox=False, norm="layer_norm_epsilon")
        return BertConfig(**vars(read_encoder(metadata, common)), head_activation=activation)


def load_weights(loader: Loader, c: BertConfig) -> Weights:
    """Declare and load the weights."""
    t = encoder_table(loader.gguf, c, gate=False)
    t.add("position_embd", "position_embd.weight", c.n_ctx_train, c.n_embd)
    return t.load(loader, Weights)


def forward(p: Program, c: BertConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the head's outputs [n_outputs, n_labels]."""
    x = p.add_positions(encoder.embed(p, c, w), w.position_embd)
    x = p.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        x = decoder.attention(p, c, layer, x, i, None, residual=x, causal=False)
        x = encoder.post_norm_block(p, c, layer, x, "gelu", gate=False)
    return encoder.outputs(p, c, w, p.select_outputs(x), c.head_activation)
