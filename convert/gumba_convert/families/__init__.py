"""Checkpoint families, one file each, with `HF_ARCHITECTURES`, `MODEL_TYPES` and `plan(checkpoint)`."""

from __future__ import annotations

from types import ModuleType

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.families import (
    baichuan,
    bert,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    distilbert,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    glm4,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    internlm2,
    jina_bert_v2,
    jina_bert_v3,
    lfm2,
    llama,
    llama4,
    mixtral,
    modern_bert,
    mpnet,
    nomic_bert,
    olmo2,
    phi2,
    phi3,
    qwen,
    qwen2,
    qwen2moe,
    qwen2vl,
    qwen3,
    qwen3moe,
    qwen3vl,
    qwen35,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)

MODULES: tuple[ModuleType, ...] = (
    llama,
    mixtral,
    qwen,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen2vl,
    qwen3vl,
    qwen35,
    chatglm,
    glm4,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    phi2,
    phi3,
    gpt2,
    gptneox,
    starcoder2,
    stablelm,
    falcon,
    baichuan,
    internlm2,
    olmo2,
    granite,
    smollm3,
    exaone4,
    command_r,
    cohere2,
    deepseek2,
    gpt_oss,
    lfm2,
    llama4,
    seed_oss,
    bert,
    distilbert,
    mpnet,
    modern_bert,
    nomic_bert,
    jina_bert_v2,
    jina_bert_v3,
    t5,
)

#: Families by the name in config.json's `architectures`, and by its `model_type`.
FAMILIES: dict[str, ModuleType] = {name: family for family in MODULES for name in family.HF_ARCHITECTURES}
MODEL_TYPES: dict[str, ModuleType] = {name: family for family in MODULES for name in family.MODEL_TYPES}


def family_of(checkpoint: Checkpoint) -> ModuleType:
    """The family of a checkpoint: by its architecture or, without one, by its model type.

    Raises:
        ConvertError: the family is unknown.
    """
    architectures, model_type = checkpoint.config.get("architectures"), checkpoint.config.get("model_type")
    if architectures is None and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else architectures
    if not isinstance(name, str) or name not in FAMILIES:
        what = name if isinstance(name, str) else f"architectures {architectures!s:.100}"
        if architectures is None and model_type is not None:
            what = f"model_type {model_type!s:.100} without architectures"
        raise ConvertError(
            f"{checkpoint.folder / 'config.json'}: {what:.200} is not supported; "
            "docs/models.md or `gumba models` lists what is"
        )
    return FAMILIES[name]
