"""exaone4: EXAONE 4.0 (LG AI Research 2025): norms after attention and feed-forward network, and on each head of q and k.

In the larger model three of four layers have a sliding window and rotary embeddings; the fourth has full attention and no
positions. In the smaller one all layers have full attention and rotary embeddings.
"""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_windowed_config
from gumba.loading.decoder_tensors import POST_NORMS, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "exaone4"
FAMILIES = "EXAONE 4.0"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_windowed_config(gguf, NAME, 4, neox=True)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norms=POST_NORMS, head_norms=True).load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        window = c.window_of(i)
        layer_table = table if window or not c.window else None
        h = decoder.qk_norm_attention(p, c, layer, x, i, layer_table, window=window)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        x = p.add(x, p.rms_norm(decoder.swiglu(p, layer, x), layer.post_ffw_norm, c.norm_eps))
    return decoder.outputs(p, c, w, x)
