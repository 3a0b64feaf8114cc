"""baichuan: Baichuan, Baichuan2 (Yang et al. 2023): llama; the 13B model has ALiBi (Press et al. 2022), no rotary embeddings.

Its 40 layers identify the 13B model.
"""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata
from gumba.loading.decoder_tensors import decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "baichuan"
FAMILIES = "Baichuan, Baichuan2 7B and 13B"
VERIFIED = ("transformers",)
#: Layers of the model with ALiBi, and the bias of its slopes, see ``decoder.alibi_slopes``.
ALIBI_LAYERS, ALIBI_BIAS = 40, 8.0


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME) as metadata:
        metadata.must_be({"tensor_data_layout": ("Meta AI original pth",)})
        return read_common(metadata, neox=False)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c).load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    slopes = decoder.alibi_slopes(c.n_heads, ALIBI_BIAS) if c.n_layers == ALIBI_LAYERS else None
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table if slopes is None else None, residual=x, slopes=slopes)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)
