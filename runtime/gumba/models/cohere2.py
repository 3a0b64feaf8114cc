"""cohere2: Command R7B, Command A (Cohere 2024): attention and feed-forward network in parallel after a LayerNorm without bias.

Three of four layers have a sliding window and rotary embeddings; the fourth has full attention and no positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata, read_windows
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "cohere2"
FAMILIES = "Command R7B, Command A"
VERIFIED = ("transformers", "llama.cpp")
#: Of each PERIOD layers the last has full attention.
PERIOD = 4


@dataclass(frozen=True)
class Cohere2Config(Config):
    logit_scale: float


def read_config(gguf: GGUFFile) -> Cohere2Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window", "logit_scale") as metadata:
        common = read_common(metadata, neox=False, norm="layer_norm_epsilon")
        scale = metadata.number("logit_scale", 0.0, or_zero=True) or 1.0
        return Cohere2Config(**vars(read_windows(metadata, common, PERIOD)), logit_scale=scale)


def load_weights(loader: Loader, c: Cohere2Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norms=("attn_norm",)).load(loader, Weights)


def forward(p: Program, c: Cohere2Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, None, c.norm_eps)
        layer_table = table if c.windowed[i] else None
        x = decoder.attention(p, c, layer, h, i, layer_table, residual=x, window=c.window_of(i))
        x = decoder.swiglu(p, layer, h, residual=x)
    hidden = p.layer_norm(p.select_outputs(x), w.output_norm, None, c.norm_eps)
    return hidden, p.scale(p.matmul(w.output or w.token_embd, hidden), c.logit_scale)
