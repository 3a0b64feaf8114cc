"""qwen3moe: Qwen3-30B-A3B, Qwen3-Coder (Yang et al. 2025): qwen3 with experts."""

from __future__ import annotations

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata
from gumba.loading.decoder_tensors import add_experts, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Weights

NAME = "qwen3moe"
FAMILIES = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"
VERIFIED = ("transformers", "llama.cpp")


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, *EXPERT_KEYS) as metadata:
        common = read_common(metadata, neox=True)
        return read_experts(metadata, common)


def load_weights(loader: Loader, c: Config) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, head_norms=True, feed_forward="none")
    for i in range(c.n_layers):
        add_experts(t, c, i, c.n_experts, c.n_ff_expert)
    return t.load(loader, Weights)


def forward(p: Program, c: Config, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.qk_norm_attention(p, c, layer, h, i, table, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = p.add(x, decoder.moe_ffn(p, layer, h, c.n_used))
    return decoder.outputs(p, c, w, x)
