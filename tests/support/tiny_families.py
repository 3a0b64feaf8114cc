"""Every family's checkpoint in small, and by hand what GGUF makes of it: names, and moves of rows one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

W, F, V, LAYERS, HEADS, GROUPS, HEAD, CTX = 16, 24, 105, 2, 4, 2, 4, 128
Q, KV = HEADS * HEAD, GROUPS * HEAD
EXPERTS, EF, SHARED = 3, 8, 12

Arrays = list[np.ndarray]
Make = Callable[[Arrays], np.ndarray]

BASE: dict[str, Any] = {
    "hidden_size": W,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": CTX,
    "vocab_size": V,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}


def same(parts: Arrays) -> np.ndarray:
    return parts[0]


def stacked(parts: Arrays) -> np.ndarray:
    return np.stack(parts)


def turned(parts: Arrays) -> np.ndarray:
    return np.array([[row[i] for row in parts[0]] for i in range(parts[0].shape[1])])


def plus_one(parts: Arrays) -> np.ndarray:
    return parts[0] + np.float32(1)


def paired(parts: Arrays, head: int = HEAD) -> np.ndarray:
    """Rows of the two halves of each head in turn."""
    rows = parts[0]
    moved = rows.copy()
    for row in range(len(rows)):
        h, within = divmod(row, head)
        half, pair = divmod(within, head // 2)
        moved[h * head + 2 * pair + half] = rows[row]
    return moved


def from_groups(n_groups: int, per_group: int, *, pair: str = "") -> tuple[Make, Make, Make]:
    """Q, K and V out of groups of `per_group` heads of Q, one of K, one of V; `pair`: whose rows are paired then."""

    def pick(which: str) -> Make:
        def make(parts: Arrays) -> np.ndarray:
            rows = []
            for group in range(n_groups):
                for head in range(per_group + 2):
                    kind = "q" if head < per_group else ("k" if head == per_group else "v")
                    for i in range(HEAD):
                        if kind == which:
                            rows.append(parts[0][(group * (per_group + 2) + head) * HEAD + i])
            found = np.array(rows)
            return paired([found]) if which in pair else found

        return make

    return pick("q"), pick("k"), pick("v")


def joined(makes: tuple[Make, Make, Make]) -> Make:
    return lambda parts: np.concatenate([make(parts) for make in makes])


def rows(first: int, count: int, then: Make = same) -> Make:
    return lambda parts: then([parts[0][first : first + count]])


Entry = tuple[str | list[str], tuple[int, ...], Make]  # checkpoint's names, their shape, what becomes of them


@dataclass(frozen=True)
class Family:
    """`config` beside BASE; `outer` and `inner`: GGUF's tensors, those of a layer with the layer's beginnings put before.

    `keys`: what the metadata must hold beside the sizes, without the architecture; `spare`: tensors that are not needed.
    """

    module: str
    architecture: str
    config: dict[str, Any]
    outer: dict[str, Entry]
    inner: dict[str, Entry]
    layer: str = "model.layers"
    keys: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # keys of BASE that this configuration does not have
    odd: dict[int, dict[str, Entry]] = field(default_factory=dict)  # layers with other tensors than `inner`
    spare: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Entry]:
        result = dict(self.outer)
        for i in range(LAYERS):
            for ours, (theirs, shape, make) in self.odd.get(i, self.inner).items():
                names = [theirs] if isinstance(theirs, str) else theirs
                result[f"blk.{i}.{ours}"] = ([f"{self.layer}.{i}.{name}" for name in names], shape, make)
        return result

    def full_config(self) -> dict[str, Any]:
        return {key: value for key, value in BASE.items() if key not in self.without} | self.config


def matrices(**shapes: tuple[str, tuple[int, ...]]) -> dict[str, Entry]:
    return {f"{ours}.weight": (f"{theirs}.weight", shape, same) for ours, (theirs, shape) in shapes.items()}


def biases(*names: str, of: dict[str, Entry]) -> dict[str, Entry]:
    """Biases beside the named weights, moved as those are."""
    result = {}
    for name in names:
        theirs, shape, make = of[f"{name}.weight"]
        assert isinstance(theirs, str)
        result[f"{name}.bias"] = (theirs.removesuffix("weight") + "bias", shape[:1], make)
    return result


def norms(make: Make = same, bias: bool = False, width: int = W, **names: str) -> dict[str, Entry]:
    result: dict[str, Entry] = {
        f"{ours}.weight": (f"{theirs}.weight", (width,), make) for ours, theirs in names.items()
    }
    return result | (biases(*names, of=result) if bias else {})


def changed(entries: dict[str, Entry], **makes: Make) -> dict[str, Entry]:
    result = dict(entries)
    for name, make in makes.items():
        result[f"{name}.weight"] = (*entries[f"{name}.weight"][:2], make)
    return result


def experts(inner: str, names: tuple[str, str, str]) -> dict[str, Entry]:
    shapes = {"gate": (EF, W), "up": (EF, W), "down": (W, EF)}
    return {
        f"ffn_{ours}_exps.weight": ([f"{inner}.{e}.{theirs}.weight" for e in range(EXPERTS)], shapes[ours], stacked)
        for ours, theirs in zip(("gate", "up", "down"), names)
    }


ENDS = matrices(token_embd=("model.embed_tokens", (V, W)), output=("lm_head", (V, W))) | norms(output_norm="model.norm")
TIED = {name: entry for name, entry in ENDS.items() if name != "output.weight"}
ATTENTION = matrices(
    attn_q=("self_attn.q_proj", (Q, W)),
    attn_k=("self_attn.k_proj", (KV, W)),
    attn_v=("self_attn.v_proj", (KV, W)),
    attn_output=("self_attn.o_proj", (W, Q)),
)
LLAMA_ATTENTION = changed(ATTENTION, attn_q=paired, attn_k=paired)
MLP = matrices(ffn_gate=("mlp.gate_proj", (F, W)), ffn_up=("mlp.up_proj", (F, W)), ffn_down=("mlp.down_proj", (W, F)))
NORMS = norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
HEAD_NORMS = norms(width=HEAD, attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
QKV_BIAS = biases("attn_q", "attn_k", "attn_v", of=ATTENTION)
GEMMA_BLOCK = norms(
    plus_one,
    attn_norm="input_layernorm",
    post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)
GEMMA_ENDS = TIED | norms(plus_one, output_norm="model.norm")
MIXTURE = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": EF}
MIXTURE_KEYS = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": EF}
ROUTER = matrices(ffn_gate_inp=("mlp.gate", (EXPERTS, W)))
FUSED_GATE_UP = matrices(ffn_up=("mlp.gate_up_proj", (2 * F, W)), ffn_down=("mlp.down_proj", (W, F)))
FALCON_FF = {"ffn_up": ("mlp.dense_h_to_4h", (4 * W, W)), "ffn_down": ("mlp.dense_4h_to_h", (W, 4 * W))}
NEOX_FF = {"ffn_up": ("mlp.dense_h_to_4h", (F, W)), "ffn_down": ("mlp.dense_4h_to_h", (W, F))}
WINDOW = {"sliding_window": 40}
MULTIPLIERS = {
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.25,
    "logits_scaling": 8.0,
}
SCALES = {"attention.scale": 0.5, "embedding_scale": 3.0, "residual_scale": 0.25, "logit_scale": 8.0}
NO_BIAS_NEEDED = ("num_key_value_heads",)

PHI2_ATTENTION = matrices(
    attn_q=("self_attn.q_proj", (Q, W)),
    attn_k=("self_attn.k_proj", (KV, W)),
    attn_v=("self_attn.v_proj", (KV, W)),
    attn_output=("self_attn.dense", (W, Q)),
)
PHI2_FF = matrices(ffn_up=("mlp.fc1", (F, W)), ffn_down=("mlp.fc2", (W, F)))
GPT2_MATRICES = changed(
    matrices(
        attn_qkv=("attn.c_attn", (W, 3 * W)),
        attn_output=("attn.c_proj", (W, W)),
        ffn_up=("mlp.c_fc", (W, 4 * W)),
        ffn_down=("mlp.c_proj", (4 * W, W)),
    ),
    **dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), turned),
)
GPT2_BIASES: dict[str, Entry] = {
    "attn_qkv.bias": ("attn.c_attn.bias", (3 * W,), same),
    "attn_output.bias": ("attn.c_proj.bias", (W,), same),
    "ffn_up.bias": ("mlp.c_fc.bias", (4 * W,), same),
    "ffn_down.bias": ("mlp.c_proj.bias", (W,), same),
}
NEOX = changed(
    matrices(attn_qkv=("attention.query_key_value", (3 * W, W)), attn_output=("attention.dense", (W, W)), **NEOX_FF),
    attn_qkv=joined(from_groups(HEADS, 1)),
)
NEOX_BIASES = biases("attn_qkv", "attn_output", "ffn_up", "ffn_down", of=NEOX)
STARCODER_FF = matrices(ffn_up=("mlp.c_fc", (F, W)), ffn_down=("mlp.c_proj", (W, F)))
FALCON_7B = changed(
    matrices(
        attn_qkv=("self_attention.query_key_value", (Q + 2 * HEAD, W)),
        attn_output=("self_attention.dense", (W, Q)),
        **FALCON_FF,
    ),
    attn_qkv=joined(from_groups(1, HEADS)),
)
FALCON_40B = changed(
    matrices(
        attn_qkv=("self_attention.query_key_value", (Q + 2 * KV, W)),
        attn_output=("self_attention.dense", (W, Q)),
        **FALCON_FF,
    ),
    attn_qkv=joined(from_groups(GROUPS, HEADS // GROUPS)),
)
FALCON_ENDS = matrices(token_embd=("transformer.word_embeddings", (V, W))) | norms(
    bias=True, output_norm="transformer.ln_f"
)
INTERNLM = from_groups(GROUPS, HEADS // GROUPS, pair="qk")
LM2 = changed(
    matrices(
        attn_q=("attention.wqkv", (Q + 2 * KV, W)),
        attn_k=("attention.wqkv", (Q + 2 * KV, W)),
        attn_v=("attention.wqkv", (Q + 2 * KV, W)),
        attn_output=("attention.wo", (W, Q)),
        ffn_gate=("feed_forward.w1", (F, W)),
        ffn_up=("feed_forward.w3", (F, W)),
        ffn_down=("feed_forward.w2", (W, F)),
    ),
    **dict(zip(("attn_q", "attn_k", "attn_v"), INTERNLM)),
)
PACK = ("self_attn.W_pack", (3 * Q, W))
BAICHUAN = changed(
    matrices(attn_q=PACK, attn_k=PACK, attn_v=PACK, attn_output=("self_attn.o_proj", (W, Q))),
    attn_q=rows(0, Q, paired),
    attn_k=rows(Q, Q, paired),
    attn_v=rows(2 * Q, Q),
)
GLM_OWN = matrices(
    attn_qkv=("self_attention.query_key_value", (Q + 2 * KV, W)),
    attn_output=("self_attention.dense", (W, Q)),
    ffn_up=("mlp.dense_h_to_4h", (2 * F, W)),
    ffn_down=("mlp.dense_4h_to_h", (W, F)),
)
NOPE, ROPE, VALUE, RANK = 6, 4, 5, 8
LATENT = {"kv_lora_rank": RANK, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE}


def latent_k(parts: Arrays) -> np.ndarray:
    result = np.zeros((HEADS, RANK, NOPE), np.float32)
    for head in range(HEADS):
        for i in range(NOPE):
            result[head, :, i] = parts[0][head * (NOPE + VALUE) + i]
    return result


def latent_v(parts: Arrays) -> np.ndarray:
    first = [head * (NOPE + VALUE) + NOPE for head in range(HEADS)]
    return np.stack([parts[0][start : start + VALUE] for start in first])


LATENT_ATTENTION = matrices(
    attn_q=("self_attn.q_proj", (HEADS * (NOPE + ROPE), W)),
    attn_kv_a_mqa=("self_attn.kv_a_proj_with_mqa", (RANK + ROPE, W)),
    attn_output=("self_attn.o_proj", (W, HEADS * VALUE)),
) | norms(width=RANK, attn_kv_a_norm="self_attn.kv_a_layernorm")
KV_B = ("self_attn.kv_b_proj.weight", (HEADS * (NOPE + VALUE), RANK))
LATENT_ATTENTION |= {"attn_k_b.weight": (*KV_B, latent_k), "attn_v_b.weight": (*KV_B, latent_v)}
SHARED_FF = matrices(
    ffn_gate_shexp=("mlp.shared_experts.gate_proj", (2 * EF, W)),
    ffn_up_shexp=("mlp.shared_experts.up_proj", (2 * EF, W)),
    ffn_down_shexp=("mlp.shared_experts.down_proj", (W, 2 * EF)),
)


def every_other(first: int) -> Make:
    """Columns of each expert in turn, turned round: [experts, W, 2 F] -> [experts, F, W]."""
    return lambda parts: np.stack([np.array([matrix[:, 2 * i + first] for i in range(F)]) for matrix in parts[0]])


OSS: dict[str, Entry] = (
    NORMS
    | ATTENTION
    | biases("attn_q", "attn_k", "attn_v", "attn_output", of=ATTENTION)
    | {
        "attn_sinks.weight": ("self_attn.sinks", (HEADS,), same),
        "ffn_gate_inp.weight": ("mlp.router.weight", (EXPERTS, W), same),
        "ffn_gate_inp.bias": ("mlp.router.bias", (EXPERTS,), same),
        "ffn_gate_exps.weight": ("mlp.experts.gate_up_proj", (EXPERTS, W, 2 * F), every_other(0)),
        "ffn_up_exps.weight": ("mlp.experts.gate_up_proj", (EXPERTS, W, 2 * F), every_other(1)),
        "ffn_gate_exps.bias": ("mlp.experts.gate_up_proj_bias", (EXPERTS, 2 * F), lambda p: p[0][:, 0::2]),
        "ffn_up_exps.bias": ("mlp.experts.gate_up_proj_bias", (EXPERTS, 2 * F), lambda p: p[0][:, 1::2]),
        "ffn_down_exps.weight": (
            "mlp.experts.down_proj",
            (EXPERTS, F, W),
            lambda p: np.stack([turned([matrix]) for matrix in p[0]]),
        ),
        "ffn_down_exps.bias": ("mlp.experts.down_proj_bias", (EXPERTS, W), same),
    }
)
OSS = {name.replace("ffn_norm", "post_attention_norm"): entry for name, entry in OSS.items()}
LFM2_FF = matrices(
    ffn_gate=("feed_forward.w1", (F, W)), ffn_up=("feed_forward.w3", (F, W)), ffn_down=("feed_forward.w2", (W, F))
) | norms(attn_norm="operator_norm", ffn_norm="ffn_norm")
LFM2_ATTENTION = (
    matrices(
        attn_q=("self_attn.q_proj", (Q, W)),
        attn_k=("self_attn.k_proj", (KV, W)),
        attn_v=("self_attn.v_proj", (KV, W)),
        attn_output=("self_attn.out_proj", (W, Q)),
    )
    | norms(width=HEAD, attn_q_norm="self_attn.q_layernorm", attn_k_norm="self_attn.k_layernorm")
    | LFM2_FF
)
CONVOLUTION: dict[str, Entry] = {
    "shortconv.conv.weight": ("conv.conv.weight", (W, 1, 3), lambda p: p[0].reshape(W, 3)),
    "shortconv.in_proj.weight": ("conv.in_proj.weight", (3 * W, W), same),
    "shortconv.out_proj.weight": ("conv.out_proj.weight", (W, W), same),
}


BERT_ENDS = matrices(
    token_embd=("bert.embeddings.word_embeddings", (V, W)),
    token_types=("bert.embeddings.token_type_embeddings", (2, W)),
    position_embd=("bert.embeddings.position_embeddings", (CTX, W)),
) | norms(bias=True, token_embd_norm="bert.embeddings.LayerNorm")
BERT_MATRICES = matrices(
    attn_q=("attention.self.query", (W, W)),
    attn_k=("attention.self.key", (W, W)),
    attn_v=("attention.self.value", (W, W)),
    attn_output=("attention.output.dense", (W, W)),
    ffn_up=("intermediate.dense", (F, W)),
    ffn_down=("output.dense", (W, F)),
)
BERT_BLOCK = (
    BERT_MATRICES
    | biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", of=BERT_MATRICES)
    | norms(bias=True, attn_output_norm="attention.output.LayerNorm", layer_output_norm="output.LayerNorm")
)
DISTIL_ENDS = matrices(
    token_embd=("distilbert.embeddings.word_embeddings", (V, W)),
    position_embd=("distilbert.embeddings.position_embeddings", (CTX, W)),
) | norms(bias=True, token_embd_norm="distilbert.embeddings.LayerNorm")
DISTIL_MATRICES = matrices(
    attn_q=("attention.q_lin", (W, W)),
    attn_k=("attention.k_lin", (W, W)),
    attn_v=("attention.v_lin", (W, W)),
    attn_output=("attention.out_lin", (W, W)),
    ffn_up=("ffn.lin1", (F, W)),
    ffn_down=("ffn.lin2", (W, F)),
)
DISTIL_BLOCK = (
    DISTIL_MATRICES
    | biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", of=DISTIL_MATRICES)
    | norms(bias=True, attn_output_norm="sa_layer_norm", layer_output_norm="output_layer_norm")
)
MPNET_ENDS = (
    matrices(
        token_embd=("mpnet.embeddings.word_embeddings", (V, W)),
        attn_rel_b=("mpnet.encoder.relative_attention_bias", (32, HEADS)),
    )
    | {"position_embd.weight": ("mpnet.embeddings.position_embeddings.weight", (CTX, W), rows(2, CTX - 2))}
    | norms(bias=True, token_embd_norm="mpnet.embeddings.LayerNorm")
)
MPNET_MATRICES = matrices(
    attn_q=("attention.attn.q", (W, W)),
    attn_k=("attention.attn.k", (W, W)),
    attn_v=("attention.attn.v", (W, W)),
    attn_output=("attention.attn.o", (W, W)),
    ffn_up=("intermediate.dense", (F, W)),
    ffn_down=("output.dense", (W, F)),
)
MPNET_BLOCK = (
    MPNET_MATRICES
    | biases("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", of=MPNET_MATRICES)
    | norms(bias=True, attn_output_norm="attention.LayerNorm", layer_output_norm="output.LayerNorm")
)
MODERN_ENDS = matrices(token_embd=("model.embeddings.tok_embeddings", (V, W))) | norms(
    token_embd_norm="model.embeddings.norm", output_norm="model.final_norm"
)
MODERN_BLOCK = matrices(
    attn_qkv=("attn.Wqkv", (3 * W, W)),
    attn_output=("attn.Wo", (W, W)),
    ffn_up=("mlp.Wi", (2 * F, W)),
    ffn_down=("mlp.Wo", (W, F)),
) | norms(ffn_norm="mlp_norm")


T5_CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": W,
    "d_kv": HEAD,
    "d_ff": F,
    "num_layers": LAYERS,
    "num_decoder_layers": 1,
    "num_heads": HEADS,
    "vocab_size": V,
    "relative_attention_num_buckets": 7,
    "pad_token_id": 0,
}


def t5_tensors(embedding: str, *, gated: bool) -> dict[str, Entry]:
    """Two layers of encoder, one of decoder; the first of each has position biases."""
    result = matrices(token_embd=(embedding, (V, W)))
    for stack, theirs, count in (("enc", "encoder", 2), ("dec", "decoder", 1)):
        result |= norms(**{f"{stack}.output_norm": f"{theirs}.final_layer_norm"})
        for i in range(count):
            ours, inner = f"{stack}.blk.{i}.", f"{theirs}.block.{i}.layer."
            parts = [("attn", "0", "SelfAttention")] + (
                [("cross_attn", "1", "EncDecAttention")] if stack == "dec" else []
            )
            for name, at, kind in parts:
                result |= norms(**{f"{ours}{name}_norm": f"{inner}{at}.layer_norm"})
                result |= matrices(**{f"{ours}{name}_{x}": (f"{inner}{at}.{kind}.{x}", (Q, W)) for x in "qkv"})
                result |= matrices(**{f"{ours}{name}_o": (f"{inner}{at}.{kind}.o", (W, Q))})
            if i == 0:
                bias = f"{inner}0.SelfAttention.relative_attention_bias"
                result |= matrices(**{f"{ours}attn_rel_b": (bias, (7, HEADS))})
            dense = f"{inner}{len(parts)}.DenseReluDense."
            up = {"ffn_gate": "wi_0", "ffn_up": "wi_1"} if gated else {"ffn_up": "wi"}
            result |= matrices(**{f"{ours}{x}": (dense + y, (F, W)) for x, y in up.items()})
            result |= matrices(**{f"{ours}ffn_down": (f"{dense}wo", (W, F))})
            result |= norms(**{f"{ours}ffn_norm": f"{inner}{len(parts)}.layer_norm"})
    return result


NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 2,
    "linear_value_head_dim": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
NET_KEYS = {
    "ssm.conv_kernel": 3,
    "ssm.state_size": 2,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 12,
    "attention.recurrent_layers": [True, False],
}


def tiled(values: np.ndarray, width: int) -> np.ndarray:
    """Six heads of `width` rows, three to a key: the first of either key, then the second, then the third."""
    heads = [values[width * i : width * (i + 1)] for i in (0, 3, 1, 4, 2, 5)]
    return np.concatenate(heads)


def channels(parts: Arrays) -> np.ndarray:
    return np.concatenate([parts[0][:8], tiled(parts[0][8:], 2)])


DELTA_NET: dict[str, Entry] = {
    "attn_qkv.weight": ("linear_attn.in_proj_qkv.weight", (20, W), channels),
    "attn_gate.weight": ("linear_attn.in_proj_z.weight", (12, W), lambda p: tiled(p[0], 2)),
    "ssm_conv1d.weight": ("linear_attn.conv1d.weight", (20, 1, 3), lambda p: channels([p[0][:, 0]])),
    "ssm_dt.bias": ("linear_attn.dt_bias", (6,), lambda p: tiled(p[0], 1)),
    "ssm_a": ("linear_attn.A_log", (6,), lambda p: -np.exp(tiled(p[0], 1))),
    "ssm_beta.weight": ("linear_attn.in_proj_b.weight", (6, W), lambda p: tiled(p[0], 1)),
    "ssm_alpha.weight": ("linear_attn.in_proj_a.weight", (6, W), lambda p: tiled(p[0], 1)),
    "ssm_norm.weight": ("linear_attn.norm.weight", (2,), same),
    "ssm_out.weight": ("linear_attn.out_proj.weight", (W, 12), lambda p: tiled(p[0].T, 2).T),
}
QWEN35_NORMS = norms(plus_one, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm")
QWEN35_ATTENTION = changed(HEAD_NORMS, attn_q_norm=plus_one, attn_k_norm=plus_one) | matrices(
    attn_q=("self_attn.q_proj", (2 * Q, W)),
    attn_k=("self_attn.k_proj", (KV, W)),
    attn_v=("self_attn.v_proj", (KV, W)),
    attn_output=("self_attn.o_proj", (W, Q)),
)
FUSED_MIXTURE = (
    ROUTER
    | {
        f"ffn_{name}_exps.weight": (
            "mlp.experts.gate_up_proj",
            (EXPERTS, 2 * EF, W),
            lambda parts, first=first: np.stack([matrix[first : first + EF] for matrix in parts[0]]),
        )
        for name, first in (("gate", 0), ("up", EF))
    }
    | {"ffn_down_exps.weight": ("mlp.experts.down_proj", (EXPERTS, W, EF), same)}
    | matrices(
        ffn_gate_inp_shexp=("mlp.shared_expert_gate", (1, W)),
        ffn_gate_shexp=("mlp.shared_expert.gate_proj", (SHARED, W)),
        ffn_up_shexp=("mlp.shared_expert.up_proj", (SHARED, W)),
        ffn_down_shexp=("mlp.shared_expert.down_proj", (W, SHARED)),
    )
)


def classifier(dense: str, output: str, n: int) -> dict[str, Entry]:
    both = {"cls": (dense, (W, W)), "cls.output": (output, (n, W))}
    found = matrices(**both)
    return found | biases(*both, of=found)


def hf(name: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [name], **more}


def nested(name: str, *, tied: bool = False, **more: Any) -> dict[str, Any]:
    """The configuration of a model that sees pictures; what the whole says of tied embeddings counts."""
    return {"architectures": [name], "tie_word_embeddings": tied, "text_config": BASE | more}


def moved(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Names of a language model that is a part of such a model."""
    return {
        ours: (str(theirs).replace("model.", "model.language_model."), shape, make)
        for ours, (theirs, shape, make) in entries.items()
    }


