"""Compiling ahead of time, for installers and images: what a model runs on this processor, or any of the Llama kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gumba.gguf.reader import GGUFFile
from gumba.kernels import (
    activations,
    attention,
    bpe,
    charsmap,
    edit,
    elementwise,
    embed,
    filters,
    gather,
    limits,
    logprobs,
    matmul,
    norms,
    packed,
    q8,
    rope,
    sample,
)
from gumba.kernels.jit import Entry
from gumba.kernels.op import Kernel
from gumba.kernels.pages import page_formats
from gumba.models import kernels_of
from gumba.program import executor, timing
from gumba.quants import FORMATS
from gumba.simd import isa


def compile_all(path: Path | None = None, progress: Callable[[int, int], object] | None = None) -> int:
    """Compile what the GGUF file at ``path`` needs, for the instruction set in use; how many functions.

    Without a ``path``: what models of the Llama kind need, in every block format. ``progress`` is called with the functions that
    are ready and how many there are. Raises what opening and loading a model raises.
    """
    jobs = _jobs(path)
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs))
        job()
    return len(jobs)


def _jobs(path: Path | None) -> list[Callable[[], object]]:
    """One call for each function. Of a file's formats the encoders are left out."""
    formats = set(FORMATS)
    if path is None:
        kernels = [*_llama_kernels(), timing.stamp]  # and what ``gumba bench --profile`` measures the machine with
        tests = limits.read_memory, limits.dot_int8, limits.fma_float32, limits.pairs_bf16
        kernels += [test(isa.current()) for test in tests]
    else:
        with GGUFFile(path) as gguf:
            kernels = [kernel for kv_type in page_formats() for kernel in kernels_of(gguf, kv_type)]
            formats = {tensor.type.id for tensor in gguf.tensors.values()} & set(FORMATS)
    entries = [executor.run_step, executor.stop_team, executor.help_team, packed.interleave, gather.gather, bpe.index_tokens,
               bpe.index_merges, bpe.encode_words, bpe.merge_words, charsmap.normalize]  # fmt: skip
    for module in (sample, edit, filters, logprobs):
        entries += [each for each in vars(module).values() if isinstance(each, Entry)]
    for number in sorted(formats):
        encode, decode = FORMATS[number].loops()
        entries += [decode] if path is not None else [encode, decode]
    named = {kernel.name: kernel for kernel in kernels}
    return [*(lambda k=kernel: k.address for kernel in named.values()), *(each.compile for each in entries)]


def _llama_kernels() -> list[Kernel]:
    set_ = isa.current()
    kernels: list[Kernel] = [
        norms.rms_norm, elementwise.combine("add"), elementwise.select_rows, activations.gated(set_, "silu"), rope.rope,
        q8.quantize_q8,
    ]  # fmt: skip
    for pages in page_formats().values():
        kernels += [attention.store_kv(set_, pages), attention.attention(set_, pages)]
    for format in FORMATS.values():
        kernels += [embed.embed(format, set_), matmul.matmul(format, set_)]
    return kernels
