"""Compiling ahead of time, for installers and images: everything that models of the known formats run on this processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gumba.errors import UnsupportedError
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
from gumba.program import executor, timing
from gumba.quants import FORMATS
from gumba.simd import isa


def compile_all(path: Path | None = None, progress: Callable[[int, int], object] | None = None) -> int:
    """Compile everything, or only what the GGUF file at ``path`` needs, for the instruction set in use; how many functions.

    ``progress`` is called with the functions that are ready and how many there are. Raises UnsupportedError for a file with a
    block format that cannot run, and what opening a GGUF file raises.
    """
    jobs = _jobs(path)
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs))
        job()
    return len(jobs)


def _formats(path: Path | None) -> list[int]:
    if path is None:
        return list(FORMATS)
    with GGUFFile(path) as file:
        found = {tensor.type.id: tensor for tensor in file.tensors.values()}
    for number, tensor in found.items():
        if number not in FORMATS:
            raise UnsupportedError(f"{path}: tensor {tensor.name} has the format {tensor.type.name}, which cannot run")
    return sorted(found)


def _jobs(path: Path | None) -> list[Callable[[], object]]:
    """One call for each function. Of a file's formats the encoders are left out."""
    set_ = isa.current()
    kernels: list[Kernel] = [
        norms.rms_norm, elementwise.combine("add"), elementwise.select_rows, activations.gated(set_, "silu"), rope.rope,
        q8.quantize_q8,
    ]  # fmt: skip
    for pages in page_formats().values():
        kernels += [attention.store_kv(set_, pages), attention.attention(set_, pages)]
    if path is None:  # what ``gumba bench --profile`` measures the machine with
        kernels += [timing.stamp]
        kernels += [test(set_) for test in (limits.read_memory, limits.dot_int8, limits.fma_float32, limits.pairs_bf16)]
    entries = [executor.run_step, executor.stop_team, executor.help_team, packed.interleave, gather.gather, bpe.index_tokens,
               bpe.index_merges, bpe.encode_words, bpe.merge_words, charsmap.normalize]  # fmt: skip
    for module in (sample, edit, filters, logprobs):
        entries += [each for each in vars(module).values() if isinstance(each, Entry)]
    for number in _formats(path):
        format = FORMATS[number]
        kernels += [embed.embed(format, set_), matmul.matmul(format, set_)]
        encode, decode = format.loops()
        entries += [decode] if path is not None else [encode, decode]
    return [*(lambda k=kernel: k.address for kernel in kernels), *(each.compile for each in entries)]
