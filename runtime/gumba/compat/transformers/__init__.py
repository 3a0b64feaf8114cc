"""The classes that model cards import from transformers, on gumba: ``from gumba.compat.transformers import AutoTokenizer``.

``AutoTokenizer`` and ``AutoModelForCausalLM`` load GGUF files, folders and hub ids, and have the methods, keywords, defaults and
shapes of transformers 5; token ids are NumPy arrays, or PyTorch tensors if tensors are requested or passed. A keyword that would
change results and that gumba does not support is refused by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumba.compat.transformers.arrays import BatchEncoding
    from gumba.compat.transformers.auto import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from gumba.compat.transformers.generation import set_seed
    from gumba.compat.transformers.keywords import GenerationConfig
    from gumba.compat.transformers.model import PretrainedConfig, PreTrainedModel
    from gumba.compat.transformers.pipelines import TextGenerationPipeline, TextIteratorStreamer, TextStreamer, pipeline
    from gumba.compat.transformers.processors import (
        LogitsProcessor,
        LogitsProcessorList,
        StoppingCriteria,
        StoppingCriteriaList,
    )
    from gumba.compat.transformers.tokenizer import PreTrainedTokenizer

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoTokenizer",
    "BatchEncoding",
    "GenerationConfig",
    "LogitsProcessor",
    "LogitsProcessorList",
    "PreTrainedModel",
    "PreTrainedTokenizer",
    "PretrainedConfig",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TextGenerationPipeline",
    "TextIteratorStreamer",
    "TextStreamer",
    "pipeline",
    "set_seed",
]

_HOMES = {
    "AutoConfig": "gumba.compat.transformers.auto",
    "AutoModelForCausalLM": "gumba.compat.transformers.auto",
    "AutoModelForSeq2SeqLM": "gumba.compat.transformers.auto",
    "AutoTokenizer": "gumba.compat.transformers.auto",
    "BatchEncoding": "gumba.compat.transformers.arrays",
    "GenerationConfig": "gumba.compat.transformers.keywords",
    "LogitsProcessor": "gumba.compat.transformers.processors",
    "LogitsProcessorList": "gumba.compat.transformers.processors",
    "PreTrainedModel": "gumba.compat.transformers.model",
    "PreTrainedTokenizer": "gumba.compat.transformers.tokenizer",
    "PretrainedConfig": "gumba.compat.transformers.model",
    "StoppingCriteria": "gumba.compat.transformers.processors",
    "StoppingCriteriaList": "gumba.compat.transformers.processors",
    "TextGenerationPipeline": "gumba.compat.transformers.pipelines",
    "TextIteratorStreamer": "gumba.compat.transformers.pipelines",
    "TextStreamer": "gumba.compat.transformers.pipelines",
    "pipeline": "gumba.compat.transformers.pipelines",
    "set_seed": "gumba.compat.transformers.generation",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gumba.compat.transformers' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
