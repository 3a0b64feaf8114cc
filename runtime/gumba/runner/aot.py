"""Compiling ahead of time, for installers and container images: all kernels of one model, or of all Llama-like models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gumba import backends
from gumba.backends.base import Function
from gumba.errors import GumbaError
from gumba.gguf.reader import GGUFFile
from gumba.jit.jit import Entry
from gumba.quants import FORMATS
from gumba.runner.load import functions_of
from gumba.sampling.kernels import filters, logprobs, penalties, sample
from gumba.tokenizer.kernels import bpe, charsmap
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS

__all__ = ["Function", "compile_all", "compile_functions", "first_functions", "tokenizer_functions"]

#: Seconds that compiling took on one machine, for functions that take longer than USUAL_S. Only their ratios matter: the
#: progress bar estimates the remaining time from them.
SECONDS = {
    "attention": 4.4,
    "encode_words": 3.4,
    "sample_top_k": 2.4,
    "sample_all": 2.4,
    "run_step": 1.6,
    "index_merges": 1.6,
    "matmul": 1.4,
    "gather": 1.2,
    "store_kv": 1.1,
    "help_team": 0.9,
    "index_tokens": 0.9,
}
USUAL_S = 0.5

#: Called while functions are compiled: number done, number in all, and fraction of the expected time that has passed.
Report: TypeAlias = Callable[[int, int, float], object]


def compile_functions(functions: Sequence[Function], report: Report = lambda done, total, share: None) -> None:
    """Compile ``functions``, or load those that are cached."""
    weights = [SECONDS.get(each.py_func.__name__, USUAL_S) for each in functions]
    for done, function in enumerate(functions):
        report(done, len(functions), sum(weights[:done]) / sum(weights))
        function.compile()
    report(len(functions), len(functions), 1.0)


def compile_all(
    path: Path | None = None, report: Report = lambda done, total, share: None, *, portable: bool = False
) -> int:
    """Compile what the GGUF file at ``path`` needs, for the instruction set in use; returns the number of functions.

    Without a ``path``: what Llama-like models need, in every block format. ``portable``: as of ``load_model``. Raises the errors
    of opening and loading a model.
    """
    functions = _functions(path, portable)
    compile_functions(functions, report)
    return len(functions)


def first_functions(
    path: Path, kv_type: str | None, *, portable: bool = False, text: bool = True, top_k: int | None = None
) -> list[Function]:
    """The functions, not compiled yet, that loading the GGUF file at ``path`` and running a first prompt need.

    ``kv_type``, ``portable``: as of ``load_model``. ``text``: whether a text is encoded. ``top_k``: that of the sampling
    parameters; None: no tokens are sampled. Empty for a file that cannot be opened or run: opening it raises the error.
    """
    backend = backends.get(portable=portable)
    functions = backend.step_functions()
    try:
        with GGUFFile(path) as gguf:
            # This reads float32 vectors, so the decoders of their formats are compiled after it.
            functions += functions_of(backend, gguf, kv_type or backend.default_kv_type)
            functions += tokenizer_functions(gguf.metadata, text)
    except GumbaError:
        return []
    if top_k is not None:
        functions.append(sample.sample_all if top_k == 0 else sample.sample_top_k)
    return [function for function in dict.fromkeys(functions) if function.is_missing]


def tokenizer_functions(metadata: Mapping[str, Any], text: bool = True) -> list[Function]:
    """The functions that loading a vocabulary and encoding a text need."""
    if "tokenizer.ggml.merges" in metadata:
        family = PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre")))
        encode = bpe.merge_words if family is not None and family.characters else bpe.encode_words
        return [bpe.index_tokens, bpe.index_merges, *([encode] if text else [])]
    if text and "tokenizer.ggml.precompiled_charsmap" in metadata:
        return [charsmap.normalize]
    return []


def _functions(path: Path | None, portable: bool) -> list[Function]:
    """All functions that a file needs, or (None) that Llama-like models need. A file needs no encoders of block formats."""
    backend, formats = backends.get(portable=portable), set(FORMATS)
    if path is None:
        kernels = backend.llama_functions()
    else:
        with GGUFFile(path) as gguf:
            kernels = [each for kv_type in backend.kv_types for each in functions_of(backend, gguf, kv_type)]
            formats = {tensor.type.id for tensor in gguf.tensors.values()} & set(FORMATS)
    entries: list[Function] = [
        *backend.step_functions(), bpe.index_tokens, bpe.index_merges, bpe.encode_words, bpe.merge_words, charsmap.normalize,
    ]  # fmt: skip
    for module in (sample, penalties, filters, logprobs):
        entries += [each for each in vars(module).values() if isinstance(each, Entry)]
    for number in sorted(formats):
        encode, decode = FORMATS[number].loops()
        entries += [decode] if path is not None or encode is None else [encode, decode]
    named = {kernel.name: kernel for kernel in kernels}
    return [*named.values(), *dict.fromkeys(entries)]
