"""gemma3: Gemma 3's text (Kamath et al. 2025): gemma2 with norms on queries and keys instead of soft caps.

Five of six layers have a sliding window, and rotary embeddings with a base frequency of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_common, read_metadata, read_windows
from gumba.loading.decoder_tensors import PRE_POST_NORMS, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights
from gumba.models.gemma2 import read_query_scale

NAME = "gemma3"
FAMILIES = "Gemma 3 (text)"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Gemma3Config(Config):
    local_freq_base: float
    logit_cap: float
    query_scale: float


def read_config(gguf: GGUFFile) -> Gemma3Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    own = ("attention.sliding_window", "final_logit_softcapping", "attention.scale")
    with read_metadata(gguf, NAME, *own) as metadata:
        common = read_common(metadata, neox=True, freq_base=1000000.0)
        return Gemma3Config(
            **vars(read_windows(metadata, common, 6)),
            local_freq_base=metadata.number("rope.freq_base_swa", 10000.0, minimum=1.001),
            logit_cap=metadata.number("final_logit_softcapping", 0.0, or_zero=True),
            query_scale=read_query_scale(metadata, common, largest=62),
        )


def load_weights(loader: Loader, c: Gemma3Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    return decoder_table(loader.gguf, c, norms=PRE_POST_NORMS, head_norms=True, classifier_head=True).load(
        loader, Weights
    )


def forward(p: Program, c: Gemma3Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    everywhere = decoder.rope_table(p, c.rope, w.rope_freqs)
    local = decoder.rope_table(p, replace(c.rope, freq_base=c.local_freq_base, scaling="none"))
    x = p.scale(p.embed(w.token_embd), math.sqrt(c.n_embd))
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        table = local if c.windowed[i] else everywhere
        h = decoder.qk_norm_attention(p, c, layer, h, i, table, scale=c.query_scale, window=c.window_of(i))
        x = decoder.post_norm_block(p, c, layer, x, h, "gelu_tanh")
    hidden, logits = decoder.outputs(p, c, w, x)
    return hidden, p.softcap(logits, c.logit_cap) if c.logit_cap and not c.n_labels else logits
