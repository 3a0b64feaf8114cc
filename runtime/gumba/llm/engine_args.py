"""vLLM's keywords of ``LLM(...)`` that gumba renames, ignores or refuses.

Four tables define what each keyword means here. A keyword that only affects where or how fast vLLM computes has no effect and
is logged at level INFO; one that would change results or select another device is refused by name. None is vLLM's default.
Names: vLLM's ``LLM`` and ``EngineArgs``, versions 0.5 to 0.16.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gumba.errors import RequestError, ResourceError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.llm.engine_config import EngineConfig
from gumba.memory import available_memory
from gumba.runner.load_config import LoadConfig
from gumba.validation import KeywordError, require_boolean, require_count, require_number, show, suggestion

log = logging.getLogger("gumba")

N = TypeVar("N", int, float)

#: vLLM's name -> the keyword of ``LLM`` with the same meaning.
RENAMED = {
    "max_num_seqs": "max_sequences",
    "max_num_batched_tokens": "max_batch_tokens",
    "kv_cache_memory_bytes": "kv_memory",
    "speculative_model": "draft_model",
    "num_speculative_tokens": "draft_tokens",
}

#: Keywords about devices, speed and bookkeeping, which never change results.
WITHOUT_EFFECT = frozenset({
    # loading: gumba runs no code of a checkpoint, and reads its own files
    "trust_remote_code", "code_revision", "max_parallel_loading_workers", "model_loader_extra_config", "ignore_patterns",
    "use_tqdm_on_load", "safetensors_load_strategy", "pt_load_map_location", "served_model_name",
    # graphs, memory and parallel execution of accelerators
    "enforce_eager", "max_seq_len_to_capture", "max_context_len_to_capture", "compilation_config", "optimization_level",
    "cudagraph_capture_sizes", "max_cudagraph_capture_size", "attention_backend", "attention_config", "swap_space",
    "cpu_offload_gb", "cpu_offload_params", "block_size", "preemption_mode", "num_lookahead_slots", "enable_sleep_mode",
    "disable_custom_all_reduce", "distributed_executor_backend", "worker_use_ray", "ray_workers_use_nsight",
    "enable_expert_parallel", "enable_eplb", "enable_dbo", "all2all_backend", "disable_hybrid_kv_cache_manager",
    "kv_sharing_fast_prefill", "kernel_config", "use_v2_block_manager",
    # scheduling: which requests a step computes changes no result here
    "enable_chunked_prefill", "max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold",
    "num_scheduler_steps", "multi_step_stream_outputs", "scheduler_delay_factor", "scheduling_policy",
    "disable_chunked_mm_input", "disable_async_output_proc", "async_scheduling", "stream_interval",
    "prefix_caching_hash_algo", "max_num_scheduled_tokens", "scheduler_reserve_full_isl",
    # logs and statistics
    "disable_log_stats", "disable_log_requests", "enable_log_requests", "aggregate_engine_logging",
    "otlp_traces_endpoint", "collect_detailed_traces", "show_hidden_metrics_for_version", "kv_cache_metrics",
    "kv_cache_metrics_sample", "cudagraph_metrics", "enable_mfu_metrics", "enable_layerwise_nvtx_tracing",
    "enable_logging_iteration_details", "profiler_config", "fail_on_environ_validation",
    # how a grammar is compiled; reasoning and tool calls are recognised from the chat template
    "guided_decoding_backend", "guided_decoding_disable_fallback", "guided_decoding_disable_any_whitespace",
    "guided_decoding_disable_additional_properties", "structured_outputs_config", "reasoning_parser", "max_logprobs",
    # images and sound, which a prompt cannot have
    "allowed_local_media_path", "allowed_media_domains", "limit_mm_per_prompt", "media_io_kwargs",
    "disable_mm_preprocessor_cache", "mm_processor_cache_gb", "mm_processor_cache_type", "mm_encoder_tp_mode",
    "mm_encoder_attn_backend", "skip_mm_profiling", "interleave_mm_strings", "mm_shm_cache_max_object_size_mb",
    "language_model_only",
    # the tokenizer is that of the model file, and texts are always decoded
    "skip_tokenizer_init", "tokenizer_pool_size", "tokenizer_pool_type", "tokenizer_pool_extra_config",
    # adapters, which are off without ``enable_lora``
    "max_loras", "max_lora_rank", "max_cpu_loras", "lora_extra_vocab_size", "lora_dtype", "fully_sharded_loras",
    "enable_lora_bias", "max_prompt_adapters", "max_prompt_adapter_token",
})  # fmt: skip

#: Keywords that could change results or the device, and their accepted values (besides None), which do not.
ALLOWED: dict[str, tuple[object, ...]] = {
    "quantization": ("gguf",),
    "load_format": ("auto", "gguf", "safetensors", "hf", "pt"),
    "config_format": ("auto", "hf"),
    "tokenizer_mode": ("auto", "slow", "fast", "hf"),
    "model_impl": ("auto", "vllm", "transformers"),
    "task": ("auto", "generate", "embed", "embedding", "classify", "score"),
    "runner": ("auto", "generate", "pooling"),
    "convert": ("auto", "none", "embed"),
    "device": ("auto", "cpu"),
    "generation_config": ("auto", "vllm"),
    "override_generation_config": ({},),
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "decode_context_parallel_size": (1,),
    "prefill_context_parallel_size": (1,),
    "disable_sliding_window": (False,),
    "disable_cascade_attn": (False, True),
    "enable_lora": (False,),
    "enable_prompt_adapter": (False,),
    "qlora_adapter_name_or_path": (),
    "lora_modules": ([],),
    "rope_scaling": ({},),
    "rope_theta": (),
    "hf_overrides": ({},),
    "hf_config_path": (),
    "mm_processor_kwargs": ({},),
    "override_pooler_config": (),
    "pooler_config": (),
    "logits_processors": ([], ()),
    "logits_processor_pattern": (),
    "logprobs_mode": ("raw_logprobs",),
    "calculate_kv_scales": (False,),
    "quantization_param_path": (),
    "num_gpu_blocks_override": (),
    "enable_prompt_embeds": (False,),
    "enable_return_routed_experts": (False,),
    "kv_transfer_config": (),
    "kv_events_config": (),
    "ec_transfer_config": (),
    "worker_cls": ("auto",),
    "worker_extension_cls": ("",),
    "additional_config": ({},),
    "model_weights": ("",),
}

#: What to use instead of a keyword that is refused.
_INSTEAD = {
    "quantization": "the GGUF file determines the quantization; choose it with `gumba convert --type`",
    "tensor_parallel_size": "one LLM computes on the processors of one machine",
    "pipeline_parallel_size": "one LLM computes on the processors of one machine",
    "data_parallel_size": "one LLM computes on the processors of one machine",
    "num_gpu_blocks_override": "use kv_tokens or kv_memory",
    "kv_cache_dtype": "use kv_type='q8_0' for a cache of 8 bits",
    "override_generation_config": "use SamplingParams",
    "logits_processors": "use SamplingParams(logits_processors=...)",
    "pooler_config": "use embed(pooling=...)",
    "override_pooler_config": "use embed(pooling=...)",
}

#: Accepted values of ``dtype``; the weights keep the types of the file in any case.
DTYPES = frozenset({"auto", "half", "float16", "bfloat16", "float", "float32"})
#: vLLM's names of the KV cache's type -> ``kv_type``.
_KV_TYPES = {"auto": None, "float16": "f16", "half": "f16", "bfloat16": "bf16", "float32": "f32"}

#: Keywords that ``parse_engine_args`` handles individually.
_SPECIAL = frozenset({
    "gpu_memory_utilization", "dtype", "kv_cache_dtype", "seed", "enable_prefix_caching", "tokenizer", "revision",
    "tokenizer_revision", "hf_token", "download_dir", "speculative_config", "ngram_prompt_lookup_max",
    "ngram_prompt_lookup_min", "speculative_disable_mqa_scorer",
})  # fmt: skip


@dataclass(frozen=True)
class Download:
    """Where a model from a hub comes from.

    Attributes:
        revision: Branch, tag or commit; None: the hub's default.
        token: Access token for the hub.
        cache_dir: Folder in which downloaded files are kept; None: the default one.
    """

    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True)
class EngineArgs:
    """The keywords of ``LLM`` and vLLM's synonyms of them, checked.

    Attributes:
        config: The settings.
        download: Where the model comes from if it is on a hub.
        memory_fraction: Fraction of the available memory, 0 to 1, for weights and KV cache together; None: no limit.
    """

    config: EngineConfig
    download: Download
    memory_fraction: float | None

    def config_for(self, gguf: GGUFFile) -> EngineConfig:
        """The settings for the model in ``gguf``, with the size of the KV cache if ``memory_fraction`` limits it.

        Raises ResourceError if the weights alone need more than that fraction of the memory.
        """
        if self.memory_fraction is None:
            return self.config
        kv_memory = kv_budget(self.memory_fraction, gguf.file_size)
        return replace(self.config, load=replace(self.config.load, kv_memory=kv_memory))


def parse_engine_args(
    model: object, keywords: Mapping[str, Any], extra: Mapping[str, object], defaults: Mapping[str, object]
) -> EngineArgs:
    """Check the keywords of ``LLM``, and translate those of vLLM.

    Args:
        model: The model argument of ``LLM``. ``tokenizer`` may repeat it; any other tokenizer is a warning.
        keywords: Keywords of ``LLM`` -> value.
        extra: vLLM's keywords -> value, as the caller wrote them.
        defaults: Keywords of ``LLM`` -> default.

    Raises:
        KeywordError: A keyword that vLLM does not have either; the message names the nearest known one.
        RequestError: A value has the wrong type or range, or a setting is given under both of its names.
        UnsupportedError: A value that would change results, or the device.
    """
    n_ctx = keywords["n_ctx"]
    if keywords["max_model_len"] is not None:
        if n_ctx is not None:
            raise RequestError("max_model_len and n_ctx are the same setting: pass only one of them")
        n_ctx = require_count("max_model_len", keywords["max_model_len"], 1)
    values = _known_values(extra, defaults)
    synonyms = _synonyms(values)
    for ours, (theirs, _) in synonyms.items():
        if keywords[ours] != defaults[ours]:
            raise RequestError(f"{theirs} and {ours} are the same setting: pass only one of them")
    if str(values.get("tokenizer", model)) != str(model):
        log.warning("tokenizer=%s is ignored: gumba uses the tokenizer of the model file", show(values["tokenizer"]))
    settings = {**keywords, **{ours: value for ours, (_, value) in synonyms.items()}}
    memory_fraction = _memory_fraction(values, keywords, synonyms)
    seed = require_count("seed", values["seed"], 0, 2**64 - 1) if "seed" in values else None
    prefix_caching = require_boolean("enable_prefix_caching", values.get("enable_prefix_caching", True))
    revision = _revision(values)
    token = _text(values, "hf_token") if not isinstance(values.get("hf_token"), bool) else None
    download = Download(revision, token, _text(values, "download_dir"))
    load = LoadConfig(
        n_ctx=n_ctx,
        portable=require_boolean("portable", settings["portable"]),
        max_sequences=require_count("max_sequences", settings["max_sequences"], 1),
        **{
            name: settings[name]
            for name in ("n_threads", "max_batch_tokens", "kv_tokens", "kv_memory", "kv_type", "n_states")
        },
    )
    config = EngineConfig(
        load=load,
        prefix_caching=prefix_caching,
        draft_model=settings["draft_model"],
        draft_tokens=require_count("draft_tokens", settings["draft_tokens"], 1, 64),
        unload_after=_optional(require_number, "unload_after", settings["unload_after"], 0.0, 1e9),
        max_queue=_optional(require_count, "max_queue", settings["max_queue"], 0),
        seed=seed,
    )
    return EngineArgs(config, download, memory_fraction)


def _optional(require: Callable[..., N], name: str, value: object, *limits: float) -> N | None:
    return None if value is None else require(name, value, *limits)


def _known_values(extra: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The keywords of vLLM that are not None. Raises KeywordError for an unknown one, UnsupportedError for a refused value."""
    known = {*RENAMED, *WITHOUT_EFFECT, *ALLOWED, *_SPECIAL}
    for name in extra:
        if name not in known:
            raise KeywordError(
                f"LLM() got an unexpected keyword argument {name!r}{suggestion(name, {*known, *defaults})}"
            )
    values = {name: value for name, value in extra.items() if value is not None}
    for name, value in values.items():
        if name in ALLOWED and not _is_one_of(value, ALLOWED[name]):
            raise _refused(name, value, ALLOWED[name])
        if name in WITHOUT_EFFECT:
            log.info("%s=%s has no effect on the CPU", name, show(value))
    return values


