"""llama: Llama 1 to 3.x, Mistral, SmolLM2, TinyLlama and others of the same shape (Touvron et al. 2023).

Before attention and before the feed-forward part, an RMS norm; rotary positions on queries and keys; grouped KV heads;
SwiGLU; no biases, unless the file has them. Files hold queries and keys so that rotary pairs are neighbours. Mistral's first
model sees a window only (Jiang et al. 2023); Mixtral's feed-forward parts are experts (Jiang et al. 2024).
"""

from __future__ import annotations

from dataclasses import replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_expert_counts, read_metadata, read_single_window
from gumba.loading.decoder_tensors import add_attention, add_embeddings, add_experts, add_feed_forward, add_norms
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "llama"
FAMILIES = "Llama 1-3.x, Mistral, Mixtral, SmolLM2, TinyLlama, Yi, Vicuna"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Every key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window", *EXPERT_KEYS) as metadata:
        common = read_common(metadata, neox=False)
        n_experts, n_used = read_expert_counts(metadata)
        return replace(read_single_window(metadata, common), n_experts=n_experts, n_used=n_used)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = TensorTable(loader.gguf, c.n_layers)
    add_embeddings(t, c, classifier_head=True)
    for i in range(c.n_layers):
        add_norms(t, c, i, "attn_norm", "ffn_norm")
        add_attention(t, c, i)
        if c.n_experts:
            add_experts(t, c, i, c.n_experts, c.n_ff)
        else:
            add_feed_forward(t, c, i)
    # Tensors of old files that nothing needs.
    return t.load(loader, Weights, lambda name: name.endswith((".rotary_emb.inv_freq", ".attn_rot_embd.weight")))


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x, window=c.window)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        if c.n_experts:
            x = p.add(x, decoder.moe_ffn(p, layer, h, c.n_used))
        else:
            x = decoder.swiglu(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)
