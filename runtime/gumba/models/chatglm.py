"""chatglm: ChatGLM2, ChatGLM3, GLM-4-9B (Zeng et al. 2024): llama with half of each head rotary, and fused tensors.

Queries, keys and values have biases; rotary partners are neighbours; gate and up are one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "chatglm"
FAMILIES = "ChatGLM2, ChatGLM3, GLM-4-9B"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be(WITHOUT)
    config = decoder.read_common(keys, neox=False)
    keys.finish()
    return config


def load_weights(loader: Loader, c: Config) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "ffn_norm")
        decoder.add_attention(t, c, i)
        decoder.add_feed_forward(t, c, i, fused=True)
    return t.load(loader)


def forward(p: Program, c: Config, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, kv, i, table, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)
