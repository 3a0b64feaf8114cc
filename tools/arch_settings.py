"""Sizes and settings that tiny models of tools/arch_cases.py have in common."""

from __future__ import annotations

from typing import Any

#: Tokens of every prompt: past the windows here (WINDOW), and past one page of the KV cache (64).
N_TOKENS = 71
WINDOW = 40
N_VOCAB = 131

SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
WIDE_HEADS = {"head_dim": 16}
DISTIL: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
ONE_LAYER = {"num_hidden_layers": 1}
TIED = {"tie_word_embeddings": True}
LABELS = "ForSequenceClassification"
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FULL, SLIDING = "full_attention", "sliding_attention"
LONG = [1.0, 1.3, 2.0, 3.5, 6.0, 9.0, 12.0, 17.0]
SHORT = [1.0, 1.0, 1.1, 1.2, 1.5, 1.9, 2.5, 3.0]


def longrope(original: int, n: int, **more: Any) -> dict[str, Any]:
    """LongRoPE on `n` frequencies, from a context of `original` tokens."""
    factors = {"long_factor": LONG[:n], "short_factor": SHORT[:n], "original_max_position_embeddings": original}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **more}
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


def partly(share: float) -> dict[str, Any]:
    """Heads of which only the first share is rotated."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}


PICTURES = "ForConditionalGeneration"
#: The smallest part for pictures of each family; nothing of it is converted.
VISION: dict[str, Any] = {"depth": 1, "num_heads": 2, "patch_size": 4}
VISIONS: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 1},
    "Qwen2_5_VL": {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    "Qwen3VL": {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
    "Qwen3VLMoe": {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
}


def pictures(family: str, settings: dict[str, Any], *, tied: bool = False) -> dict[str, Any]:
    """The configuration of a model that sees pictures, whose language model has these settings."""
    # In llama.cpp's interleaved form every pair must have a coordinate: it does not turn the others in texts.
    sections = {8: [2, 1, 1], 16: [3, 3, 2]}[settings.get("head_dim", 8)]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    text = {key: value for key, value in SIZES.items() if key != "tie_word_embeddings"} | {"rope_parameters": rope}
    return {"text_config": text | settings, "vision_config": VISION | VISIONS[family], "tie_word_embeddings": tied}


GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": None,
    "n_positions": 96,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "tie_word_embeddings": True,
}
MULTIPLIERS = {
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.5,
}
ONES = dict.fromkeys(MULTIPLIERS, 1.0)
LATENT = {
    "num_attention_heads": 2,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "intermediate_size": 32,
}
DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
GPT_OSS = WIDE_HEADS | {
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "intermediate_size": 32,
    "sliding_window": WINDOW,
}
GPT_OSS_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
MODERN = {"local_attention": 24, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3, "intermediate_size": 32}
#: Heads that are no power of two have slopes of two series.
JINA = {"num_attention_heads": 6, "hidden_size": 48, "intermediate_size": 32}
LLAMA4 = WIDE_HEADS | {
    "num_hidden_layers": 4,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "num_local_experts": 3,
    "attention_chunk_size": WINDOW,
    "floor_scale": WINDOW // 2 + 1,
    "attn_scale": 1.0,
}
T5 = {
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
#: Of a source, and of its answer: past the distance (128) from which on all is equally far.
T5_TOKENS = 150
JINA3 = {"pad_token_id": 1, "num_labels": 2, "type_vocab_size": 1}
JINA3_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
QWEN35 = {
    "head_dim": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": ["linear_attention", FULL, "linear_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
OLMO3_ROPE = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.2,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

GEMMA3N = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "intermediate_size": [64, 96, 32, 32],
    "activation_sparsity_pattern": [0.6, 0.9, 0.0, 0.0],
    "altup_num_inputs": 3,
    "altup_active_idx": 1,
    "laurel_rank": 24,
    "vocab_size_per_layer_input": 120,
    "hidden_size_per_layer_input": 32,
    "final_logit_softcapping": 10.0,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}
#: llama.cpp takes it that the last layers with keys of their own are one with a window, then one without.
GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "vocab_size_per_layer_input": N_VOCAB,
    "hidden_size_per_layer_input": 32,
    "intermediate_size": 32,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}
GEMMA4_EXPERTS = {
    "head_dim": 8,
    "global_head_dim": 16,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "layer_types": [SLIDING, FULL],
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "final_logit_softcapping": 5.0,
    "sliding_window": WINDOW,
    "tie_word_embeddings": True,
}
