"""gpt-oss: OpenAI's open models (OpenAI 2025): experts with biases and a clamped SwiGLU, attention sinks, sliding windows.

Every other layer, beginning with the first, has a sliding window. Each head has a logit that takes part in the softmax without
a value: a head can attend to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gumba.backends.base import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.layers import decoder
from gumba.loading.config import EXPERT_KEYS, Config, read_common, read_experts, read_metadata, read_windows
from gumba.loading.decoder_tensors import add_experts, decoder_table
from gumba.loading.weight_loader import Loader
from gumba.loading.weights import Array, LayerWeights, Weights

NAME = "gpt-oss"
FAMILIES = "gpt-oss-20b, gpt-oss-120b"
VERIFIED = ("transformers", "llama.cpp")
#: Of each PERIOD layers the last has full attention.
PERIOD = 2
#: Constants of the experts' SwiGLU.
ALPHA, LIMIT = 1.702, 7.0


class GptOssLayer(LayerWeights):
    attn_sinks: Array


class GptOssWeights(Weights):
    layers: Sequence[GptOssLayer]


def read_config(gguf: GGUFFile) -> Config:
    """Read the metadata: each key is required, has a default, or must have the one value that is computed here."""
    with read_metadata(gguf, NAME, "attention.sliding_window", *EXPERT_KEYS) as metadata:
        common = read_common(metadata, neox=True)
        common = read_windows(metadata, read_experts(metadata, common), PERIOD)
        return replace(common, rope=replace(common.rope, whole_pairs=False))


def load_weights(loader: Loader, c: Config) -> GptOssWeights:
    """Declare and load the weights; the output matrix is tied to the embedding if absent."""
    t = decoder_table(loader.gguf, c, norms=("attn_norm", "post_attention_norm"), feed_forward="none")
    for i in range(c.n_layers):
        t.add("attn_sinks", "attn_sinks.weight", c.n_heads, layer=i)
        add_experts(t, c, i, c.n_experts, c.n_ff_expert, bias=True)
    return t.load(loader, GptOssWeights)


def forward(p: Program, c: Config, w: GptOssWeights) -> tuple[Buffer, Buffer]:
    """Write the program. Returns the last hidden states [n_outputs, n_embd] and the logits [n_outputs, n_vocab]."""
    table = decoder.rope_table(p, c.rope, w.rope_freqs)
    x = p.embed(w.token_embd)
    for i, layer in enumerate(w.layers):
        h = p.rms_norm(x, layer.attn_norm, c.norm_eps)
        x = decoder.attention(p, c, layer, h, i, table, residual=x, window=c.window_of(i), sinks=layer.attn_sinks)
        h = p.rms_norm(x, layer.post_attention_norm, c.norm_eps)
        scores = p.matmul(layer.ffn_gate_inp, h, bias=layer.ffn_gate_inp_bias)
        mixed = p.moe(
            h, scores, layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps, c.n_used,
            lambda gate, up: p.swiglu_oai(gate, up, ALPHA, LIMIT), weights="softmax_chosen",
        )  # fmt: skip
        x = p.add(x, mixed)
    return decoder.outputs(p, c, w, x)
