"""The high-level interface of llama-cpp-python, on gumba: an application changes one import.

    from gumba.compat.llama_cpp import Llama  # was: from llama_cpp import Llama

Packages that import ``llama_cpp`` themselves get it by ``gumba.compat.llama_cpp.install()``, called before they do.

Classes, methods, keywords and the shape of results are those of llama-cpp-python 0.3; the low-level bindings to
llama.cpp's C functions are not here. Differences: nothing is printed (``verbose`` logs), calls from several threads are
fine, results do not depend on threads or batches, and what gumba cannot do is refused instead of ignored.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from gumba.compat.llama_cpp import llama_chat_format, llama_cpp, llama_grammar, llama_speculative, llama_types
from gumba.compat.llama_cpp.errors import ArgumentError, InstallError, LoadError, OptionError
from gumba.compat.llama_cpp.llama import (
    Llama,
    LlamaState,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from gumba.compat.llama_cpp.llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from gumba.compat.llama_cpp.llama_grammar import LlamaGrammar
from gumba.compat.llama_cpp.llama_speculative import LlamaDraftModel
from gumba.compat.llama_cpp.llama_tokenizer import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer

#: The version of llama-cpp-python whose interface this package implements.
__version__ = "0.3.36"

__all__ = [
    "ArgumentError",
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "InstallError",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaHFTokenizer",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LoadError",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "OptionError",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "install",
    "llama_chat_format",
    "llama_cpp",
    "llama_grammar",
    "llama_speculative",
    "llama_types",
]
__all__ += [name for name in vars(llama_cpp) if name.startswith(("LLAMA_", "GGML_"))]
__all__ += [name for name in vars(llama_types) if name.startswith(("C", "Embedding", "Json"))]


def __getattr__(name: str) -> Any:
    """Constants and types of the submodules, and llama.cpp's functions, which raise an error when they are called."""
    for module in (llama_types, llama_chat_format, llama_grammar):
        if not name.startswith("_") and name in vars(module):
            return vars(module)[name]
    return getattr(llama_cpp, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def install() -> ModuleType:
    """Register this package and its submodules as the module ``llama_cpp`` for later imports.

    Returns the package. Calling it again changes nothing. Raises InstallError (an ImportError too) where another
    ``llama_cpp`` has been imported.
    """
    package = sys.modules[__name__]
    other = sys.modules.get("llama_cpp", package)
    if other is not package:
        raise InstallError(
            f"llama_cpp: another module is already imported ({getattr(other, '__file__', None)}): call install() first"
        )
    for module in pkgutil.iter_modules(package.__path__):
        sys.modules[f"llama_cpp.{module.name}"] = importlib.import_module(f"{__name__}.{module.name}")
    sys.modules["llama_cpp"] = package
    return package
