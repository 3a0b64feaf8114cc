"""Make tests/data/model_*.gguf and .npz: tiny random Llama-family models with the logits that transformers gives.

    python tools/make_model_goldens.py            # needs torch, transformers, gguf
    python tools/make_model_goldens.py --check    # needs llama-cpp-python: llama.cpp on the same files

Each model is built by transformers from a small configuration of awkward sizes, filled with random weights (large
enough that attention is far from uniform and logits are far from flat), and written as a float32 GGUF file the way
llama.cpp's converter writes it: rows of Q and K reordered from halves to pairs, frequency factors as
``rope_freqs.weight``. The logits of every position of one prompt come from transformers in float64 with eager
attention (its norms and rotations stay in float32). A model whose special feature (scaling, bias, ...) does not move
the logits is refused.

``--check`` reads the same files with llama.cpp (float32 KV cache) and prints how far its logits are from the stored
ones, so that the files themselves are right by a second opinion.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "tests" / "data"

#: llama.cpp multiplies and stores in float32 in another order than torch; a wrong formula is off by far more than this.
CHECK_TOLERANCE = 1e-4


#: Rotary settings as transformers names them.
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
FAST: dict[str, Any] = {**PLAIN, "rope_theta": 500000.0}
LINEAR: dict[str, Any] = {**PLAIN, "rope_type": "linear", "factor": 3.0}
YARN: dict[str, Any] = {**PLAIN, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_FACTORS: dict[str, Any] = {**YARN, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0}
LLAMA3: dict[str, Any] = {
    **PLAIN,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Golden:
    """One model: its name, sizes, and which options of transformers' configuration it sets."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    n_tokens: int
    family: str = "llama"
    rope: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))
    options: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] = field(default_factory=dict)  # what turns the special feature off


def rope_instead(rope: dict[str, Any]) -> dict[str, Any]:
    """The override that puts ``rope`` in place of a model's own rotary settings."""
    return {"rope_parameters": rope}


BIASES = {"attention_bias": True, "mlp_bias": True}
NO_BIASES = {"attention_bias": False, "mlp_bias": False}
TIED = {"tie_word_embeddings": True}

#     name, width, layers, heads, KV heads, head_dim, ffn, vocabulary, tokens
GOLDENS = [
    Golden("plain", 96, 1, 3, 3, 32, 72, 99, 80),
    Golden("gqa_tied", 60, 2, 6, 2, 24, 60, 131, 100, "mistral", options=TIED),
    Golden("llama3", 64, 2, 4, 2, 16, 84, 97, 150, rope=LLAMA3, without=rope_instead(PLAIN)),
    Golden("linear", 48, 3, 3, 1, 16, 60, 97, 140, rope=LINEAR, without=rope_instead(PLAIN)),
    Golden("yarn", 52, 2, 2, 2, 32, 56, 97, 150, rope=YARN, without=rope_instead(PLAIN)),
    Golden("yarn_factors", 40, 2, 5, 5, 16, 52, 97, 150, rope=YARN_FACTORS, without=rope_instead(YARN)),
    Golden("bias", 56, 2, 7, 7, 8, 76, 97, 70, options=BIASES, without=NO_BIASES),
    Golden("wide_head", 56, 2, 2, 1, 64, 84, 131, 135, rope=FAST, without=rope_instead(PLAIN)),
]


def build(golden: Golden, overrides: dict[str, Any]) -> Any:
    """The transformers model of ``golden`` with random weights (the same weights whatever the ``overrides``)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": golden.width,
        "num_hidden_layers": golden.layers,
        "num_attention_heads": golden.heads,
        "num_key_value_heads": golden.kv_heads,
        "head_dim": golden.head_dim,
        "intermediate_size": golden.ffn,
        "vocab_size": golden.vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": dict(golden.rope),
        "attn_implementation": "eager",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **golden.options,
        **overrides,
    }
    if golden.family == "mistral":
        model = MistralForCausalLM(MistralConfig(sliding_window=None, **settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            # one generator per tensor, so that leaving one tensor out changes no other
            rng = np.random.default_rng([*golden.name.encode(), 0, *name.encode()])
            shape = tuple(parameter.shape)
            if "norm" in name:
                values = 1 + 0.3 * rng.standard_normal(shape)
            elif name.endswith(".bias"):
                values = 0.4 * rng.standard_normal(shape)
            elif "embed_tokens" in name:
                values = rng.standard_normal(shape) * (2 / math.sqrt(golden.width))
            else:
                gain = 2.0 if "lm_head" in name else 1.5
                values = rng.standard_normal(shape) * (gain / math.sqrt(shape[1]))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model.eval()


def run(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of every position, float64 [n_tokens, n_vocab]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].double().numpy())


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a Q or K matrix (or bias) from halves (i, i + d/2) to pairs (2i, 2i + 1), head by head."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


TENSOR_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a transformers parameter."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{TENSOR_NAMES[part]}.{kind}"


def vocabulary(n: int) -> list[str]:
    """``n`` distinct byte-level tokens: three control tokens, printable ASCII, then runs of ``a``."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    return tokens[:n] + ["a" * (k + 2) for k in range(n - len(tokens))]


