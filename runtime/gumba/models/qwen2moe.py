"""qwen2moe: Qwen1.5-MoE, Qwen2-57B-A14B (Yang et al. 2024): qwen2 with experts, and a shared expert with a sigmoid gate."""

from __future__ import annotations

from dataclasses import dataclass

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata
from gumba.loading.decoder_tensors import add_experts, decoder_table
from gumba.loading.weight_loader import MAX_WIDTH, Loader
from gumba.loading.weights import Weights

NAME = "qwen2moe"
FAMILIES = "Qwen1.5-MoE, Qwen2-57B-A14B"
VERIFIED = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Qwen2MoeConfig(Config):
    n_ff_shared: int


def read_config(gguf: GGUFFile) -> Qwen2MoeConfig:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, *EXPERT_KEYS) as metadata:
        common = read_common(metadata, neox=True)
        return Qwen2MoeConfig(
            **vars(read_experts(metadata, common, split=True)),
            n_ff_shared=metadata.count("expert_shared_feed_forward_length", MAX_WIDTH, common.n_ff),
        )


def load_weights(loader: Loader, c: Qwen2MoeConfig) -> Weights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, feed_forward="none")
    for i in range(c.n_layers):
        add_experts(t, c, i, c.n_experts, c.n_ff_expert, n_shared=c.n_ff_shared)
        t.add_row("ffn_gate_inp_shexp", "ffn_gate_inp_shexp.weight", c.n_embd, layer=i)
    return t.load(loader, Weights)


def forward(p: Program, c: Qwen2MoeConfig, w: Weights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x)
        h = p.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = p.add(x, decoder.moe_ffn(p, layer, h, c.n_used, normalized=False))
        x = p.add(x, decoder.gated_shared_expert(p, layer, h))
    return decoder.outputs(p, c, w, x)
