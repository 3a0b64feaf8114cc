"""Models with the methods of transformers' ``AutoModelForCausalLM``, run by an ``LLM``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np

from gumba.compat.transformers.arrays import BatchEncoding, as_kind, check_device, device, id_rows, is_tensor
from gumba.compat.transformers.generation import Plan, Row
from gumba.compat.transformers.keywords import GenerationConfig, check_keywords, file_defaults, merged, shortest
from gumba.errors import RequestError, UnsupportedError
from gumba.llm.llm import LLM
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.validation import show

#: Default maximum of new tokens, as in transformers.
DEFAULT_NEW_TOKENS = 20
#: Keywords of ``generate`` besides those of generation: the tokenizer's results, and positions.
_INPUTS = frozenset({
    "inputs", "input_ids", "attention_mask", "token_type_ids", "position_ids", "past_key_values", "inputs_embeds",
    "decoder_input_ids", "special_tokens_mask", "length",
})  # fmt: skip
#: Attributes of the configuration -> keys of the file, below the architecture's name.
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}


class PretrainedConfig:
    """Sizes and special tokens of a model under transformers' names, as far as the file has them.

    Args:
        metadata: The file's metadata.
        tokenizer: The file's tokenizer.
        name_or_path: The name or path that it was loaded from.
    """

    def __init__(self, metadata: Mapping[str, object], tokenizer: Tokenizer, name_or_path: str = "") -> None:
        architecture = str(metadata.get("general.architecture", ""))
        self.model_type = architecture
        self.name_or_path = self._name_or_path = name_or_path
        self.vocab_size = tokenizer.n_vocab
        start = metadata.get(f"{architecture}.decoder_start_token_id")
        self.is_encoder_decoder = isinstance(start, int)
        for name, key in _SIZES.items():
            value = metadata.get(f"{architecture}.{key}")
            if isinstance(value, int | float):
                setattr(self, name, shortest(value))
        heads, width = getattr(self, "num_attention_heads", None), getattr(self, "hidden_size", None)
        if heads and width and not hasattr(self, "head_dim"):
            self.head_dim = width // heads
        if heads and not hasattr(self, "num_key_value_heads"):
            self.num_key_value_heads = heads
        self.bos_token_id, self.eos_token_id, self.pad_token_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        if isinstance(start, int):
            self.decoder_start_token_id = start

    def to_dict(self) -> dict[str, Any]:
        """All attributes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def get_text_config(self, *_: object, **__: object) -> PretrainedConfig:
        """This configuration: gumba's models have only a text part."""
        return self

    def __repr__(self) -> str:
        return f"PretrainedConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


