"""qwen3moe: Qwen3-30B-A3B, Qwen3-Coder (Yang et al. 2025): qwen3 with experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gumba.errors import ModelError
from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import MAX_WIDTH, Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program

NAME = "qwen3moe"
FAMILIES = "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Qwen3MoeConfig(Config):
    n_experts: int
    n_used: int
    n_ff_expert: int


def read_config(gguf: GGUFFile) -> Qwen3MoeConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    keys.must_be({key: values for key, values in WITHOUT.items() if not key.startswith("expert_")})
    common = decoder.read_common(keys, neox=True)
    n_experts, n_used = decoder.read_experts(keys)
    if not n_experts:
        raise ModelError(f"{gguf.path}: metadata qwen3moe.expert_count is 0, expected at least 1")
    config: Qwen3MoeConfig = common.extended(
        Qwen3MoeConfig,
        n_experts=n_experts,
        n_used=n_used,
        n_ff_expert=keys.count("expert_feed_forward_length", MAX_WIDTH, common.n_ff),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: Qwen3MoeConfig) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "ffn_norm")
        decoder.add_attention(t, c, i)
        t.add("attn_q_norm", "attn_q_norm.weight", c.head_dim, layer=i)
        t.add("attn_k_norm", "attn_k_norm.weight", c.head_dim, layer=i)
        decoder.add_experts(t, c, i, c.n_experts, c.n_ff_expert)
    return t.load(loader)


def forward(p: Program, c: Qwen3MoeConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.head_normed_attention(p, c, layer, h, kv, i, table, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = p.add(x, decoder.experts(p, layer, h, c.n_used))
    return decoder.outputs(p, c, w, x)
