"""bert: BERT and RoBERTa (Devlin et al. 2019, Liu et al. 2019): encoders, in which every token sees the whole text.

Learned positions and types of tokens; LayerNorm after each half of a layer; GELU; biases everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from gumba.gguf import GGUFFile
from gumba.models import decoder, encoder
from gumba.models.encoder import EncoderConfig
from gumba.models.loader import Loader
from gumba.models.tensors import Group
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "bert"
FAMILIES = "BERT, MiniLM, E5, BGE, GTE, Arctic Embed, RoBERTa, XLM-RoBERTa, and their rerankers and classifiers"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> EncoderConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    return encoder.read_plain(gguf, NAME, neox=False)


def load_weights(loader: Loader, c: EncoderConfig) -> Group:
    """Read and weave everything."""
    t = encoder.table(loader.gguf, c, gate=False)
    t.add("position_embd", "position_embd.weight", c.n_ctx_train, c.n_embd)
    return t.load(loader, numbers=("position_embd", "token_types"))


def forward(p: Program, c: EncoderConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the head's, float32 [n_outputs, n_labels]."""
    x = p.add_positions(encoder.embedded(p, c, w), w.position_embd)
    x = p.layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, c.norm_eps)
    for i, layer in enumerate(w.layers):
        x = decoder.attention(p, c, layer, x, kv, i, None, residual=x, causal=False)
        x = encoder.normed_halves(p, c, layer, x, "gelu", gate=False)
    return encoder.outputs(p, c, w, p.select_outputs(x))