GATE_UP = "mlp.experts.gate_up_proj"
GEMMA_CONFIG = {"head_dim": HEAD, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
PARTIAL = {"partial_rotary_factor": 0.5}
SLIDE = {"layer_types": ["sliding_attention", "full_attention"]}


def original(name: str | list[str]) -> str:
    """The name of a matrix beside which adapters lie."""
    theirs = str(name)
    matrix = theirs.endswith(".weight") and "norm" not in theirs and "_ln" not in theirs
    prefix = "roberta." if theirs.startswith("emb") else ""
    return prefix + (theirs.replace(".weight", ".parametrizations.weight.original") if matrix else theirs)


JINA3_ENDS = matrices(
    token_embd=("embeddings.word_embeddings", (V, W)), token_types=("embeddings.token_type_embeddings", (1, W))
) | norms(bias=True, token_embd_norm="emb_ln")
JINA3_MATRICES = matrices(
    attn_qkv=("mixer.Wqkv", (3 * W, W)),
    attn_output=("mixer.out_proj", (W, W)),
    ffn_up=("mlp.fc1", (F, W)),
    ffn_down=("mlp.fc2", (W, F)),
)
JINA3_BLOCK = (
    JINA3_MATRICES
    | biases("attn_qkv", "attn_output", "ffn_up", "ffn_down", of=JINA3_MATRICES)
    | norms(bias=True, attn_output_norm="norm1", layer_output_norm="norm2")
)
JINA = {"hidden_act": "gelu", "feed_forward_type": "geglu", "position_embedding_type": "alibi"}
JINA_ENDS = {name: entry for name, entry in BERT_ENDS.items() if "position" not in name}
JINA_BLOCK = {name: entry for name, entry in BERT_BLOCK.items() if "attn" in name}
JINA_KEYS = {"attention.causal": False, "attention.head_count_kv": HEADS, "pooling_type": 1}

LLAMA4 = {
    "intermediate_size_mlp": F + 3,
    "interleave_moe_layer_step": 2,
    "num_local_experts": EXPERTS,
    "attention_chunk_size": 40,
    "head_dim": HEAD,
}
LLAMA4_KEYS = {
    "feed_forward_length": F + 3,
    "expert_feed_forward_length": F,
    "expert_count": EXPERTS,
    "expert_used_count": 1,
    "interleave_moe_layer_step": 2,
    "attention.sliding_window": 40,
}
LLAMA4_DENSE = (
    NORMS
    | ATTENTION
    | matrices(
        ffn_gate=("feed_forward.gate_proj", (F + 3, W)),
        ffn_up=("feed_forward.up_proj", (F + 3, W)),
        ffn_down=("feed_forward.down_proj", (W, F + 3)),
    )
)
LLAMA4_GATE_UP = ("feed_forward.experts.gate_up_proj", (EXPERTS, W, 2 * F))
LLAMA4_EXPERTS = (
    NORMS
    | ATTENTION
    | matrices(
        ffn_gate_inp=("feed_forward.router", (EXPERTS, W)),
        ffn_gate_shexp=("feed_forward.shared_expert.gate_proj", (F, W)),
        ffn_up_shexp=("feed_forward.shared_expert.up_proj", (F, W)),
        ffn_down_shexp=("feed_forward.shared_expert.down_proj", (W, F)),
    )
    | {
        "ffn_gate_exps.weight": (*LLAMA4_GATE_UP, lambda p: p[0][:, :, :F].swapaxes(1, 2)),
        "ffn_up_exps.weight": (*LLAMA4_GATE_UP, lambda p: p[0][:, :, F:].swapaxes(1, 2)),
        "ffn_down_exps.weight": ("feed_forward.experts.down_proj", (EXPERTS, F, W), lambda p: p[0].swapaxes(1, 2)),
    }
)

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "llama", hf("LlamaForCausalLM"), ENDS, NORMS | LLAMA_ATTENTION | MLP),
    "mistral": Family(
        "llama",
        "llama",
        hf("MistralForCausalLM", **WINDOW),
        ENDS,
        NORMS | LLAMA_ATTENTION | MLP,
        keys={"attention.sliding_window": 40},
    ),
    "mixtral": Family(
        "mixtral",
        "llama",
        hf("MixtralForCausalLM", num_local_experts=EXPERTS, intermediate_size=EF),
        ENDS,
        NORMS
        | LLAMA_ATTENTION
        | matrices(ffn_gate_inp=("block_sparse_moe.gate", (EXPERTS, W)))
        | experts("block_sparse_moe.experts", ("w1", "w3", "w2")),
        keys={"expert_count": EXPERTS, "expert_used_count": 2},
    ),
    "qwen": Family(
        "qwen",
        "qwen",
        hf("QWenLMHeadModel", seq_length=64, intermediate_size=2 * F, layer_norm_epsilon=1e-6, no_bias=True),
        matrices(token_embd=("transformer.wte", (V, W)), output=("lm_head", (V, W)))
        | norms(output_norm="transformer.ln_f"),
        norms(attn_norm="ln_1", ffn_norm="ln_2")
        | matrices(
            attn_qkv=("attn.c_attn", (3 * Q, W)),
            attn_output=("attn.c_proj", (W, Q)),
            ffn_gate=("mlp.w2", (F, W)),
            ffn_up=("mlp.w1", (F, W)),
            ffn_down=("mlp.c_proj", (W, F)),
        )
        | {"attn_qkv.bias": ("attn.c_attn.bias", (3 * Q,), same)},
        layer="transformer.h",
        keys={"context_length": 64, "feed_forward_length": 2 * F, "attention.head_count_kv": HEADS},
        without=NO_BIAS_NEEDED,
    ),
    "qwen2": Family("qwen2", "qwen2", hf("Qwen2ForCausalLM"), ENDS, NORMS | ATTENTION | QKV_BIAS | MLP),
    "qwen2 tied": Family(
        "qwen2", "qwen2", hf("Qwen2ForCausalLM", tie_word_embeddings=True), TIED, NORMS | ATTENTION | QKV_BIAS | MLP
    ),
    "qwen2moe": Family(
        "qwen2moe",
        "qwen2moe",
        hf("Qwen2MoeForCausalLM", **MIXTURE, shared_expert_intermediate_size=SHARED),
        ENDS,
        NORMS
        | ATTENTION
        | QKV_BIAS
        | ROUTER
        | experts("mlp.experts", ("gate_proj", "up_proj", "down_proj"))
        | matrices(
            ffn_gate_inp_shexp=("mlp.shared_expert_gate", (1, W)),
            ffn_gate_shexp=("mlp.shared_expert.gate_proj", (SHARED, W)),
            ffn_up_shexp=("mlp.shared_expert.up_proj", (SHARED, W)),
            ffn_down_shexp=("mlp.shared_expert.down_proj", (W, SHARED)),
        ),
        keys=MIXTURE_KEYS | {"expert_shared_feed_forward_length": SHARED},
    ),
    "qwen3": Family(
        "qwen3",
        "qwen3",
        hf("Qwen3ForCausalLM", head_dim=HEAD),
        ENDS,
        NORMS | ATTENTION | HEAD_NORMS | MLP,
        keys={"attention.key_length": HEAD, "attention.value_length": HEAD},
    ),
    "qwen2vl": Family(
        "qwen2vl",
        "qwen2vl",
        hf("Qwen2VLForConditionalGeneration", rope_scaling={"type": "mrope", "mrope_section": [1, 1]}),
        ENDS,
        NORMS | ATTENTION | QKV_BIAS | MLP,
        keys={"rope.dimension_sections": [1, 1, 0, 0]},
        spare={"visual.patch_embed.proj.weight": (2, 3)},
    ),
    "qwen2.5 vl, nested": Family(
        "qwen2vl",
        "qwen2vl",
        nested("Qwen2_5_VLForConditionalGeneration", tied=True),
        moved(TIED),
        NORMS | ATTENTION | QKV_BIAS | MLP,
        layer="model.language_model.layers",
        keys={"rope.dimension_sections": [16, 24, 24, 0]},
        spare={"model.visual.patch_embed.proj.weight": (2, 3)},
    ),
    "qwen3vl": Family(
        "qwen3vl",
        "qwen3vl",
        nested("Qwen3VLForConditionalGeneration", head_dim=HEAD, tie_word_embeddings=True)
        | {"vision_config": {"deepstack_visual_indexes": [0, 1]}},
        moved(ENDS),
        NORMS | ATTENTION | HEAD_NORMS | MLP,
        layer="model.language_model.layers",
        keys={"rope.dimension_sections": [24, 20, 20, 0], "n_deepstack_layers": 2},
        spare={"model.visual.patch_embed.proj.weight": (2, 3)},
    ),
    "qwen3vlmoe": Family(
        "qwen3vl",
        "qwen3vlmoe",
        nested("Qwen3VLMoeForConditionalGeneration", head_dim=HEAD, **MIXTURE),
        moved(ENDS),
        NORMS
        | ATTENTION
        | HEAD_NORMS
        | ROUTER
        | {
            "ffn_gate_exps.weight": (GATE_UP, (EXPERTS, W, 2 * EF), lambda p: p[0][:, :, :EF].swapaxes(1, 2)),
            "ffn_up_exps.weight": (GATE_UP, (EXPERTS, W, 2 * EF), lambda p: p[0][:, :, EF:].swapaxes(1, 2)),
            "ffn_down_exps.weight": ("mlp.experts.down_proj", (EXPERTS, EF, W), lambda p: p[0].swapaxes(1, 2)),
        },
        layer="model.language_model.layers",
        keys=MIXTURE_KEYS | {"n_deepstack_layers": 3},
    ),
    "qwen3vlmoe, turned": Family(
        "qwen3vl",
        "qwen3vlmoe",
        nested("Qwen3VLMoeForConditionalGeneration", head_dim=HEAD, **MIXTURE),
        moved(ENDS),
        NORMS
        | ATTENTION
        | HEAD_NORMS
        | ROUTER
        | {
            "ffn_gate_exps.weight": (GATE_UP, (EXPERTS, 2 * EF, W), lambda p: p[0][:, :EF]),
            "ffn_up_exps.weight": (GATE_UP, (EXPERTS, 2 * EF, W), lambda p: p[0][:, EF:]),
            "ffn_down_exps.weight": ("mlp.experts.down_proj", (EXPERTS, W, EF), same),
        },
        layer="model.language_model.layers",
        keys=MIXTURE_KEYS,
    ),
    "qwen3moe": Family(
        "qwen3moe",
        "qwen3moe",
        hf("Qwen3MoeForCausalLM", **MIXTURE, norm_topk_prob=True),
        ENDS,
        NORMS | ATTENTION | HEAD_NORMS | ROUTER | experts("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        keys=MIXTURE_KEYS,
    ),
    "chatglm": Family(
        "chatglm",
        "chatglm",
        {
            "architectures": ["ChatGLMModel"],
            "num_layers": LAYERS,
            "ffn_hidden_size": F,
            "kv_channels": HEAD,
            "multi_query_attention": True,
            "multi_query_group_num": GROUPS,
            "layernorm_epsilon": 1e-5,
            "rope_ratio": 50,
            "seq_length": 64,
            "padded_vocab_size": V,
            "add_qkv_bias": True,
        },
        matrices(
            token_embd=("transformer.embedding.word_embeddings", (V, W)), output=("transformer.output_layer", (V, W))
        )
        | norms(output_norm="transformer.encoder.final_layernorm"),
        NORMS | GLM_OWN | biases("attn_qkv", of=GLM_OWN),
        layer="transformer.encoder.layers",
        keys={
            "context_length": 64,
            "attention.head_count_kv": GROUPS,
            "rope.freq_base": 500000.0,
            "rope.dimension_count": HEAD // 2,
        },
        without=(
            "num_hidden_layers",
            "intermediate_size",
            "max_position_embeddings",
            "vocab_size",
            "num_key_value_heads",
        ),
        spare={"transformer.rotary_pos_emb.inv_freq": (2,)},
    ),
    "glm": Family(
        "chatglm",
        "chatglm",
        hf("GlmForCausalLM", head_dim=HEAD, **PARTIAL),
        ENDS,
        NORMS | ATTENTION | QKV_BIAS | FUSED_GATE_UP,
        keys={"rope.dimension_count": HEAD // 2},
    ),
    "glm4": Family(
        "glm4",
        "glm4",
        hf("Glm4ForCausalLM", head_dim=HEAD, attention_bias=True, **PARTIAL),
        ENDS,
        norms(
            attn_norm="input_layernorm",
            post_attention_norm="post_self_attn_layernorm",
            ffn_norm="post_attention_layernorm",
            post_ffw_norm="post_mlp_layernorm",
        )
        | ATTENTION
        | QKV_BIAS
        | FUSED_GATE_UP,
        keys={"rope.dimension_count": HEAD // 2},
    ),
    "gemma": Family(
        "gemma",
        "gemma",
        hf("GemmaForCausalLM", head_dim=HEAD, hidden_act="gelu", tie_word_embeddings=True),
        GEMMA_ENDS,
        norms(plus_one, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm") | ATTENTION | MLP,
        keys={"attention.key_length": HEAD},
    ),
    "gemma2": Family(
        "gemma2",
        "gemma2",
        hf("Gemma2ForCausalLM", **GEMMA_CONFIG, **WINDOW, query_pre_attn_scalar=HEAD),
        GEMMA_ENDS,
        GEMMA_BLOCK | ATTENTION | MLP,
        keys={
            "attention.sliding_window": 40,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.sliding_window_pattern": None,
        },
    ),
    "gemma3": Family(
        "gemma3",
        "gemma3",
        hf("Gemma3ForCausalLM", **GEMMA_CONFIG, **WINDOW, **SLIDE, query_pre_attn_scalar=HEAD)
        | {"rope_theta": 1e6, "rope_local_base_freq": 20000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        GEMMA_ENDS,
        GEMMA_BLOCK | ATTENTION | changed(HEAD_NORMS, attn_q_norm=plus_one, attn_k_norm=plus_one) | MLP,
        keys={
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": [True, False],
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 20000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "phi2": Family(
        "phi2",
        "phi2",
        hf("PhiForCausalLM", hidden_act="gelu_new", **PARTIAL),
        matrices(token_embd=("model.embed_tokens", (V, W)), output=("lm_head", (V, W)))
        | {"output.bias": ("lm_head.bias", (V,), same)}
        | norms(bias=True, output_norm="model.final_layernorm"),
        norms(bias=True, attn_norm="input_layernorm")
        | PHI2_ATTENTION
        | biases(*("attn_q", "attn_k", "attn_v", "attn_output"), of=PHI2_ATTENTION)
        | PHI2_FF
        | biases("ffn_up", "ffn_down", of=PHI2_FF),
        keys={"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": HEAD // 2},
    ),
    "phi3": Family(
        "phi3",
        "phi3",
        hf("Phi3ForCausalLM", original_max_position_embeddings=32)
        | {"rope_scaling": {"type": "longrope", "long_factor": [1.5, 4.0], "short_factor": [1.0, 2.0]}},
        ENDS
        | {
            "rope_factors_long.weight": ([], (), lambda _: np.array([1.5, 4.0], np.float32)),
            "rope_factors_short.weight": ([], (), lambda _: np.array([1.0, 2.0], np.float32)),
        },
        NORMS
        | matrices(attn_qkv=("self_attn.qkv_proj", (Q + 2 * KV, W)), attn_output=("self_attn.o_proj", (W, Q)))
        | FUSED_GATE_UP,
        keys={
            "attention.sliding_window": 0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": (1 + np.log(4) / np.log(32)) ** 0.5,
        },
    ),
    "gpt2": Family(
        "gpt2",
        "gpt2",
        {
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": W,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": CTX,
            "vocab_size": V,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
        },
        matrices(token_embd=("transformer.wte", (V, W)), position_embd=("transformer.wpe", (CTX, W)))
        | norms(bias=True, output_norm="transformer.ln_f"),
        norms(bias=True, attn_norm="ln_1", ffn_norm="ln_2") | GPT2_MATRICES | GPT2_BIASES,
        layer="transformer.h",
        keys={"attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 4 * W, "rope.freq_base": None},
        without=tuple(BASE),
        spare={"transformer.h.0.attn.bias": (1, 1, CTX, CTX)},
    ),
    "gptneox": Family(
        "gptneox",
        "gptneox",
        hf("GPTNeoXForCausalLM", hidden_act="gelu", rotary_pct=0.5, rotary_emb_base=20000),
        matrices(token_embd=("gpt_neox.embed_in", (V, W)), output=("embed_out", (V, W)))
        | norms(bias=True, output_norm="gpt_neox.final_layer_norm"),
        norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm") | NEOX | NEOX_BIASES,
        layer="gpt_neox.layers",
        keys={"rope.dimension_count": HEAD // 2, "rope.freq_base": 20000.0, "use_parallel_residual": True},
        without=("num_key_value_heads", "rope_theta"),
        spare={"gpt_neox.layers.1.attention.masked_bias": (), "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (2,)},
    ),
    "starcoder2": Family(
        "starcoder2",
        "starcoder2",
        hf("Starcoder2ForCausalLM", hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, **WINDOW),
        matrices(token_embd=("model.embed_tokens", (V, W))) | norms(bias=True, output_norm="model.norm"),
        norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
        | ATTENTION
        | biases("attn_q", "attn_k", "attn_v", "attn_output", of=ATTENTION)
        | STARCODER_FF
        | biases("ffn_up", "ffn_down", of=STARCODER_FF),
        keys={"attention.sliding_window": 40},
    ),
    "stablelm": Family(
        "stablelm",
        "stablelm",
        hf("StableLmForCausalLM", use_qkv_bias=True, **PARTIAL),
        matrices(token_embd=("model.embed_tokens", (V, W)), output=("lm_head", (V, W)))
        | norms(bias=True, output_norm="model.norm"),
        norms(bias=True, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm") | ATTENTION | QKV_BIAS | MLP,
        keys={"use_parallel_residual": False, "rope.dimension_count": HEAD // 2},
    ),
    "stablelm 12B": Family(
        "stablelm",
        "stablelm",
        hf("StableLmForCausalLM", qk_layernorm=True, use_parallel_residual=True, **PARTIAL),
        matrices(token_embd=("model.embed_tokens", (V, W)), output=("lm_head", (V, W)))
        | norms(bias=True, output_norm="model.norm"),
        norms(bias=True, attn_norm="input_layernorm")
        | ATTENTION
        | MLP
        | {
            "attn_q_norm.weight": ([f"self_attn.q_layernorm.norms.{i}.weight" for i in range(HEADS)], (HEAD,), stacked),
            "attn_k_norm.weight": (
                [f"self_attn.k_layernorm.norms.{i}.weight" for i in range(GROUPS)],
                (HEAD,),
                stacked,
            ),
        },
        keys={"use_parallel_residual": True},
    ),
    "falcon 7B": Family(
        "falcon",
        "falcon",
        hf("FalconForCausalLM", tie_word_embeddings=True),
        FALCON_ENDS,
        norms(bias=True, attn_norm="input_layernorm") | FALCON_7B,
        layer="transformer.h",
        keys={"attention.head_count_kv": 1, "tensor_data_layout": "jploski", "feed_forward_length": 4 * W},
        without=("num_key_value_heads", "intermediate_size"),
    ),
    "falcon 40B": Family(
        "falcon",
        "falcon",
        hf("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=GROUPS, tie_word_embeddings=True),
        FALCON_ENDS,
        norms(bias=True, attn_norm="ln_mlp", attn_norm_2="ln_attn") | FALCON_40B,
        layer="transformer.h",
        keys={"attention.head_count_kv": GROUPS, "feed_forward_length": 4 * W},
        without=("num_key_value_heads", "intermediate_size"),
    ),
    "baichuan": Family(
        "baichuan",
        "baichuan",
        hf("BaichuanForCausalLM"),
        ENDS,
        NORMS | BAICHUAN | MLP,
        keys={"attention.head_count_kv": HEADS, "tensor_data_layout": "Meta AI original pth"},
        without=("num_key_value_heads",),
    ),
    "internlm2": Family(
        "internlm2",
        "internlm2",
        hf("InternLM2ForCausalLM", bias=False, rope_scaling={"type": "dynamic", "factor": 2.0}),
        matrices(token_embd=("model.tok_embeddings", (V, W)), output=("output", (V, W)))
        | norms(output_norm="model.norm"),
        norms(attn_norm="attention_norm", ffn_norm="ffn_norm") | LM2,
    ),
    "olmo2": Family(
        "olmo2",
        "olmo2",
        hf("Olmo2ForCausalLM"),
        ENDS,
        norms(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm")
        | norms(width=Q, attn_q_norm="self_attn.q_norm")
        | norms(width=KV, attn_k_norm="self_attn.k_norm")
        | ATTENTION
        | MLP,
        keys={"attention.sliding_window": None},
    ),
    "olmo3": Family(
        "olmo2",
        "olmo2",
        hf("Olmo3ForCausalLM", **WINDOW, **SLIDE),
        ENDS,
        norms(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm")
        | norms(width=Q, attn_q_norm="self_attn.q_norm")
        | norms(width=KV, attn_k_norm="self_attn.k_norm")
        | ATTENTION
        | MLP,
        keys={"attention.sliding_window": 40, "attention.sliding_window_pattern": [True, False]},
    ),
    "granite": Family(
        "granite", "granite", hf("GraniteForCausalLM", **MULTIPLIERS), ENDS, NORMS | LLAMA_ATTENTION | MLP, keys=SCALES
    ),
    "granitemoe": Family(
        "granite",
        "granitemoe",
        hf("GraniteMoeSharedForCausalLM", **MULTIPLIERS)
        | {"num_local_experts": EXPERTS, "intermediate_size": EF, "shared_intermediate_size": SHARED},
        ENDS,
        NORMS
        | LLAMA_ATTENTION
        | matrices(ffn_gate_inp=("block_sparse_moe.router.layer", (EXPERTS, W)))
        | {
            f"ffn_{name}_exps.weight": (
                "block_sparse_moe.input_linear.weight",
                (EXPERTS, 2 * EF, W),
                lambda parts, first=first: np.stack([matrix[first : first + EF] for matrix in parts[0]]),
            )
            for name, first in (("gate", 0), ("up", EF))
        }
        | matrices(ffn_down_exps=("block_sparse_moe.output_linear", (EXPERTS, W, EF)))
        | {
            "ffn_gate_shexp.weight": ("shared_mlp.input_linear.weight", (2 * SHARED, W), rows(0, SHARED)),
            "ffn_up_shexp.weight": ("shared_mlp.input_linear.weight", (2 * SHARED, W), rows(SHARED, SHARED)),
            "ffn_down_shexp.weight": ("shared_mlp.output_linear.weight", (W, SHARED), same),
        },
        keys=SCALES | {"expert_count": EXPERTS, "expert_used_count": 2, "expert_shared_feed_forward_length": SHARED},
    ),
    "smollm3": Family(
        "smollm3", "smollm3", hf("SmolLM3ForCausalLM", no_rope_layers=[1, 1]), ENDS, NORMS | LLAMA_ATTENTION | MLP
    ),
    "exaone4": Family(
        "exaone4",
        "exaone4",
        hf("Exaone4ForCausalLM", **WINDOW, sliding_window_pattern="LLLG"),
        ENDS,
        norms(post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm")
        | ATTENTION
        | HEAD_NORMS
        | MLP,
        keys={"attention.sliding_window": 40, "attention.sliding_window_pattern": [True, True]},
    ),
    "cohere2": Family(
        "cohere2",
        "cohere2",
        hf("Cohere2ForCausalLM", **WINDOW, **SLIDE, logit_scale=0.25, tie_word_embeddings=True),
        TIED,
        norms(attn_norm="input_layernorm") | ATTENTION | MLP,
        keys={
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": [True, False],
            "logit_scale": 0.25,
            "attention.layer_norm_epsilon": 1e-5,
        },
    ),
    "deepseek2": Family(
        "deepseek2",
        "deepseek2",
        hf("DeepseekV2ForCausalLM", **LATENT, q_lora_rank=None, first_k_dense_replace=1, n_shared_experts=2)
        | {
            "n_routed_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": EF,
            "num_key_value_heads": HEADS,
        },
        ENDS,
        NORMS | LATENT_ATTENTION | ROUTER | SHARED_FF | experts("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
        odd={0: NORMS | LATENT_ATTENTION | MLP},
        keys=MIXTURE_KEYS
        | {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": RANK,
            "attention.key_length": RANK + ROPE,
            "attention.value_length": RANK,
            "attention.key_length_mla": NOPE + ROPE,
            "attention.value_length_mla": VALUE,
            "attention.q_lora_rank": None,
            "expert_shared_count": 2,
            "leading_dense_block_count": 1,
            "expert_gating_func": 1,
            "rope.dimension_count": ROPE,
        },
    ),
    "gpt_oss": Family(
        "gpt_oss",
        "gpt-oss",
        hf("GptOssForCausalLM", **WINDOW, head_dim=HEAD, num_local_experts=EXPERTS, num_experts_per_tok=2),
        ENDS,
        OSS,
        keys={
            "expert_feed_forward_length": F,
            "attention.sliding_window": 40,
            "attention.sliding_window_pattern": None,
        },
    ),
    "llama4": Family(
        "llama4",
        "llama4",
        hf("Llama4ForCausalLM", **LLAMA4, floor_scale=100, attn_scale=0.25),
        ENDS,
        LLAMA4_EXPERTS,
        odd={0: LLAMA4_DENSE},
        keys=LLAMA4_KEYS | {"attention.temperature_length": 100, "attention.temperature_scale": 0.25},
    ),
    "llama4, pictures": Family(
        "llama4",
        "llama4",
        nested("Llama4ForConditionalGeneration", **LLAMA4, no_rope_layers=[], attn_temperature_tuning=4),
        {ours: (f"language_model.{theirs}", shape, make) for ours, (theirs, shape, make) in ENDS.items()},
        LLAMA4_EXPERTS,
        layer="language_model.model.layers",
        odd={0: LLAMA4_DENSE},
        keys=LLAMA4_KEYS | {"attention.temperature_length": 8192, "attention.temperature_scale": 0.1},
        spare={"vision_model.patch_embedding.linear.weight": (2, 3), "multi_modal_projector.linear_1.weight": (2, 3)},
    ),
    "lfm2": Family(
        "lfm2",
        "lfm2",
        hf("Lfm2ForCausalLM", layer_types=["conv", "full_attention"], tie_embedding=True)
        | {"block_ff_dim": 36, "block_multiple_of": 8, "norm_eps": 1e-5},
        matrices(token_embd=("model.embed_tokens", (V, W))) | norms(token_embd_norm="model.embedding_norm"),
        LFM2_ATTENTION,
        odd={0: LFM2_FF | CONVOLUTION},
        keys={"attention.head_count_kv": [0, GROUPS], "shortconv.l_cache": 3, "feed_forward_length": F},
        without=("tie_word_embeddings", "intermediate_size"),
    ),
    "bert": Family(
        "bert",
        "bert",
        hf("BertForMaskedLM", hidden_act="gelu", layer_norm_eps=1e-12, type_vocab_size=2),
        BERT_ENDS,
        BERT_BLOCK,
        layer="bert.encoder.layer",
        keys={
            "attention.causal": False,
            "attention.layer_norm_epsilon": 1e-12,
            "attention.head_count_kv": HEADS,
            "pooling_type": None,
        },
        without=NO_BIAS_NEEDED,
        spare={"cls.predictions.bias": (V,), "bert.pooler.dense.weight": (W, W)},
    ),
    "distilbert": Family(
        "distilbert",
        "bert",
        hf("DistilBertForMaskedLM", activation="gelu", sinusoidal_pos_embds=False, dim=W, hidden_dim=F, n_layers=LAYERS)
        | {"n_heads": HEADS},
        DISTIL_ENDS,
        DISTIL_BLOCK,
        layer="distilbert.transformer.layer",
        keys={
            "attention.causal": False,
            "attention.layer_norm_epsilon": 1e-12,
            "attention.head_count_kv": HEADS,
            "pooling_type": None,
        },
        without=(*NO_BIAS_NEEDED, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        spare={"vocab_projector.bias": (V,), "vocab_transform.weight": (W, W), "vocab_layer_norm.bias": (W,)},
    ),
    "distilbert labels": Family(
        "distilbert",
        "bert",
        hf("DistilBertForSequenceClassification", num_labels=2, hidden_act="gelu", layer_norm_eps=1e-12, hidden_dim=F),
        DISTIL_ENDS | classifier("pre_classifier", "classifier", 2),
        DISTIL_BLOCK,
        layer="distilbert.transformer.layer",
        keys={"pooling_type": 4, "classifier.output_labels": ["LABEL_0", "LABEL_1"], "attention.head_count_kv": HEADS},
        without=(*NO_BIAS_NEEDED, "intermediate_size"),
    ),
    "mpnet": Family(
        "mpnet",
        "mpnet",
        hf("MPNetForMaskedLM", hidden_act="gelu", relative_attention_num_buckets=32, layer_norm_eps=1e-5),
        MPNET_ENDS,
        MPNET_BLOCK,
        layer="mpnet.encoder.layer",
        keys={
            "attention.causal": False,
            "attention.head_count_kv": HEADS,
            "attention.relative_buckets_count": 32,
            "context_length": CTX - 2,
        },
        without=NO_BIAS_NEEDED,
        spare={"lm_head.bias": (V,), "mpnet.pooler.dense.weight": (W, W), "mpnet.embeddings.position_ids": (1, CTX)},
    ),
    "roberta labels": Family(
        "bert",
        "bert",
        hf("XLMRobertaForSequenceClassification", hidden_act="gelu", type_vocab_size=1, pad_token_id=1)
        | {"id2label": {"0": "no", "1": "yes", "2": "so"}},
        {
            name: (str(theirs).replace("bert.", "roberta."), shape, make)
            for name, (theirs, shape, make) in BERT_ENDS.items()
        }
        | {
            "token_types.weight": ("roberta.embeddings.token_type_embeddings.weight", (1, W), same),
            "position_embd.weight": ("roberta.embeddings.position_embeddings.weight", (CTX, W), rows(2, CTX - 2)),
        }
        | classifier("classifier.dense", "classifier.out_proj", 3),
        BERT_BLOCK,
        layer="roberta.encoder.layer",
        keys={"pooling_type": 4, "classifier.output_labels": ["no", "yes", "so"], "context_length": CTX - 2}
        | {"attention.head_count_kv": HEADS},
        without=NO_BIAS_NEEDED,
    ),
    "bert labels": Family(
        "bert",
        "bert",
        hf("BertForSequenceClassification", hidden_act="gelu", num_labels=2),
        BERT_ENDS | classifier("bert.pooler.dense", "classifier", 2),
        BERT_BLOCK,
        layer="bert.encoder.layer",
        keys={"pooling_type": 4, "classifier.output_labels": ["LABEL_0", "LABEL_1"], "attention.head_count_kv": HEADS},
        without=NO_BIAS_NEEDED,
    ),
    "modern bert": Family(
        "modern_bert",
        "modern-bert",
        hf("ModernBertForMaskedLM", hidden_activation="gelu", local_attention=64, global_rope_theta=80000.0),
        MODERN_ENDS,
        MODERN_BLOCK | norms(attn_norm="attn_norm"),
        layer="model.layers",
        odd={0: MODERN_BLOCK},
        keys={
            "attention.causal": False,
            "attention.sliding_window": 64,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base": 80000.0,
            "rope.freq_base_swa": 10000.0,
            "hidden_activation": "gelu",
            "attention.head_count_kv": HEADS,
        },
        without=(*NO_BIAS_NEEDED, "rope_theta"),
        spare={"head.dense.weight": (W, W), "head.norm.weight": (W,), "decoder.bias": (V,)},
    ),
    "modern bert labels": Family(
        "modern_bert",
        "modern-bert",
        hf("ModernBertForSequenceClassification", num_labels=2, classifier_pooling="mean"),
        MODERN_ENDS
        | norms(**{"cls.norm": "head.norm"})
        | {"cls.weight": ("head.dense.weight", (W, W), same)}
        | {
            "cls.output.weight": ("classifier.weight", (2, W), same),
            "cls.output.bias": ("classifier.bias", (2,), same),
        },
        MODERN_BLOCK | norms(attn_norm="attn_norm"),
        layer="model.layers",
        odd={0: MODERN_BLOCK},
        keys={"pooling_type": 4, "classifier.pooling_type": 1, "attention.head_count_kv": HEADS},
        without=NO_BIAS_NEEDED,
    ),
    "nomic bert": Family(
        "nomic_bert",
        "nomic-bert",
        {
            "architectures": ["NomicBertModel"],
            "n_embd": W,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_inner": F,
            "n_positions": 8192,
            "max_trained_positions": 2048,
            "vocab_size": V,
            "activation_function": "swiglu",
            "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 1000,
            "type_vocab_size": 2,
        },
        matrices(
            token_embd=("embeddings.word_embeddings", (V, W)), token_types=("embeddings.token_type_embeddings", (2, W))
        )
        | norms(bias=True, token_embd_norm="emb_ln"),
        matrices(
            attn_qkv=("attn.Wqkv", (3 * W, W)),
            attn_output=("attn.out_proj", (W, W)),
            ffn_up=("mlp.fc11", (F, W)),
            ffn_gate=("mlp.fc12", (F, W)),
            ffn_down=("mlp.fc2", (W, F)),
        )
        | norms(bias=True, attn_output_norm="norm1", layer_output_norm="norm2"),
        layer="encoder.layers",
        keys={"context_length": 2048, "rope.freq_base": 1000.0, "attention.causal": False, "rope.dimension_count": HEAD}
        | {"attention.head_count_kv": HEADS},
        without=tuple(BASE),
    ),
    "jina 3": Family(
        "jina_bert_v3",
        "jina-bert-v3",
        hf("JinaEmbeddingsV3Model", hidden_act="gelu", type_vocab_size=1),
        JINA3_ENDS,
        JINA3_BLOCK,
        layer="encoder.layers",
        keys={"attention.causal": False, "attention.head_count_kv": HEADS, "pooling_type": 1},
        without=NO_BIAS_NEEDED,
        spare={"pooler.dense.weight": (W, W)},
    ),
    "jina 3 labels": Family(
        "jina_bert_v3",
        "jina-bert-v3",
        hf("JinaEmbeddingsV3ForSequenceClassification", hidden_act="gelu", type_vocab_size=1, num_labels=3),
        {ours: (f"roberta.{theirs}", shape, make) for ours, (theirs, shape, make) in JINA3_ENDS.items()}
        | classifier("classifier.dense", "classifier.out_proj", 3),
        JINA3_BLOCK,
        layer="roberta.encoder.layers",
        keys={"pooling_type": 4, "classifier.output_labels": ["LABEL_0", "LABEL_1", "LABEL_2"]},
        without=NO_BIAS_NEEDED,
    ),
    "jina 3, adapters": Family(
        "bert",
        "jina-bert-v3",
        hf("XLMRobertaModel", hidden_act="gelu", type_vocab_size=1, position_embedding_type="rotary")
        | {"rotary_emb_base": 500.0, "lora_adaptations": ["separation", "classification"]},
        {ours: (original(theirs), shape, make) for ours, (theirs, shape, make) in JINA3_ENDS.items()},
        {ours: (original(theirs), shape, make) for ours, (theirs, shape, make) in JINA3_BLOCK.items()},
        layer="roberta.encoder.layers",
        keys={"rope.freq_base": 500.0},
        without=(*NO_BIAS_NEEDED, "rope_theta"),
        spare={"roberta.encoder.layers.0.mixer.Wqkv.parametrizations.weight.0.lora_A": (2, 4, W)},
    ),
    "jina bert": Family(
        "jina_bert_v2",
        "jina-bert-v2",
        hf("JinaBertForMaskedLM", **JINA, emb_pooler="mean"),
        JINA_ENDS,
        JINA_BLOCK
        | {"ffn_gate.weight": ("mlp.gated_layers.weight", (2 * F, W), rows(0, F))}
        | {"ffn_up.weight": ("mlp.gated_layers.weight", (2 * F, W), rows(F, F))}
        | matrices(ffn_down=("mlp.wo", (W, F)))
        | norms(bias=True, layer_output_norm="mlp.layernorm")
        | {"ffn_down.bias": ("mlp.wo.bias", (W,), same)},
        layer="bert.encoder.layer",
        keys=JINA_KEYS,
        without=NO_BIAS_NEEDED,
        spare={"cls.predictions.bias": (V,), "bert.pooler.dense.weight": (W, W)},
    ),
    "jina bert code": Family(
        "jina_bert_v2",
        "jina-bert-v2",
        hf("JinaBertForMaskedLM", **JINA),
        JINA_ENDS,
        JINA_BLOCK
        | {"ffn_gate.weight": ("mlp.up_gated_layer.weight", (2 * F, W), rows(F, F))}
        | {"ffn_up.weight": ("mlp.up_gated_layer.weight", (2 * F, W), rows(0, F))}
        | matrices(ffn_down=("mlp.down_layer", (W, F)))
        | norms(
            bias=True,
            attn_q_norm="attention.self.layer_norm_q",
            attn_k_norm="attention.self.layer_norm_k",
            attn_norm_2="layer_norm_1",
            layer_output_norm="layer_norm_2",
        )
        | {"ffn_down.bias": ("mlp.down_layer.bias", (W,), same)},
        layer="bert.encoder.layer",
        keys=JINA_KEYS,
        without=NO_BIAS_NEEDED,
    ),
    "jina bert original": Family(
        "jina_bert_v2",
        "jina-bert-v2",
        hf("JinaBertForMaskedLM", **JINA | {"feed_forward_type": "original"}),
        JINA_ENDS,
        BERT_BLOCK,
        layer="bert.encoder.layer",
        keys=JINA_KEYS,
        without=NO_BIAS_NEEDED,
    ),
    "qwen3 embeds": Family(
        "qwen3",
        "qwen3",
        hf("Qwen3Model", head_dim=HEAD),
        {name: (str(theirs).removeprefix("model."), shape, make) for name, (theirs, shape, make) in TIED.items()},
        NORMS | ATTENTION | HEAD_NORMS | MLP,
        layer="layers",
    ),
    "qwen2 labels": Family(
        "qwen2",
        "qwen2",
        hf("Qwen2ForSequenceClassification", id2label={"0": "a", "1": "b", "2": "c"}),
        TIED | {"cls.output.weight": ("score.weight", (3, W), same)},
        NORMS | ATTENTION | QKV_BIAS | MLP,
        keys={"pooling_type": 4, "classifier.output_labels": ["a", "b", "c"]},
    ),
    "gemma labels": Family(
        "gemma",
        "gemma",
        hf("GemmaForSequenceClassification", num_labels=1, head_dim=HEAD, hidden_act="gelu", tie_word_embeddings=True),
        changed(TIED, output_norm=plus_one) | {"cls.output.weight": ("score.weight", (1, W), same)},
        changed(NORMS, attn_norm=plus_one, ffn_norm=plus_one) | ATTENTION | MLP,
        keys={"pooling_type": 4, "classifier.output_labels": ["LABEL_0"]},
    ),
    "gemma embeds": Family(
        "gemma3",
        "gemma-embedding",
        hf("Gemma3TextModel", **GEMMA_CONFIG, **WINDOW, query_pre_attn_scalar=HEAD, use_bidirectional_attention=True),
        {name: (str(theirs).removeprefix("model."), shape, make) for name, (theirs, shape, make) in GEMMA_ENDS.items()},
        GEMMA_BLOCK | ATTENTION | changed(HEAD_NORMS, attn_q_norm=plus_one, attn_k_norm=plus_one) | MLP,
        layer="layers",
        keys={"attention.causal": False, "attention.sliding_window": 40, "attention.sliding_window_pattern": None},
    ),
    "qwen35": Family(
        "qwen35",
        "qwen35",
        hf("Qwen3_5ForCausalLM", head_dim=HEAD, **NET, partial_rotary_factor=0.5),
        ENDS | norms(plus_one, output_norm="model.norm"),
        QWEN35_NORMS | QWEN35_ATTENTION | MLP,
        odd={0: QWEN35_NORMS | DELTA_NET | MLP},
        keys=NET_KEYS | {"rope.dimension_count": HEAD // 2, "rope.dimension_sections": [11, 11, 10, 0]},
        spare={"mtp.norm.weight": (W,)},
    ),
    "qwen35moe": Family(
        "qwen35",
        "qwen35moe",
        hf("Qwen3_5MoeForCausalLM", head_dim=HEAD, **NET, **MIXTURE, shared_expert_intermediate_size=SHARED)
        | {"partial_rotary_factor": 0.5},
        ENDS | norms(plus_one, output_norm="model.norm"),
        QWEN35_NORMS | QWEN35_ATTENTION | FUSED_MIXTURE,
        odd={0: QWEN35_NORMS | DELTA_NET | FUSED_MIXTURE},
        keys=NET_KEYS | MIXTURE_KEYS | {"expert_shared_feed_forward_length": SHARED},
    ),
    "t5": Family(
        "t5",
        "t5",
        T5_CONFIG | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        {"output.weight": ("lm_head.weight", (V, W), same)} | t5_tensors("encoder.embed_tokens", gated=True),
        {},
        keys={"decoder_block_count": 1, "attention.relative_buckets_count": 7, "decoder_start_token_id": 0}
        | {"attention.key_length": HEAD, "attention.head_count_kv": HEADS, "context_length": 512},
        without=tuple(BASE),
    ),
    "t5 tied": Family(
        "t5",
        "t5",
        T5_CONFIG,
        t5_tensors("shared", gated=False)
        | {"output.weight": ("shared.weight", (V, W), lambda p: p[0] * np.float32(0.25))},
        {},
        keys={"attention.head_count_kv": HEADS, "context_length": 512},
        without=tuple(BASE),
        spare={"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (7, HEADS)},
    ),
    "mt5 tied": Family(
        "t5",
        "t5",
        T5_CONFIG | {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"},
        t5_tensors("shared", gated=False) | {"output.weight": ("shared.weight", (V, W), same)},
        {},
        keys={"attention.head_count_kv": HEADS, "context_length": 512},
        without=tuple(BASE),
    ),
    "t5 encoder": Family(
        "t5",
        "t5encoder",
        T5_CONFIG | {"architectures": ["T5EncoderModel"]},
        {ours: entry for ours, entry in t5_tensors("shared", gated=False).items() if not ours.startswith("dec.")},
        {},
        keys={"attention.head_count_kv": HEADS, "context_length": 512, "attention.relative_buckets_count": 7},
        without=(*BASE, "decoder_block_count", "decoder_start_token_id"),
    ),
    "command r": Family(
        "command_r",
        "command-r",
        hf("CohereForCausalLM", logit_scale=0.25, tie_word_embeddings=True, model_max_length=64),
        TIED,
        norms(attn_norm="input_layernorm") | ATTENTION | MLP,
        keys={"logit_scale": 0.25, "context_length": 64, "attention.layer_norm_epsilon": 1e-5},
    ),
    "seed oss": Family(
        "seed_oss",
        "seed_oss",
        hf("SeedOssForCausalLM", head_dim=HEAD),
        ENDS,
        norms(attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm") | ATTENTION | QKV_BIAS | MLP,
    ),
}

PER_LAYER = 6  # width of embeddings of every layer's own
PER_LAYER_ENDS = TIED | {
    "per_layer_token_embd.weight": (
        "model.embed_tokens_per_layer.weight",
        (V - 3, LAYERS * PER_LAYER),
        lambda parts: np.array([*parts[0], parts[0][0], parts[0][0], parts[0][0]]),
    ),
    "per_layer_model_proj.weight": ("model.per_layer_model_projection.weight", (LAYERS * PER_LAYER, W), same),
    "per_layer_proj_norm.weight": ("model.per_layer_projection_norm.weight", (PER_LAYER,), same),
}
PER_LAYER_GATE = matrices(
    inp_gate=("per_layer_input_gate", (PER_LAYER, W)), proj=("per_layer_projection", (W, PER_LAYER))
) | norms(post_norm="post_per_layer_input_norm")
PLAIN_BLOCK = {ours: (*entry[:2], same) for ours, entry in GEMMA_BLOCK.items()}


def gemma4_attention(head: int, groups: int) -> dict[str, Entry]:
    return matrices(
        attn_q=("self_attn.q_proj", (HEADS * head, W)),
        attn_output=("self_attn.o_proj", (W, HEADS * head)),
        attn_k=("self_attn.k_proj", (groups * head, W)),
        attn_v=("self_attn.v_proj", (groups * head, W)),
    ) | norms(width=head, attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")


def without(entries: dict[str, Entry], *names: str) -> dict[str, Entry]:
    return {ours: entry for ours, entry in entries.items() if ours.removesuffix(".weight") not in names}


def gemma4_factors(*turning: float) -> dict[str, Entry]:
    return {"rope_freqs.weight": ([], (), lambda _: np.array([*turning, 1e30, 1e30, 1e30], np.float32))}


GEMMA4_ROPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    }
}
GEMMA4_EXPERTS = (
    norms(
        post_ffw_norm_1="post_feedforward_layernorm_1",
        pre_ffw_norm_2="pre_feedforward_layernorm_2",
        post_ffw_norm_2="post_feedforward_layernorm_2",
    )
    | matrices(ffn_gate_inp=("router.proj", (EXPERTS, W)))
    | {
        "layer_output_scale.weight": ("layer_scalar", (1,), same),  # may be absent
        "ffn_gate_inp.scale": ("router.scale", (W,), same),
        "ffn_down_exps.scale": ("router.per_expert_scale", (EXPERTS,), same),
        "ffn_gate_up_exps.weight": ("experts.gate_up_proj", (EXPERTS, 2 * EF, W), same),
        "ffn_down_exps.weight": ("experts.down_proj", (EXPERTS, W, EF), same),
    }
)
FAMILIES["gemma4"] = Family(
    "gemma4",
    "gemma4",
    hf("Gemma4ForCausalLM", **GEMMA_CONFIG, **WINDOW, **GEMMA4_ROPE, layer_types=["full_attention"] * LAYERS)
    | {"global_head_dim": 8, "num_kv_shared_layers": 1, "use_double_wide_mlp": True}
    | {"hidden_size_per_layer_input": PER_LAYER, "vocab_size_per_layer_input": V - 3},
    PER_LAYER_ENDS | norms(output_norm="model.norm") | gemma4_factors(1.0),
    PLAIN_BLOCK | gemma4_attention(8, GROUPS) | MLP | PER_LAYER_GATE,
    odd={
        1: PLAIN_BLOCK
        | without(gemma4_attention(8, GROUPS), "attn_k", "attn_v", "attn_k_norm")
        | matrices(
            ffn_gate=("mlp.gate_proj", (2 * F, W)),
            ffn_up=("mlp.up_proj", (2 * F, W)),
            ffn_down=("mlp.down_proj", (W, 2 * F)),
        )
        | PER_LAYER_GATE
    },
    spare={"model.layers.1.self_attn.k_proj.weight": (3, 3)},  # released checkpoints have them
    keys={
        "feed_forward_length": [F, 2 * F],
        "attention.key_length": 8,
        "attention.value_length": 8,
        "attention.key_length_swa": HEAD,
        "attention.value_length_swa": HEAD,
        "attention.sliding_window": 40,
        "attention.sliding_window_pattern": [False, False],
        "attention.shared_kv_layers": 1,
        "embedding_length_per_layer_input": PER_LAYER,
        "final_logit_softcapping": 0.0,  # llama.cpp takes an absent one for 30
        "rope.freq_base": 2e6,
        "rope.freq_base_swa": 20000.0,
        "rope.dimension_count": 8,
        "rope.dimension_count_swa": HEAD,
        "expert_count": None,
    },
)
FAMILIES["gemma4_experts"] = Family(
    "gemma4",
    "gemma4",
    hf("Gemma4ForCausalLM", **GEMMA_CONFIG, **WINDOW, **SLIDE, attention_k_eq_v=True, hidden_size_per_layer_input=0)
    | {"per_layer_config": {"1": {"head_dim": 8, "num_key_value_heads": 1}}, "final_logit_softcapping": 25.0}
    | {"rope_parameters": GEMMA4_ROPE["rope_parameters"] | {"sliding_attention": None}}
    | {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": EF},
    TIED | gemma4_factors(1.0),
    PLAIN_BLOCK | gemma4_attention(HEAD, GROUPS) | MLP | GEMMA4_EXPERTS,
    odd={1: PLAIN_BLOCK | without(gemma4_attention(8, 1), "attn_v") | MLP | GEMMA4_EXPERTS},
    keys=MIXTURE_KEYS
    | {
        "attention.head_count_kv": [GROUPS, 1],
        "attention.key_length": 8,
        "attention.key_length_swa": HEAD,
        "attention.sliding_window_pattern": [True, False],
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 25.0,
        "rope.freq_base_swa": 10000.0,
    },
)

STREAMS, LAUREL = 3, 6
GEMMA3N_BLOCK = (
    PLAIN_BLOCK
    | MLP
    | PER_LAYER_GATE
    | norms(altup_router_norm="altup.router_norm", laurel_post_norm="laurel.post_laurel_norm")
    | matrices(
        altup_router=("altup.modality_router", (STREAMS, W)),
        altup_predict_coef=("altup.prediction_coefs", (STREAMS * STREAMS, STREAMS)),
        altup_correct_coef=("altup.correction_coefs", (STREAMS, STREAMS)),
        laurel_l=("laurel.linear_left", (LAUREL, W)),
        laurel_r=("laurel.linear_right", (W, LAUREL)),
    )
    | {"altup_correct_scale.weight": ("altup.correct_output_scale", (W,), same)}
    | ATTENTION
    | HEAD_NORMS
)
GEMMA3N_ENDS = (
    PER_LAYER_ENDS
    | norms(output_norm="model.norm")
    | {
        f"{ours}.weight": ([f"model.{theirs}.{i}.weight" for i in range(STREAMS - 1)], (W, W), stacked)
        for ours, theirs in (("altup_proj", "altup_projections"), ("altup_unembd_proj", "altup_unembed_projections"))
    }
)
GEMMA3N_CONFIG = (
    hf("Gemma3nForCausalLM", **GEMMA_CONFIG, **WINDOW, altup_num_inputs=STREAMS, laurel_rank=LAUREL)
    | {"hidden_size_per_layer_input": PER_LAYER, "vocab_size_per_layer_input": V - 3}
    | {"layer_types": ["full_attention"] * LAYERS, "num_kv_shared_layers": 1, "altup_active_idx": 1}
    | {"rope_theta": 2e6, "rope_local_base_freq": 20000.0}  # as released
)
FAMILIES["gemma3n"] = Family(
    "gemma3n",
    "gemma3n",
    GEMMA3N_CONFIG | {"intermediate_size": [F, F], "activation_sparsity_pattern": [0.95, 0.0]},
    GEMMA3N_ENDS,
    GEMMA3N_BLOCK,
    odd={
        1: without(GEMMA3N_BLOCK, "attn_k", "attn_v", "attn_k_norm")
        | {  # not in the checkpoint, and not read, but llama.cpp requires them
            "attn_k.weight": ([], (), lambda _: np.zeros((KV, W), np.float32)),
            "attn_v.weight": ([], (), lambda _: np.zeros((KV, W), np.float32)),
            "attn_k_norm.weight": ([], (), lambda _: np.ones(HEAD, np.float32)),
        }
    },
    keys={
        "feed_forward_length": F,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.sliding_window": 40,
        "attention.sliding_window_pattern": [False, False],
        "attention.shared_kv_layers": 1,
        "embedding_length_per_layer_input": PER_LAYER,
        "final_logit_softcapping": 30.0,
        "rope.freq_base": 2e6,
        "rope.freq_base_swa": 20000.0,
        "altup.num_inputs": STREAMS,
        "altup.active_idx": 1,
        "activation_sparsity_scale": [np.float32(1.6448536), -np.inf],
    },
)
FAMILIES["gemma3n_released"] = Family(  # with keys and values that are not read; and layers of several widths
    "gemma3n",
    "gemma3n",
    GEMMA3N_CONFIG | {"intermediate_size": [F, 2 * F]},
    GEMMA3N_ENDS,
    GEMMA3N_BLOCK,
    odd={
        1: GEMMA3N_BLOCK
        | matrices(
            ffn_gate=("mlp.gate_proj", (2 * F, W)),
            ffn_up=("mlp.up_proj", (2 * F, W)),
            ffn_down=("mlp.down_proj", (W, 2 * F)),
        )
    },
    keys={"feed_forward_length": [F, 2 * F], "activation_sparsity_scale": [-np.inf, -np.inf]},
)