class ModelOutput(dict[str, Any]):
    """Results as keys, as attributes, and by index."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"ModelOutput has no {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)


class PreTrainedModel:
    """A model with transformers' ``generate``, run by gumba.

    Args:
        llm: The model; ``close`` closes it.
        name_or_path: The name or path that it was loaded from.

    Attributes:
        llm: The model.
        config: Sizes and special tokens.
        generation_config: Defaults of ``generate``'s keywords; may be changed.
    """

    def __init__(self, llm: LLM, name_or_path: str = "") -> None:
        self.llm = llm
        self.name_or_path = name_or_path
        self.config = PretrainedConfig(llm.metadata, llm.tokenizer, name_or_path)
        self.generation_config = GenerationConfig(**file_defaults(llm.metadata, llm.tokenizer))
        self._ends = self.generation_config.eos_token_id

    def __repr__(self) -> str:
        return f"PreTrainedModel({self.llm!r})"

    @property
    def device(self) -> Any:
        """The CPU, as PyTorch's device in a process that uses PyTorch."""
        return device()

    @property
    def dtype(self) -> str:
        """The data type of activations."""
        return "float32"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters in the file. Raises UnsupportedError for a part of them."""
        if only_trainable or exclude_embeddings:
            raise UnsupportedError("num_parameters: gumba counts all parameters: expected False for both arguments")
        return sum(math.prod(tensor.shape) for tensor in self.llm.file.tensors.values())

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights in the file."""
        return sum(tensor.n_bytes for tensor in self.llm.file.tensors.values())

    def can_generate(self) -> bool:
        """True: the model generates text."""
        return True

    def eval(self) -> PreTrainedModel:
        """The model itself: it cannot be trained."""
        return self

    def train(self, mode: bool = True) -> PreTrainedModel:
        """The model itself with ``mode`` False. Raises UnsupportedError with True."""
        if mode:
            raise UnsupportedError("train: gumba runs models, it does not train them")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> PreTrainedModel:
        """The model itself with ``requires_grad`` False. Raises UnsupportedError with True."""
        return self.train(requires_grad)

    def to(self, *places: object, **options: object) -> PreTrainedModel:
        """The model itself, whatever the data type. A device other than the CPU is a warning."""
        for place in [*places, options.get("device")]:
            if isinstance(place, str) or type(place).__name__ == "device":
                check_device("device", place)
        return self

    def cpu(self) -> PreTrainedModel:
        """The model itself."""
        return self

    def cuda(self, device: object = None) -> PreTrainedModel:
        """The model itself, with a warning: it stays on the CPU."""
        return self.to("cuda")

    def half(self) -> PreTrainedModel:
        """The model itself: its weights keep the types of the file."""
        return self

    bfloat16 = float = half

    def close(self) -> None:
        """Free the model. Calls after that raise EngineError."""
        self.llm.close()

    def __enter__(self) -> PreTrainedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, input_ids: object = None, attention_mask: object = None, **options: object) -> ModelOutput:
        """Logits after each token, float32 [batch, n, vocabulary]; zeros at padding.

        Raises RequestError for invalid ids, UnsupportedError for ``labels``, hidden states and attentions.
        """
        for name, value in options.items():
            if name not in ("token_type_ids", "use_cache", "return_dict", "logits_to_keep") and value not in (
                None,
                False,
            ):
                raise UnsupportedError(f"{name}: gumba does not support it, found {show(value)}")
        inputs = _inputs(input_ids, attention_mask, {}, None)
        rows = []
        for ids, mask in zip(inputs.rows, inputs.masks):
            logits = np.zeros((len(ids), self.llm.tokenizer.n_vocab), np.float32)
            kept = [i for i, kept_token in enumerate(mask) if kept_token]
            logits[kept] = self.llm.logits([ids[i] for i in kept])[:, : logits.shape[1]]
            rows.append(logits)
        return ModelOutput(logits=as_kind(np.stack(rows), inputs.kind))

    forward = __call__

    def keywords(self, options: Mapping[str, object]) -> dict[str, Any]:
        """The merged keywords of a ``generate`` call: its own, then its ``generation_config``, then the model's."""
        defaults = self.generation_config.to_dict()
        if defaults.get("eos_token_id") == self._ends:
            defaults.pop("eos_token_id", None)  # these are the file's, which are the default
        return merged(options, defaults)

    def generate(self, inputs: object = None, generation_config: object = None, **options: object) -> Any:
        """Token ids of prompts and their answers, int64 [batch * num_return_sequences, n + new]; tensors for tensors.

        ``attention_mask`` marks padding of the prompts, at either side; without it, ``pad_token_id`` does (unless it ends
        answers too). Padding does not change an answer. Rows with a shorter answer are padded with ``pad_token_id``.

        Args:
            inputs: The prompts' token ids [batch, n]: lists, an array, a tensor, or a result of the tokenizer.
            generation_config: A ``GenerationConfig``, of gumba or of transformers.
            options: ``input_ids`` (instead of ``inputs``), ``attention_mask``, and transformers' keywords of generation (see
                ``gumba.compat.transformers.keywords``): lengths, sampling, beams, penalties, ``streamer``,
                ``stopping_criteria``, ``logits_processor`` ...; ``seed`` is gumba's.

        Raises:
            RequestError: A keyword is unknown, or a value is wrong.
            UnsupportedError: A keyword would change results and is not supported.
        """
        if isinstance(inputs, Mapping):
            options = {**inputs, **options}
            inputs = None
        check_keywords(options, _INPUTS)
        if generation_config is not None:
            options["generation_config"] = generation_config
        keywords = self.keywords({name: value for name, value in options.items() if name not in _INPUTS})
        plan = Plan(self.llm, keywords, DEFAULT_NEW_TOKENS)
        given = _inputs(
            options.get("input_ids") if inputs is None else inputs, options.get("attention_mask"), options, plan
        )
        start = self.llm.model.config.start_token
        rows = [
            Row([token for token, kept in zip(ids, mask) if kept], *((len(ids), ids) if start is None else (1, None)))
            for ids, mask in zip(given.rows, given.masks)
        ]
        if plan.streamer is not None:
            if len(rows) != 1 or plan.n != 1:
                raise RequestError("streamer: expected a single prompt and a single answer")
            answers = [[plan.streamed(rows[0], given.rows, given.kind)]]
        else:
            answers = plan.answers(rows)
        length = max(len(answer) for row_answers in answers for answer in row_answers)
        table = []
        for ids, row_answers in zip(given.rows, answers):
            for answer in row_answers:
                table.append([*(ids if start is None else [start]), *answer, *[plan.pad] * (length - len(answer))])
        sequences = as_kind(np.array(table, np.int64), given.kind)
        return ModelOutput(sequences=sequences) if keywords.get("return_dict_in_generate") else sequences