def write_metadata(writer: Any, golden: Golden, config: Any) -> None:
    """All metadata of the file: sizes, rotary scaling, vocabulary."""
    import gguf

    writer.add_name(f"gumba golden {golden.name}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(golden.width)
    writer.add_block_count(golden.layers)
    writer.add_feed_forward_length(golden.ffn)
    writer.add_head_count(golden.heads)
    writer.add_head_count_kv(golden.kv_heads)
    writer.add_key_length(golden.head_dim)
    writer.add_value_length(golden.head_dim)
    writer.add_rope_dimension_count(golden.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(golden.vocab)
    rope = golden.rope
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            # transformers' number is the whole factor; GGUF's multiplies the usual 0.1 ln(factor) + 1
            writer.add_rope_scaling_attn_factors(rope["attention_factor"] / (0.1 * math.log(rope["factor"]) + 1))
            writer.add_float32("llama.rope.scaling.yarn_beta_fast", rope["beta_fast"])
            writer.add_float32("llama.rope.scaling.yarn_beta_slow", rope["beta_slow"])
    tokens = vocabulary(golden.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a a", "aa a"] if golden.vocab > 98 else ["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def llama3_factors(golden: Golden) -> np.ndarray:
    """What each frequency is divided by, float32 [head_dim / 2] (the rule of Llama 3.1's release)."""
    rope = golden.rope
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for k in range(golden.head_dim // 2):
        turns = original / (2 * math.pi * rope["rope_theta"] ** (2 * k / golden.head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def write_gguf(path: Path, golden: Golden, model: Any) -> None:
    """Write ``model`` as a float32 GGUF file."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    write_metadata(writer, golden, model.config)
    if golden.rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(golden))
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if ".q_proj." in name:
            values = permute(values, golden.heads)
        elif ".k_proj." in name:
            values = permute(values, golden.kv_heads)
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest difference, relative to the greatest logit."""
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def make(golden: Golden) -> None:
    """Write one model's file and its logits."""
    path = DATA / f"model_{golden.name}.gguf"
    model = build(golden, {})
    tokens = np.random.default_rng(len(golden.name)).integers(0, golden.vocab, golden.n_tokens).astype(np.int32)
    write_gguf(path, golden, model)
    single = run(model, tokens)
    logits = run(model.double(), tokens)
    note = f"float32 run {distance(single, logits):.1e}"
    if golden.without:
        moved = distance(run(build(golden, golden.without).double(), tokens), logits)
        note += f", without its feature {moved:.2f}"
        if moved < 0.02:
            sys.exit(f"{golden.name}: its special feature moves the logits by only {moved:.1e}")
    np.savez_compressed(path.with_suffix(".npz"), tokens=tokens, logits=logits.astype(np.float32))
    size = path.stat().st_size + path.with_suffix(".npz").stat().st_size
    print(f"{golden.name}: {size / 1000:.0f} kB, logits std {logits.std():.2f} max {np.abs(logits).max():.1f}, {note}")


def llama_logits(golden: Golden, path: Path, tokens: np.ndarray, step: int) -> np.ndarray:
    """llama.cpp's logits of every position, ``step`` tokens at a time, with a float32 KV cache.

    llama.cpp does not read YaRN's two betas from a Llama file (it reads the keys for other architectures), so they are
    handed over as context parameters, which it does obey.
    """
    import llama_cpp

    engine = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        logits_all=True,
        verbose=False,
        n_threads=1,
        n_threads_batch=1,
        type_k=0,
        type_v=0,
        yarn_beta_fast=golden.rope.get("beta_fast", -1.0),
        yarn_beta_slow=golden.rope.get("beta_slow", -1.0),
    )
    for start in range(0, len(tokens), step):
        engine.eval(tokens[start : start + step].tolist())
    logits = np.array(engine.scores[: len(tokens)])
    engine.close()
    return logits


def check() -> None:
    """Compare llama.cpp with the stored logits; exit 1 when a file is further off than ``CHECK_TOLERANCE``."""
    worst = 0.0
    for golden in GOLDENS:
        path = DATA / f"model_{golden.name}.gguf"
        with np.load(path.with_suffix(".npz")) as stored:
            tokens, logits = stored["tokens"], stored["logits"]
        whole = distance(llama_logits(golden, path, tokens, len(tokens)), logits)
        single = distance(llama_logits(golden, path, tokens, 1), logits)
        worst = max(worst, whole, single)
        print(f"{golden.name}: llama.cpp differs by {whole:.1e} (prompt at once), {single:.1e} (token by token)")
    if worst > CHECK_TOLERANCE:
        sys.exit(f"llama.cpp disagrees: {worst:.1e} > {CHECK_TOLERANCE:.0e}")


def main() -> None:
    """Make the files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare llama.cpp with the stored logits instead")
    arguments = parser.parse_args()
    if arguments.check:
        check()
        return
    DATA.mkdir(parents=True, exist_ok=True)
    for golden in GOLDENS:
        make(golden)


if __name__ == "__main__":
    main()
