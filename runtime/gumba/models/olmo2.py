"""olmo2: OLMo 2 (Walsh et al. 2024): llama with norms after attention and feed-forward network, and on all of q and of k.

In OLMo 3 three of four layers have a sliding window, and rotary embeddings without scaling.
"""

from __future__ import annotations

from dataclasses import replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import Config, read_windowed_config
from gumba.loading.decoder_tensors import POST_NORMS, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "olmo2"
FAMILIES = "OLMo 2, OLMo 3"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    return read_windowed_config(gguf, NAME, 4, neox=True)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norms=POST_NORMS)
    for i in range(c.n_layers):
        t.add("attn_q_norm", "attn_q_norm.weight", c.n_q, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", c.n_kv, layer=i)
    return t.load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    everywhere = decoder.rope_table(p, c.rope)
    local = decoder.rope_table(p, replace(c.rope, scaling="none"))
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        q, k, v = decoder.project_qkv(p, layer, x)
        q = p.rms_norm(q, layer.attn_q_norm, c.norm_eps)
        k = p.rms_norm(k, layer.attn_k_norm, c.norm_eps)
        window = c.window_of(i)
        h = decoder.attend(p, c, layer, (q, k, v), i, local if window else everywhere, window=window)
        x = p.add(x, p.rms_norm(h, layer.post_attention_norm, c.norm_eps))
        x = p.add(x, p.rms_norm(decoder.swiglu(p, layer, x), layer.post_ffw_norm, c.norm_eps))
    return decoder.outputs(p, c, w, x)