class _Inputs:
    """Prompts of one length, their attention masks, and the caller's array type."""

    def __init__(self, rows: list[list[int]], masks: list[list[int]], kind: str) -> None:
        self.rows, self.masks, self.kind = rows, masks, kind


def _inputs(ids: Any, attention_mask: object, options: Mapping[str, object], plan: Plan | None) -> _Inputs:
    """Checked ``input_ids`` and ``attention_mask`` [batch, n]."""
    if isinstance(ids, Mapping):
        ids, attention_mask = ids.get("input_ids"), ids.get("attention_mask", attention_mask)
    for name in ("inputs_embeds", "position_ids", "past_key_values", "decoder_input_ids"):
        if options.get(name) is not None:
            raise UnsupportedError(f"{name}: gumba does not support it, found {show(options[name])}")
    if ids is None:
        raise RequestError("input_ids: expected integers [batch, n], found None")
    rows = id_rows("input_ids", ids)
    if attention_mask is not None:
        masks = id_rows("attention_mask", attention_mask)
        if [len(mask) for mask in masks] != [len(row) for row in rows]:
            raise RequestError(
                f"attention_mask: expected the shape of input_ids, [{len(rows)}, {len(rows[0])}], "
                f"found [{len(masks)}, {len(masks[0])}]"
            )
    else:
        masks = [_without_padding(row, plan) for row in rows]
    for row, mask in zip(rows, masks):
        if not any(mask):
            raise RequestError(f"input_ids: expected at least one token that is not padding, found {show(row)}")
    return _Inputs(rows, masks, "pt" if is_tensor(ids) else "np")


def _without_padding(row: Sequence[int], plan: Plan | None) -> list[int]:
    """The mask of a row without one: masks padding tokens unless they also end answers."""
    if plan is None or not plan.infers_mask:
        return [1] * len(row)
    return [int(token != plan.pad) for token in row]


def opened(model: str | PathLike[str], options: Mapping[str, object]) -> PreTrainedModel:
    """The model of ``from_pretrained(model, **options)``."""
    from gumba.compat.transformers.loading import found_file, split_keywords

    naming, rest = split_keywords(options, LLM_KEYWORDS)
    return PreTrainedModel(LLM(found_file(model, naming), **rest), str(model))


#: Keywords of ``LLM`` that ``from_pretrained`` accepts too.
LLM_KEYWORDS = frozenset({
    "n_ctx", "max_model_len", "n_threads", "max_batch_tokens", "max_sequences", "max_queue", "kv_tokens", "kv_memory", "n_states",
    "kv_type", "portable", "draft_model", "draft_tokens", "unload_after", "chat_template", "progress", "gpu_memory_utilization",
})  # fmt: skip

__all__ = ["BatchEncoding", "ModelOutput", "PreTrainedModel", "PretrainedConfig", "opened"]