def _synonyms(values: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """The settings given by vLLM's names: keyword of ``LLM`` -> (vLLM's name, value)."""
    synonyms = {RENAMED[name]: (name, value) for name, value in values.items() if name in RENAMED}
    synonyms |= _speculation(values)
    if "dtype" in values:
        check_dtype("dtype", values["dtype"])
    if "kv_cache_dtype" in values:
        kv_type = _kv_type(values["kv_cache_dtype"])
        if kv_type is not None:
            synonyms["kv_type"] = ("kv_cache_dtype", kv_type)
    return synonyms


def check_dtype(name: str, value: object) -> None:
    """Check a data type: a string, or an object whose ``str`` is one, such as ``torch.float16``.

    The weights keep the types of the file, so every floating-point type that models are loaded in is accepted.
    Raises UnsupportedError for any other value.
    """
    text = str(value).removeprefix("torch.").removeprefix("jax.numpy.")
    if isinstance(value, bool | int | float) or text not in DTYPES:
        raise UnsupportedError(
            f"{name}: expected one of {', '.join(sorted(DTYPES))} (the weights keep the types of the file), found {show(value)}"
        )


def kv_budget(fraction: float, weights_bytes: int) -> int | None:
    """Bytes for the KV cache if weights and cache may take ``fraction`` of the available memory; None if that is unknown.

    Raises ResourceError if the weights alone take more.
    """
    available = available_memory()
    if available is None:
        return None
    budget = int(fraction * available) - weights_bytes
    if budget <= 0:
        raise ResourceError(
            f"gpu_memory_utilization: {fraction:g} of {available >> 20} MB of available memory leaves nothing for the KV cache; "
            f"the weights alone need {weights_bytes >> 20} MB"
        )
    return budget


def _memory_fraction(
    values: Mapping[str, object], keywords: Mapping[str, object], synonyms: Mapping[str, object]
) -> float | None:
    fraction = values.get("gpu_memory_utilization")
    if fraction is None:
        return None
    number = require_number("gpu_memory_utilization", fraction, 0.0, 1.0)
    if number == 0.0:
        raise RequestError(f"gpu_memory_utilization: expected a number above 0 and at most 1, found {show(fraction)}")
    for name in ("kv_memory", "kv_tokens"):
        if keywords[name] is not None:
            raise RequestError(
                f"gpu_memory_utilization and {name} both set the size of the KV cache: pass only one of them"
            )
    return None if "kv_memory" in synonyms else number  # kv_cache_memory_bytes overrides it, as in vLLM


def _speculation(values: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """The keywords of ``LLM`` for a draft model: keyword -> (vLLM's name, value)."""
    config = values.get("speculative_config")
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise RequestError(f"speculative_config: expected a dictionary, found {show(config)}")
    unknown = set(config) - {"model", "num_speculative_tokens", "method", "draft_tensor_parallel_size",
                             "prompt_lookup_max", "prompt_lookup_min", "max_model_len", "quantization", "revision"}  # fmt: skip
    if unknown or config.get("method") not in (None, "draft_model", "ngram"):
        raise UnsupportedError(
            f"speculative_config: expected 'model' and 'num_speculative_tokens' (a draft model), found {show(dict(config))}"
        )
    if config.get("method") == "ngram" or config.get("model") is None:
        log.info("speculative_config: for prompt lookup use SamplingParams(prompt_lookup_tokens=...)")
        return {}
    synonyms = {"draft_model": ("speculative_config", config["model"])}
    if config.get("num_speculative_tokens") is not None:
        synonyms["draft_tokens"] = ("speculative_config", config["num_speculative_tokens"])
    return synonyms


def _kv_type(value: object) -> str | None:
    text = str(value).removeprefix("torch.")
    if text in _KV_TYPES:
        return _KV_TYPES[text]
    raise _refused("kv_cache_dtype", value, tuple(_KV_TYPES))


def _revision(values: Mapping[str, object]) -> str | None:
    revision, tokenizer = _text(values, "revision"), _text(values, "tokenizer_revision")
    if tokenizer is not None and tokenizer != (revision or "main"):
        raise _refused("tokenizer_revision", tokenizer, (revision or "main",))
    return revision


def _text(values: Mapping[str, object], name: str) -> str | None:
    value = values.get(name)
    if value is not None and not (hasattr(value, "__fspath__") or (isinstance(value, str) and value)):
        raise RequestError(f"{name}: expected a string of at least one character, found {show(value)}")
    return None if value is None else str(value)


def _is_one_of(value: object, allowed: Collection[object]) -> bool:
    text = str(value)  # e.g. of a torch.device or an enum member
    return any(
        (type(value) is type(one) and value == one)
        or (isinstance(one, str) and not isinstance(value, bool | int | float) and text == one)
        for one in allowed
    )


def _refused(name: str, value: object, allowed: Collection[object]) -> UnsupportedError:
    expected = " or ".join(show(one) for one in allowed) or "None"
    why = f" ({_INSTEAD[name]})" if name in _INSTEAD else ""
    return UnsupportedError(f"{name}: gumba supports {expected} only, found {show(value)}{why}")
