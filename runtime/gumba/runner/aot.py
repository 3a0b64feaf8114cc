"""Compiling ahead of time, for installers and images: what a model runs on this processor, or any of the Llama kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gumba.backends.cpu import batch
from gumba.backends.cpu.kernels import (
    activations,
    activations_q8,
    attention,
    elementwise,
    embed,
    matmul,
    norms,
    roofline,
    rope,
)
from gumba.backends.cpu.kernels.record import Kernel
from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.backends.cpu.packing import interleave
from gumba.backends.cpu.program import executor, timing
from gumba.errors import GumbaError
from gumba.gguf.reader import GGUFFile
from gumba.jit.jit import Entry
from gumba.quants import FORMATS
from gumba.runner.load import kernels_of, usual_kv_type
from gumba.sampling.kernels import filters, logprobs, penalties, sample
from gumba.simd import detect
from gumba.tokenizer.kernels import bpe, charsmap
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS

#: A function to be compiled.
Function: TypeAlias = "Entry | Kernel"

#: Seconds that compiling took on one machine, for what takes longer than USUAL_S: what is told of the time that is left needs
#: only how they compare.
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

#: Called while functions are compiled: how many are done, how many there are, and the share of the time that has gone.
Report: TypeAlias = Callable[[int, int, float], object]


def compile_functions(functions: Sequence[Function], report: Report = lambda done, total, share: None) -> None:
    """Compile ``functions``, or load those that are cached."""
    weights = [SECONDS.get(each.py_func.__name__, USUAL_S) for each in functions]
    for done, function in enumerate(functions):
        report(done, len(functions), sum(weights[:done]) / sum(weights))
        function.compile()
    report(len(functions), len(functions), 1.0)


def compile_all(path: Path | None = None, report: Report = lambda done, total, share: None) -> int:
    """Compile what the GGUF file at ``path`` needs, for the instruction set in use; how many functions.

    Without a ``path``: what models of the Llama kind need, in every block format. Raises what opening and loading a model
    raises.
    """
    functions = _functions(path)
    compile_functions(functions, report)
    return len(functions)


def first_functions(path: Path, kv_type: str | None, *, text: bool = True, top_k: int | None = None) -> list[Function]:
    """What is yet to be compiled of all that loading the GGUF file at ``path``, and a first prompt, need.

    ``text``: the prompt is encoded. ``top_k``: tokens are chosen by this parameter and the usual others; None: none are
    chosen. Empty for a file that cannot be opened or run: opening it says why.
    """
    found: list[Function] = [interleave, *_team(), batch.gather]
    try:
        with GGUFFile(path) as gguf:
            found += kernels_of(
                gguf, kv_type or usual_kv_type()
            )  # which reads vectors, so their decoder is there after it
            found += tokenizer_functions(gguf.metadata, text)
    except GumbaError:
        return []
    if top_k is not None:
        found.append(sample.sample_all if top_k == 0 else sample.sample_top_k)
    return [function for function in dict.fromkeys(found) if function.is_missing]


def tokenizer_functions(metadata: Mapping[str, Any], text: bool = True) -> list[Function]:
    """The functions that loading a vocabulary and encoding a text need."""
    if "tokenizer.ggml.merges" in metadata:
        family = PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre")))
        encode = bpe.merge_words if family is not None and family.characters else bpe.encode_words
        return [bpe.index_tokens, bpe.index_merges, *([encode] if text else [])]
    if text and "tokenizer.ggml.precompiled_charsmap" in metadata:
        return [charsmap.normalize]
    return []


def _team() -> list[Function]:
    return [executor.run_step, executor.stop_team, executor.help_team]


def _functions(path: Path | None) -> list[Function]:
    """All functions, except the encoders of a file's formats."""
    formats = set(FORMATS)
    if path is None:
        kernels = [*_llama_kernels(), timing.stamp]  # and what ``gumba bench --profile`` measures the machine with
        tests = roofline.read_memory, roofline.dot_int8, roofline.fma_float32, roofline.pairs_bf16
        kernels += [test(detect.current()) for test in tests]
    else:
        with GGUFFile(path) as gguf:
            kernels = [kernel for kv_type in PAGE_FORMATS for kernel in kernels_of(gguf, kv_type)]
            formats = {tensor.type.id for tensor in gguf.tensors.values()} & set(FORMATS)
    entries = [*_team(), interleave, batch.gather, bpe.index_tokens, bpe.index_merges, bpe.encode_words, bpe.merge_words,
               charsmap.normalize]  # fmt: skip
    for module in (sample, penalties, filters, logprobs):
        entries += [each for each in vars(module).values() if isinstance(each, Entry)]
    for number in sorted(formats):
        encode, decode = FORMATS[number].loops()
        entries += [decode] if path is not None else [encode, decode]
    named = {kernel.name: kernel for kernel in kernels}
    return [*named.values(), *dict.fromkeys(entries)]


def _llama_kernels() -> list[Kernel]:
    set_ = detect.current()
    kernels: list[Kernel] = [
        norms.rms_norm, elementwise.combine("add"), elementwise.select_rows, activations.gated(set_, "silu"), rope.rope,
        activations_q8.quantize_q8,
    ]  # fmt: skip
    for pages in PAGE_FORMATS.values():
        kernels += [attention.store_kv(set_, pages), attention.attention(set_, pages)]
    for format in FORMATS.values():
        kernels += [embed.embed(format, set_), matmul.matmul(format, set_)]
    return kernels
