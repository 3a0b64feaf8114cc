"""transformers' keywords of ``generate``: which have an effect, which are accepted without one, which are refused.

Names and defaults are transformers' (5.24).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from gumba.compat.transformers.loading import found_file, split_keywords
from gumba.errors import RequestError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import MAX_COUNT, KeywordError, show, suggestion

#: Keywords of sampling -> default.
SAMPLING = {
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
#: Keywords that ``Plan`` reads.
KEYWORDS = frozenset({
    *SAMPLING, "max_new_tokens", "max_length", "min_new_tokens", "min_length", "do_sample", "num_return_sequences", "num_beams",
    "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size",
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "stop_strings", "eos_token_id", "pad_token_id", "max_time", "penalty_alpha",
    "prompt_lookup_num_tokens", "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn", "streamer", "seed",
    "generation_config", "return_dict_in_generate",
})  # fmt: skip
#: Keywords about caches and speed, or what gumba does anyway.
WITHOUT_EFFECT = frozenset({
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "renormalize_logits",
    "remove_invalid_values", "synced_gpus", "use_mtp", "compile_config", "disable_compile", "prefill_chunk_size", "low_memory",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "assistant_early_exit", "assistant_ensemble_weight", "is_assistant",
    "speculation_type", "continuous_batching_config", "bos_token_id", "decoder_start_token_id", "trust_remote_code",
    "transformers_version", "_from_model_config", "tokenizer", "logits_to_keep",
})  # fmt: skip
#: Keywords that would change results, or request unsupported ones, and the values besides None that do not.
REFUSED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "top_h": (),
    "token_healing": (False,),
    "watermarking_config": (),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "custom_generate": (),
    "assistant_model": (),
    "assistant_tokenizer": (),
    "negative_prompt_ids": (),
    "negative_prompt_attention_mask": (),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}
#: Keys below ``general.sampling.``, where converters keep generation_config.json -> keyword, minimum, maximum.
_FILE_KEYS = {
    "temp": ("temperature", 0.0, 100.0),
    "top_k": ("top_k", 0, MAX_COUNT),
    "top_p": ("top_p", 0.0, 1.0),
    "min_p": ("min_p", 0.0, 1.0),
    "penalty_repeat": ("repetition_penalty", 0.01, 100.0),
}


def file_defaults(metadata: Mapping[str, object], tokenizer: Tokenizer) -> dict[str, Any]:
    """The file's defaults for ``generate``; a sampling parameter among them turns sampling on, as in transformers."""
    ends = [*([] if tokenizer.eos_id is None else [tokenizer.eos_id]), *sorted(tokenizer.eog_ids - {tokenizer.eos_id})]
    defaults: dict[str, object] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_id,
    }
    for key, (name, least, most) in _FILE_KEYS.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            defaults[name] = shortest(value)
    if defaults.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        defaults["do_sample"] = True
    return defaults


def shortest(value: float) -> float:
    """A float32 of a file as its shortest decimal: 0.7, not 0.699999988."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GenerationConfig:
    """Keywords of ``generate`` as attributes; None for those not given.

    Raises RequestError for an unknown keyword, UnsupportedError for a value that is not supported.
    """

    def __init__(self, **options: object) -> None:
        check_keywords(options)
        self.__dict__.update(options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str | PathLike[str], *_: object, **options: object
    ) -> GenerationConfig:
        """The end tokens and sampling defaults of a model's file; ``options`` as for ``AutoTokenizer.from_pretrained``.

        Raises RequestError when there is no such model.
        """
        naming, rest = split_keywords(options, KEYWORDS)
        with GGUFFile(found_file(pretrained_model_name, naming)) as file:
            return cls(**{**file_defaults(file.metadata, Tokenizer.from_gguf(file)), **rest})

    def __getattr__(self, name: str) -> Any:
        if name in KEYWORDS or name in WITHOUT_EFFECT or name in REFUSED:
            return None
        raise AttributeError(f"GenerationConfig has no {name!r}")

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The keywords that are set."""
        return {name: value for name, value in self.__dict__.items() if value is not None}

    to_diff_dict = to_dict

    def update(self, **options: object) -> dict[str, Any]:
        """Set the keywords of ``options`` that this class knows; the others are returned."""
        known = {name: value for name, value in options.items() if _is_known(name)}
        check_keywords(known)
        self.__dict__.update(known)
        return {name: value for name, value in options.items() if name not in known}

    def validate(self, **_: object) -> None:
        """Check the values again, since attributes may have changed."""
        check_keywords(self.to_dict())


def _is_known(name: str) -> bool:
    return name in KEYWORDS or name in WITHOUT_EFFECT or name in REFUSED


def check_keywords(options: Mapping[str, object], more: frozenset[str] = frozenset()) -> None:
    """Check keywords of ``generate`` and the names in ``more``.

    Raises KeywordError for an unknown one, UnsupportedError for a value that would change results and is not supported.
    """
    for name, value in options.items():
        if name in REFUSED:
            if value is not None and not any(type(value) is type(same) and value == same for same in REFUSED[name]):
                raise UnsupportedError(f"{name}: gumba does not support it, found {show(value)}")
        elif not _is_known(name) and name not in more:
            known = {*KEYWORDS, *WITHOUT_EFFECT, *REFUSED, *more}
            raise KeywordError(
                f"{show(name)}: unknown keyword{suggestion(name, known) or f'; known are {_names(more)}'}"
            )


def _names(more: frozenset[str]) -> str:
    return ", ".join(sorted(KEYWORDS | more))


def merged(options: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, Any]:
    """Keywords of a call, over those of its ``generation_config``, over ``defaults``. None means not given."""
    config = options.get("generation_config")
    given: Mapping[str, object] = {}
    if config is not None:
        read = getattr(config, "to_diff_dict", getattr(config, "to_dict", None))
        given = config if isinstance(config, Mapping) else read() if callable(read) else {}
        if not isinstance(config, Mapping) and not callable(read):
            raise RequestError(f"generation_config: expected a GenerationConfig, found {show(config)}")
        check_keywords(given)
    layers = (defaults, given, {name: value for name, value in options.items() if name != "generation_config"})
    return {name: value for layer in layers for name, value in layer.items() if value is not None}
