"""starcoder2: StarCoder2 (Lozhkov et al. 2024): LayerNorm, rotary embeddings, GELU without a gate, biases."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata, read_single_window
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "starcoder2"
FAMILIES = "StarCoder2"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window") as metadata:
        common = read_common(metadata, neox=True, norm="layer_norm_epsilon")
        return read_single_window(metadata, common)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norm_bias=True, feed_forward="plain").load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x, window=c.window)
        h = p.layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, c.norm_eps)
        x = decoder.plain_ffn(p, layer, h, "gelu_tanh", residual=x)
    return decoder.layer_norm_outputs(p, c, w, x)
