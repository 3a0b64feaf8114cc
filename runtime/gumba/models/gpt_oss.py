"""gpt-oss: OpenAI's open models (OpenAI 2025): experts with biases and a clamped SwiGLU, attention sinks, windows.

Every other layer, from the first on, sees only the last ``sliding_window`` tokens. Each head has a logit that takes part in the
softmax without a value: a head may attend to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gumba.errors import ModelError
from gumba.gguf import GGUFFile
from gumba.models import decoder
from gumba.models.decoder import WITHOUT, Config
from gumba.models.keys import Keys
from gumba.models.loader import MAX_WIDTH, Loader
from gumba.models.tensors import Group, Tensors
from gumba.program.builder import Buffer, KVLayout, Program
from gumba.program.experts import moe

NAME = "gpt-oss"
FAMILIES = "gpt-oss-20b, gpt-oss-120b"
VERIFIED = ("transformers", "llama.cpp")
#: Of so many layers the last sees everything.
PERIOD = 2
#: Of the experts' SwiGLU.
ALPHA, LIMIT = 1.702, 7.0


@dataclass(frozen=True)
class GptOssConfig(Config):
    window: int
    windowed: tuple[bool, ...]
    n_experts: int
    n_used: int
    n_ff_expert: int


def read_config(gguf: GGUFFile) -> GptOssConfig:
    """Every key is required, has a default, or must have the one value that is computed here."""
    keys = Keys(gguf, NAME)
    own = ("attention.sliding_window", "expert_count", "expert_used_count")
    keys.must_be({key: values for key, values in WITHOUT.items() if key not in own})
    common = decoder.read_common(keys, neox=True)
    n_experts, n_used = decoder.read_experts(keys)
    if not n_experts:
        raise ModelError(f"{gguf.path}: metadata gpt-oss.expert_count is 0, expected at least 1")
    config: GptOssConfig = replace(common, rope=replace(common.rope, whole_pairs=False)).extended(
        GptOssConfig,
        window=keys.count("attention.sliding_window", 1 << 30),
        windowed=decoder.windowed_layers(keys, common.n_layers, PERIOD),
        n_experts=n_experts,
        n_used=n_used,
        n_ff_expert=keys.count("expert_feed_forward_length", MAX_WIDTH, common.n_ff),
    )
    keys.finish()
    return config


def load_weights(loader: Loader, c: GptOssConfig) -> Group:
    """Read and weave everything; output shares the embedding where the file has none of its own."""
    t = Tensors(loader.gguf, c.n_layers)
    decoder.add_outer(t, c)
    for i in range(c.n_layers):
        decoder.add_norms(t, c, i, "attn_norm", "post_attention_norm")
        decoder.add_attention(t, c, i)
        t.add("attn_sinks", "attn_sinks.weight", c.n_heads, layer=i)
        decoder.add_experts(t, c, i, c.n_experts, c.n_ff_expert, bias=True)
    return t.load(loader)


def forward(p: Program, c: GptOssConfig, w: Group, kv: Sequence[KVLayout], n_ctx: int) -> tuple[Buffer, Buffer]:
    """Write the program; the last hidden states, float32 [n_outputs, n_embd], and the logits, float32 [n_outputs, n_vocab]."""
    table = decoder.rotation(p, c.rope, n_ctx, w.rope_freqs)
    scale = 1.0 / math.sqrt(c.head_dim)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        q, k, v = decoder.queries_keys_values(p, layer, h)
        q, k = decoder.turned(p, c, q, k, table)
        window = c.window if c.windowed[i] else 0
        a = p.attention(q, k, v, kv, layer=i, scale=scale, window=window, sinks=layer.attn_sinks)
        x = p.matmul(layer.attn_output, a, residual=x, bias=layer.attn_output_bias)
        h = p.rms_norm(x, layer.post_attention_norm, c.norm_eps)
        scores = p.matmul(layer.ffn_gate_inp, h, bias=layer.ffn_gate_inp_bias)
        made = moe(
            p, h, scores, layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps, c.n_used,
            lambda gate, up: p.swiglu_oai(gate, up, ALPHA, LIMIT), weights="softmax_chosen",
        )  # fmt: skip
        x = p.add(x, made)
    return decoder.outputs(p, c, w, x)
