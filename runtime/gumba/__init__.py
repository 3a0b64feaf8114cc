"""Run GGUF language models fast on any CPU, from Python alone.

    from gumba import LLM, SamplingParams

    with LLM("model.gguf") as llm:
        for step in llm.stream("The capital of France is", SamplingParams(max_tokens=32)):
            print(step.text, end="", flush=True)

Names are imported when they are first used: ``import gumba`` itself loads nothing heavy.
"""

from __future__ import annotations

from gumba._version import __version__

TYPE_CHECKING = False  # as typing's, which takes longer to import than all else here
if TYPE_CHECKING:
    from gumba.chat.template import ChatTemplate
    from gumba.compat.transformers.pipelines import pipeline
    from gumba.errors import (
        ConvertError,
        DownloadError,
        EngineError,
        GGUFError,
        GumbaError,
        ModelError,
        QueueFullError,
        RequestError,
        ResourceError,
        TemplateError,
        TokenizerError,
        UnsupportedError,
    )
    from gumba.gguf import GGUFFile
    from gumba.llm.conversation import Conversation
    from gumba.llm.llm import LLM
    from gumba.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        CompletionOutput,
        KVUsage,
        RequestOutput,
        StreamOutput,
        Timings,
        ToolCall,
    )
    from gumba.sampling_params import BeamSearchParams, ContrastiveSearchParams, SamplingParams, StructuredOutputsParams
    from gumba.tokenizer.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "Conversation",
    "SamplingParams",
    "BeamSearchParams",
    "ContrastiveSearchParams",
    "StructuredOutputsParams",
    "StreamOutput",
    "RequestOutput",
    "CompletionOutput",
    "ToolCall",
    "BeamSearchOutput",
    "BeamSearchSequence",
    "Timings",
    "KVUsage",
    "Tokenizer",
    "ChatTemplate",
    "GGUFFile",
    "pipeline",
    "GumbaError",
    "GGUFError",
    "ModelError",
    "UnsupportedError",
    "TokenizerError",
    "TemplateError",
    "QueueFullError",
    "RequestError",
    "ConvertError",
    "DownloadError",
    "ResourceError",
    "EngineError",
    "__version__",
]

_HOMES = {
    "LLM": "gumba.llm.llm",
    "Conversation": "gumba.llm.conversation",
    "SamplingParams": "gumba.sampling_params",
    "BeamSearchParams": "gumba.sampling_params",
    "ContrastiveSearchParams": "gumba.sampling_params",
    "StructuredOutputsParams": "gumba.sampling_params",
    "StreamOutput": "gumba.outputs",
    "RequestOutput": "gumba.outputs",
    "CompletionOutput": "gumba.outputs",
    "ToolCall": "gumba.outputs",
    "BeamSearchOutput": "gumba.outputs",
    "BeamSearchSequence": "gumba.outputs",
    "Timings": "gumba.outputs",
    "KVUsage": "gumba.outputs",
    "Tokenizer": "gumba.tokenizer.tokenizer",
    "ChatTemplate": "gumba.chat.template",
    "GGUFFile": "gumba.gguf",
    "pipeline": "gumba.compat.transformers.pipelines",
    **{name: "gumba.errors" for name in __all__ if name.endswith("Error")},
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gumba' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
