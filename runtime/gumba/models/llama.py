"""llama: Llama 1 to 3.x, Mistral, SmolLM2, TinyLlama and others of the same shape (Touvron et al. 2023).

Each layer adds attention, then a feed-forward network, to the hidden state x [n_tokens, n_embd], each after an RMS norm.
Attention has rotary position embeddings and grouped KV heads; the feed-forward network is SwiGLU. There are no biases, unless
the file has them. Mistral's first model has a sliding window (Jiang et al. 2023); Mixtral's feed-forward networks are mixtures
of experts (Jiang et al. 2024).

Every architecture file has these parts in this order: the configuration, read from metadata; the weights, declared as a table
of tensors; and the forward pass, which writes a program: each call on ``p`` appends one operation and returns the buffer that
the operation fills, float32 [n_tokens, width].
"""

from __future__ import annotations

import math
from dataclasses import replace

from gumba.backends.base import Buffer, Program, RopeTable
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_expert_counts, read_metadata, read_single_window
from gumba.loading.decoder_tensors import add_attention, add_embeddings, add_experts, add_feed_forward, add_norms
from gumba.loading.tensor_table import TensorTable
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import LayerWeights, Weights

NAME = "llama"
FAMILIES = "Llama 1-3.x, Mistral, Mixtral, SmolLM2, TinyLlama, Yi, Vicuna"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
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
    # Old files have tensors that are not needed.
    return t.load(loader, Weights, lambda name: name.endswith((".rotary_emb.inv_freq", ".attn_rot_embd.weight")))


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = attention(p, c, layer, h, i, table, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        if c.n_experts:
            x = p.add(x, decoder.moe_ffn(p, layer, h, c.n_used))
        else:
            x = feed_forward(p, layer, h, residual=x)
    return decoder.outputs(p, c, w, x)


def attention(
    p: Program, c: Config, layer: LayerWeights, h: Buffer, i: int, table: RopeTable, residual: Buffer
) -> Buffer:
    """residual + attention of layer ``i`` to the normed hidden state ``h``."""
    # One query per head, [n_tokens, n_heads * head_dim]; fewer keys and values, each shared by a group of heads.
    q = p.matmul(layer.attn_q, h, bias=layer.attn_q_bias)
    k = p.matmul(layer.attn_k, h, bias=layer.attn_k_bias)
    v = p.matmul(layer.attn_v, h, bias=layer.attn_v_bias)
    # Rotate pairs of elements of each query and key by an angle that grows with the position (Su et al. 2021).
    q = p.rope(q, c.n_heads, c.head_dim, c.rope.dim, table, neox=c.rope.neox)
    k = p.rope(k, c.n_kv_heads, c.head_dim, c.rope.dim, table, neox=c.rope.neox)
    # Store k and v in the KV cache; then softmax(q k / sqrt(head_dim)) v over the sequence so far.
    a = p.attention(q, k, v, layer=i, scale=1.0 / math.sqrt(c.head_dim), window=c.window)
    return p.matmul(layer.attn_output, a, residual=residual, bias=layer.attn_output_bias)


def feed_forward(p: Program, layer: LayerWeights, h: Buffer, residual: Buffer) -> Buffer:
    """residual + down(silu(gate(h)) * up(h)), SwiGLU (Shazeer 2020)."""
    gate = p.matmul(layer.ffn_gate, h, bias=layer.ffn_gate_bias)
    up = p.matmul(layer.ffn_up, h, bias=layer.ffn_up_bias)
    return p.matmul(layer.ffn_down, p.swiglu(gate, up), residual=residual, bias=layer.ffn_down_bias)
