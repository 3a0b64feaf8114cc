"""t5encoder: the encoder of T5 alone (Raffel et al. 2019; Ni et al. 2022, "Sentence-T5"), for embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.loading.config import ENCODER_INERT_KEYS, read_metadata
from gumba.loading.weight_loader import Loader
from gumba.models import t5
from gumba.models.t5 import T5Config, T5Stack

NAME = "t5encoder"
FAMILIES = "encoders of T5, mT5, umT5"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class T5EncoderConfig(T5Config):
    """A T5 without a decoder."""

    causal = False


def read_config(gguf: GGUFFile) -> T5EncoderConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, inert=ENCODER_INERT_KEYS) as metadata:
        return T5EncoderConfig(**vars(t5.read_stack(metadata)))


def load_weights(loader: Loader, c: T5EncoderConfig) -> T5Stack:
    """Declare and load the weights."""
    return t5.load_encoder(loader, c)


def forward(p: Program, c: T5EncoderConfig, w: T5Stack) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd], twice: there are no logits."""
    hidden = p.select_outputs(t5.encoded(p, c, w.token_embd, w))
    return hidden, hidden
