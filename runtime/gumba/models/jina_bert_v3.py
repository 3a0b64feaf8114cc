"""jina-bert-v3: Jina Embeddings 3 (Sturua et al. 2024): bert with rotary embeddings. Its task adapters are not applied."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import encoder
from gumba.loading.config import EncoderConfig, read_plain_encoder
from gumba.loading.encoder_tensors import encoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "jina-bert-v3"
FAMILIES = "Jina Embeddings 3, and classifiers"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> EncoderConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_encoder(gguf, NAME, neox=True)


def load_weights(loader: Loader, c: EncoderConfig) -> Weights:
    """Declare and load the weights."""
    return encoder_table(loader.gguf, c, gate=False).load(loader, Weights)


def forward(p: Program, c: EncoderConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the head's outputs [n_outputs, n_labels]."""
    return encoder.rotary_forward(p, c, w, "gelu", gate=False)
