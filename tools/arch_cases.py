"""The tiny models of tools/make_arch_goldens.py: one per architecture, or per variant with other computations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from arch_settings import (
    DEEPSEEK_YARN,
    DISTIL,
    FULL,
    GEMMA3_ROPE,
    GEMMA3N,
    GEMMA4,
    GEMMA4_EXPERTS,
    GPT2,
    GPT_OSS,
    GPT_OSS_YARN,
    JINA,
    JINA3,
    JINA3_ROPE,
    LABELS,
    LATENT,
    LLAMA4,
    MIXTURE,
    MODERN,
    MULTIPLIERS,
    N_TOKENS,
    OLMO3_ROPE,
    ONE_LAYER,
    ONES,
    PICTURES,
    PLAIN_ROPE,
    QWEN35,
    SLIDING,
    T5,
    T5_TOKENS,
    TIED,
    WIDE_HEADS,
    WINDOW,
    longrope,
    partly,
    pictures,
)


@dataclass(frozen=True)
class Case:
    """A tiny model.

    `name`: of the files, `arch_NAME`. `family`: transformers' classes are `familyConfig` and `familyForCausalLM`, or it is
    one of arch_numpy.py.
    `settings`: of the configuration, on top of `SIZES`. `without`: settings that turn off what is special in it, which must
    move the logits. `n_llama`: how many tokens are compared with llama.cpp: all of them; fewer if it leaves something out of
    the model that begins after so many; 0 if it does not have the architecture. `centre`: what norms' weights lie around.
    `encoder`: the result is the last hidden states, or scores of the whole. `remote`: the family to rewrite the checkpoint
    as, see arch_remote.py. `n_tokens`: of the prompt, of an encoder-decoder of source and answer. `n_dense`: width between
    two projections behind the pooling, as sentence-transformers has them.
    """

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    without: dict[str, Any] = field(default_factory=dict)
    n_llama: int = N_TOKENS
    centre: float = 1.0
    head: str = "ForCausalLM"
    n_tokens: int = N_TOKENS
    remote: str = ""
    encoder: bool = False
    n_dense: int = 0


CASES = [
    Case(
        "llama_mistral",
        "Mistral",
        WIDE_HEADS | {"sliding_window": WINDOW},
        {"sliding_window": None},
        WINDOW,  # llama.cpp has no windows in this architecture
    ),
    Case("llama_mixtral", "Mixtral", {"num_local_experts": 5, "intermediate_size": 32, "sliding_window": None}),
    Case("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    Case("qwen3", "Qwen3", WIDE_HEADS),
    Case("qwen2vl", "Qwen2VL", pictures("Qwen2VL", {}), head=PICTURES),
    Case("qwen2vl_2_5", "Qwen2_5_VL", pictures("Qwen2_5_VL", ONE_LAYER, tied=True), head=PICTURES),
    Case("qwen3vl", "Qwen3VL", pictures("Qwen3VL", WIDE_HEADS), head=PICTURES),
    Case("qwen3vlmoe", "Qwen3VLMoe", pictures("Qwen3VLMoe", WIDE_HEADS | MIXTURE | ONE_LAYER), head=PICTURES),
    Case(
        "gemma2",
        "Gemma2",
        WIDE_HEADS
        | {
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
        {"sliding_window": 256, "attn_logit_softcapping": None},
        centre=0.0,
    ),
    Case(
        "gemma3",
        "Gemma3",
        WIDE_HEADS
        | {
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "tie_word_embeddings": True,
            "num_hidden_layers": 3,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": GEMMA3_ROPE,
        },
        {"sliding_window": 256},
        centre=0.0,
    ),
    Case(
        "phi3",
        "Phi3",
        {"sliding_window": WINDOW} | PLAIN_ROPE,
        {"sliding_window": None},
        WINDOW,  # llama.cpp ignores this architecture's window
    ),
    Case(
        "phi3_longrope",
        "Phi3",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
        | longrope(64, 6, partial_rotary_factor=0.75),
        longrope(128, 6, partial_rotary_factor=0.75),
    ),
    Case("qwen2moe", "Qwen2Moe", MIXTURE | {"shared_expert_intermediate_size": 32}),
    Case("qwen3moe", "Qwen3Moe", WIDE_HEADS | MIXTURE | {"norm_topk_prob": True}),
    Case("gemma", "Gemma", WIDE_HEADS | {"tie_word_embeddings": True, "num_key_value_heads": 1}, centre=0.0),
    Case("phi2", "Phi", {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128} | partly(0.5)),
    Case("gpt2", "GPT2", GPT2, head="LMHeadModel"),
    Case("gptneox", "GPTNeoX", {"num_attention_heads": 2, "intermediate_size": 128} | partly(0.25)),
    Case(
        "gptneox_serial",
        "GPTNeoX",
        {"num_attention_heads": 4, "use_parallel_residual": False} | partly(1.0),
        {"use_parallel_residual": True},
    ),
    Case(
        "starcoder2",
        "Starcoder2",
        {"sliding_window": WINDOW, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
        {"sliding_window": None},
        WINDOW,  # llama.cpp ignores this architecture's window
    ),
    Case(
        "stablelm",
        "StableLm",
        {"num_attention_heads": 2, "use_qkv_bias": True, "num_key_value_heads": 2} | partly(0.25),
    ),
    Case(
        "stablelm_parallel",
        "StableLm",
        {"qk_layernorm": True, "use_parallel_residual": True} | partly(0.5),
    ),
    Case("falcon", "Falcon", {"num_attention_heads": 4, "ffn_hidden_size": 128, "tie_word_embeddings": True}),
    Case(
        "falcon_groups",
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 64},
    ),
    Case("olmo2", "Olmo2"),
    Case(
        "olmo2_windows",
        "Olmo3",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL], "rope_parameters": OLMO3_ROPE},
        {"sliding_window": 256},
    ),
    Case("granite", "Granite", MULTIPLIERS | {"tie_word_embeddings": True}, ONES),
    Case("granitemoe", "GraniteMoe", MULTIPLIERS | {"num_local_experts": 4, "intermediate_size": 32}, ONES),
    Case(
        "granitemoe_shared",
        "GraniteMoeShared",
        MULTIPLIERS | {"num_local_experts": 3, "intermediate_size": 32, "shared_intermediate_size": 32},
        ONES,
    ),
    Case(
        "smollm3",
        "SmolLM3",
        {"num_hidden_layers": 4, "intermediate_size": 32, "tie_word_embeddings": True, "no_rope_layers": [1, 1, 1, 0]},
        {"no_rope_layers": [1, 1, 1, 1]},
    ),
    Case("internlm2", "Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, remote="internlm2"),
    Case("baichuan", "Llama", {"num_key_value_heads": 4}, remote="baichuan", n_llama=0),  # rotates with 32 layers only
    Case("exaone4", "Exaone4", {"sliding_window": None, "layer_types": [FULL, FULL]}),
    Case(
        "exaone4_windows",
        "Exaone4",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
        {"sliding_window": 256},
        n_llama=0,  # has windows with 64 layers only
    ),
    Case(
        "cohere2",
        "Cohere2",
        {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL], "tie_word_embeddings": True, "logit_scale": 0.5},
        {"sliding_window": 256},
    ),
    Case("glm4", "Glm4", WIDE_HEADS | {"attention_bias": True} | partly(0.5)),
    Case("chatglm_glm", "Glm", WIDE_HEADS | {"num_attention_heads": 2, "attention_bias": True} | partly(0.5)),
    Case(
        "chatglm",
        "Glm",
        {"head_dim": 8, "attention_bias": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}},
        remote="chatglm",
    ),
    Case("qwen", "Qwen2", {"num_key_value_heads": 4}, remote="qwen"),
    # llama.cpp wants Q in two matrices, but for models of 27 layers.
    Case("deepseek2", "DeepseekV2", LATENT | {"q_lora_rank": None}, n_llama=0),
    Case(
        "deepseek2_yarn",
        "DeepseekV2",
        LATENT | {"q_lora_rank": 24, "rope_parameters": DEEPSEEK_YARN},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    Case(
        "deepseek2_v3",
        "DeepseekV3",
        LATENT
        | {"q_lora_rank": 24, "n_routed_experts": 6, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
        | {"num_key_value_heads": 2},
    ),
    Case("gpt_oss", "GptOss", GPT_OSS | PLAIN_ROPE, {"sliding_window": 256}),
    Case(
        "gpt_oss_yarn",
        "GptOss",
        GPT_OSS | {"rope_parameters": GPT_OSS_YARN},
        PLAIN_ROPE,
        n_llama=0,  # it rounds the ends of YaRN's ramp, which this family does not
    ),
    Case(
        "lfm2",
        "Lfm2",
        {"num_hidden_layers": 3, "layer_types": ["conv", FULL, "conv"], "tie_word_embeddings": True, "conv_L_cache": 3}
        | {"block_auto_adjust_ff_dim": False},
    ),
    Case("bert", "Bert", head="Model", encoder=True),
    Case(
        "bert_roberta_labels",
        "Roberta",
        {"pad_token_id": 1, "type_vocab_size": 1, "num_labels": 3},
        head=LABELS,
        encoder=True,
    ),
    Case("bert_labels", "Bert", {"num_labels": 3}, head=LABELS, encoder=True),
    Case("bert_distil", "DistilBert", DISTIL, head="Model", encoder=True),
    # llama.cpp has tanh in the head, where DistilBERT has ReLU.
    Case("bert_distil_labels", "DistilBert", DISTIL | {"num_labels": 3}, head=LABELS, encoder=True, n_llama=0),
    # Texts are longer than the distance from which on all keys have the same bias. llama.cpp does not have it.
    Case("mpnet", "MPNet", {"pad_token_id": 1}, head="Model", encoder=True, n_tokens=T5_TOKENS, n_llama=0),
    Case("modern_bert", "ModernBert", MODERN, {"local_attention": 256}, head="Model", encoder=True),
    Case(
        "modern_bert_labels",
        "ModernBert",
        MODERN | {"num_labels": 3, "classifier_pooling": "mean"},
        {"classifier_pooling": "cls"},
        head=LABELS,
        encoder=True,
    ),
    Case("jina_bert_v2", "JinaBert", JINA | {"layout": "first"}, {"alibi": 0.0}, head="Model", encoder=True),
    Case("jina_bert_v2_code", "JinaBert", JINA | {"layout": "second"}, {"alibi": 0.0}, head="Model", encoder=True),
    Case(
        "jina_bert_v2_original",
        "JinaBert",
        JINA | ONE_LAYER | {"layout": "original"},
        {"alibi": 0.0},
        head="Model",
        encoder=True,
    ),
    Case("jina_bert_v3", "JinaEmbeddingsV3", JINA3, JINA3_ROPE, head="Model", encoder=True),
    # llama.cpp has no heads on these.
    Case("jina_bert_v3_labels", "JinaEmbeddingsV3", JINA3 | ONE_LAYER, head=LABELS, encoder=True, n_llama=0),
    Case("nomic_bert", "NomicBert", {"pad_token_id": 0} | PLAIN_ROPE, head="Model", encoder=True),
    Case("qwen3_embedding", "Qwen3", WIDE_HEADS | {"num_hidden_layers": 1}, head="Model", encoder=True),
    # llama.cpp has classifiers on no decoder but qwen3, which then gives probabilities.
    Case("qwen2_labels", "Qwen2", ONE_LAYER | {"num_labels": 3}, head=LABELS, encoder=True, n_llama=0),
    Case("llama_labels", "Llama", ONE_LAYER | {"num_labels": 1}, head=LABELS, encoder=True, n_llama=0),
    Case(
        "llama_mistral_labels",
        "Mistral",
        ONE_LAYER | {"num_labels": 2, "sliding_window": WINDOW},
        {"sliding_window": None},
        head=LABELS,
        encoder=True,
        n_llama=0,
    ),
    Case("qwen3_labels", "Qwen3", ONE_LAYER | WIDE_HEADS | {"num_labels": 3}, head=LABELS, encoder=True),
    Case(
        "gemma_labels",
        "Gemma",
        ONE_LAYER | TIED | WIDE_HEADS | {"num_labels": 2},
        head=LABELS,
        encoder=True,
        n_llama=0,
        centre=0.0,
    ),
    Case(
        "gemma2_labels",
        "Gemma2",
        ONE_LAYER | TIED | {"num_labels": 2, "query_pre_attn_scalar": 8, "head_dim": 8, "final_logit_softcapping": 0.1},
        head=LABELS,
        encoder=True,
        n_llama=0,
        centre=0.0,
    ),
    Case(
        "gemma3_labels",
        "Gemma3Text",
        ONE_LAYER
        | TIED
        | {
            "num_labels": 2,
            "query_pre_attn_scalar": 8,
            "head_dim": 8,
            "layer_types": [SLIDING],
            "sliding_window": WINDOW,
        },
        {"sliding_window": 256},
        head=LABELS,
        encoder=True,
        n_llama=0,
        centre=0.0,
    ),
    Case(
        "gemma_embedding",
        "Gemma3Text",
        WIDE_HEADS
        | {"query_pre_attn_scalar": 16, "sliding_window": 24, "num_key_value_heads": 1, "intermediate_size": 32}
        | {"layer_types": [SLIDING, FULL], "use_bidirectional_attention": True},
        {"sliding_window": 512},
        head="Model",
        encoder=True,
        centre=0.0,
    ),
    Case(
        "gemma_embedding_dense",
        "Gemma3Text",
        TIED
        | WIDE_HEADS
        | {"query_pre_attn_scalar": 16, "sliding_window": WINDOW, "num_key_value_heads": 1, "intermediate_size": 32}
        | {"layer_types": [SLIDING, FULL], "use_bidirectional_attention": True},
        head="Model",
        encoder=True,
        centre=0.0,
        n_dense=96,
    ),
    Case("qwen35", "Qwen3_5", QWEN35 | {"num_hidden_layers": 3, "intermediate_size": 32}, centre=0.0),
    Case(
        "qwen35moe",
        "Qwen3_5Moe",
        QWEN35
        | MIXTURE
        | {"layer_types": ["linear_attention", FULL], "num_experts": 3, "shared_expert_intermediate_size": 32},
        centre=0.0,
    ),
    # llama.cpp knows chunks and scales of 8192 tokens only.
    Case("llama4", "Llama4", LLAMA4, {"attn_temperature_tuning": False}, n_llama=WINDOW // 2),
    Case(
        "llama4_dense",
        "Llama4",
        LLAMA4 | {"interleave_moe_layer_step": 2, "num_experts_per_tok": 2},
        {"attention_chunk_size": 256},
        n_llama=WINDOW // 2,
    ),
    Case(
        "t5",
        "T5",
        T5 | {"feed_forward_proj": "relu", "num_decoder_layers": 1, "d_kv": 8},
        head="ForConditionalGeneration",
        n_tokens=2 * T5_TOKENS,
    ),
    Case(
        "t5_gated",
        "T5",
        T5 | {"relative_attention_num_buckets": 12, "tie_word_embeddings": False},
        head="ForConditionalGeneration",
        n_tokens=2 * T5_TOKENS,
    ),
    Case("t5encoder", "T5", T5 | {"d_kv": 8}, head="EncoderModel", encoder=True, n_tokens=T5_TOKENS),
    Case(
        "t5_umt5",
        "UMT5",
        T5 | {"feed_forward_proj": "relu"},
        head="ForConditionalGeneration",
        n_tokens=2 * T5_TOKENS,
    ),
    Case("command_r", "Cohere", {"tie_word_embeddings": True, "logit_scale": 0.5}),
    Case(
        "command_r_norms",
        "Cohere",
        # llama.cpp looks for norms of heads in models of at least 64 layers.
        {
            "num_hidden_layers": 64,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "logit_scale": 0.5,
        }
        | {"num_key_value_heads": 1, "use_qk_norm": True, "tie_word_embeddings": True},
        {"use_qk_norm": False},
    ),
    Case("seed_oss", "SeedOss", WIDE_HEADS | {"attention_bias": True, "tie_word_embeddings": True}),
    # llama.cpp has other sizes of its own, see its converter.
    Case("gemma3n", "Gemma3n", GEMMA3N, {"sliding_window": 256}, n_llama=0),
    Case("gemma4", "Gemma4", GEMMA4, {"sliding_window": 256}),
    Case("gemma4_experts", "Gemma4", GEMMA4_EXPERTS, {"sliding_window": 256}),
]
