"""smollm3: SmolLM3 (Bakouch et al. 2025): llama; every fourth layer has no rotary embeddings (NoPE, Yang et al. 2025)."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_plain_config
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "smollm3"
FAMILIES = "SmolLM3"
VERIFIED = ("transformers", "llama.cpp")
#: Of each PERIOD layers the last has no rotary embeddings.
PERIOD = 4


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_config(gguf, NAME, neox=False)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c).load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        rotary = (i + 1) % PERIOD != 0
        x = decoder.attention(p, c, layer, h, i, table if rotary else None, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)
