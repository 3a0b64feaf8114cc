"""gptneox: GPT-NeoX, Pythia, Dolly (Black et al. 2022): LayerNorm, a part of each head is rotary, GELU, biases.

Attention and feed-forward network work in parallel, each after a norm of its own, or one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "gptneox"
FAMILIES = "GPT-NeoX, Pythia, Dolly, RedPajama-INCITE"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class NeoXConfig(Config):
    parallel: bool


def read_config(gguf: GGUFFile) -> NeoXConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "use_parallel_residual") as metadata:
        common = read_common(metadata, neox=True, norm="layer_norm_epsilon")
        return NeoXConfig(**vars(common), parallel=metadata.flag("use_parallel_residual", True))


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norm_bias=True, feed_forward="plain").load(loader, Weights)


def forward(p: Program, c: NeoXConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.layer_norm(x, layer.attn_norm, layer.attn_norm_bias, c.norm_eps)
        after = decoder.attention(p, c, layer, h, i, table, residual=x)
        h = p.layer_norm(x if c.parallel else after, layer.ffn_norm, layer.ffn_norm_bias, c.norm_eps)
        x = decoder.plain_ffn(p, layer, h, "gelu", residual=after)
    return decoder.layer_norm_outputs(p, c, w, x)
