"""Checkpoints of families whose code is not in transformers, written from the ones of families that compute the same.

Each function turns (config.json, tensors) of the twin into those of the family: other names, fused matrices, nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TensorTable = dict[str, np.ndarray]


def chatglm(config: dict[str, Any], tensors: TensorTable) -> tuple[dict[str, Any], TensorTable]:
    """ChatGLM2, 3 and GLM-4-9B from transformers' Glm."""
    names = {"model.embed_tokens.weight": "embedding.word_embeddings.weight", "lm_head.weight": "output_layer.weight"}
    names |= {"model.norm.weight": "encoder.final_layernorm.weight"}
    inner = {
        "input_layernorm": "input_layernorm",
        "self_attn.o_proj": "self_attention.dense",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    result = {f"transformer.{new}": tensors[old] for old, new in names.items()}
    for i in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{i}.", f"transformer.encoder.layers.{i}."
        result |= {f"{new}{theirs}.weight": tensors[f"{old}{ours}.weight"] for ours, theirs in inner.items()}
        for kind in ("weight", "bias"):
            parts = [tensors[f"{old}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            result[f"{new}self_attention.query_key_value.{kind}"] = np.concatenate(parts)
    result["transformer.rotary_pos_emb.inv_freq"] = np.ones(4, np.float32)
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "rope_ratio": config["rope_parameters"]["rope_theta"] / 10000.0,
        "seq_length": config["max_position_embeddings"],
        "padded_vocab_size": config["vocab_size"],
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
    }, result


def internlm2(config: dict[str, Any], tensors: TensorTable) -> tuple[dict[str, Any], TensorTable]:
    """InternLM2 from Llama."""
    names = {"model.embed_tokens.weight": "model.tok_embeddings.weight", "lm_head.weight": "output.weight"}
    inner = {
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.wo",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }
    result = {new: tensors[old] for old, new in names.items()} | {"model.norm.weight": tensors["model.norm.weight"]}
    groups, width = config["num_key_value_heads"], config["hidden_size"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        result |= {f"{layer}{theirs}.weight": tensors[f"{layer}{ours}.weight"] for ours, theirs in inner.items()}
        parts = [tensors[f"{layer}self_attn.{name}_proj.weight"].reshape(groups, -1, width) for name in "qkv"]
        result[f"{layer}attention.wqkv.weight"] = np.concatenate(parts, 1).reshape(-1, width)
    changed = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    return config | changed | {"rope_theta": config["rope_parameters"]["rope_theta"]}, result


def baichuan(config: dict[str, Any], tensors: TensorTable) -> tuple[dict[str, Any], TensorTable]:
    """Baichuan from Llama."""
    result = {
        name: values for name, values in tensors.items() if "_proj" not in name or "mlp" in name or "o_proj" in name
    }
    for i in range(config["num_hidden_layers"]):
        inner = f"model.layers.{i}.self_attn."
        result[f"{inner}W_pack.weight"] = np.concatenate([tensors[f"{inner}{name}_proj.weight"] for name in "qkv"])
    changed = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}
    return config | changed, result


def qwen(config: dict[str, Any], tensors: TensorTable) -> tuple[dict[str, Any], TensorTable]:
    """Qwen 1 from Qwen 2."""
    names = {"model.embed_tokens.weight": "transformer.wte.weight", "lm_head.weight": "lm_head.weight"}
    names |= {"model.norm.weight": "transformer.ln_f.weight"}
    inner = {
        "input_layernorm": "ln_1",
        "self_attn.o_proj": "attn.c_proj",
        "post_attention_layernorm": "ln_2",
        "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj",
    }
    result = {new: tensors[old] for old, new in names.items()}
    for i in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{i}.", f"transformer.h.{i}."
        result |= {f"{new}{theirs}.weight": tensors[f"{old}{ours}.weight"] for ours, theirs in inner.items()}
        for kind in ("weight", "bias"):
            parts = [tensors[f"{old}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            result[f"{new}attn.c_attn.{kind}"] = np.concatenate(parts)
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "num_hidden_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": 2 * config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "kv_channels": config["hidden_size"] // config["num_attention_heads"],
        "layer_norm_epsilon": config["rms_norm_eps"],
        "rotary_emb_base": config["rope_parameters"]["rope_theta"],
        "rotary_pct": 1.0,
        "seq_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "no_bias": True,
    }, result


REMOTE = {"chatglm": chatglm, "internlm2": internlm2, "baichuan": baichuan, "qwen": qwen}
