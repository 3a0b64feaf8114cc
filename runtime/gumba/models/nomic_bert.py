"""nomic-bert: Nomic Embed 1 and 1.5 (Nussbaum et al. 2024): bert with rotary embeddings, SwiGLU and no biases."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import encoder
from gumba.loading.config import EncoderConfig, read_plain_encoder
from gumba.loading.encoder_tensors import encoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "nomic-bert"
FAMILIES = "Nomic Embed Text 1 and 1.5"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> EncoderConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_plain_encoder(gguf, NAME, neox=True)


def load_weights(loader: Loader, c: EncoderConfig) -> Weights:
    """Declare and load the weights."""
    return encoder_table(loader.gguf, c, gate=True).load(loader, Weights)


def forward(p: Program, c: EncoderConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the head's outputs [n_outputs, n_labels]."""
    return encoder.rotary_forward(p, c, w, "silu", gate=True)
