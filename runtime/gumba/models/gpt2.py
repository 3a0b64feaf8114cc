"""gpt2: GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases everywhere."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_plain_config
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "gpt2"
FAMILIES = "GPT-2, DistilGPT-2, DialoGPT"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=False, norm="layer_norm_epsilon")


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norm_bias=True, feed_forward="plain")
    t.add("position_embd", "position_embd.weight", c.n_ctx_train, c.n_embd)
    return t.load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    x = p.add_positions(p.embed(w.token_embd), w.position_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, None, residual=x)
        h = p.layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, c.norm_eps)
        x = decoder.plain_ffn(p, layer, h, "gelu_tanh", residual=x)
    return decoder.layer_norm_outputs(p, c, w, x)
