"""What the program tests share: small programs, and running their records on one thread in chosen orders."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gumba.backends.cpu.kernels import record as op
from gumba.backends.cpu.packing import PackedMatrix, pack_matrix
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.gguf import GGUFFile
from gumba.quants import BlockFormat, get
from gumba.runner.load import LoadConfig, Model, load_model
from gumba.simd.detect import current

GOLDENS = sorted((Path(__file__).parent.parent / "data").glob("model_*.gguf"))
#: A program holds addresses only; of a model, the model keeps the weights.
_KEPT: list[PackedMatrix] = []
_FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)


def load(path: Path, **options: int) -> Model:
    with GGUFFile(path) as file:
        return load_model(file, LoadConfig(**options))


def matrix(format: BlockFormat, n_rows: int, columns: int, seed: int = 0) -> PackedMatrix:
    """Random weights of about unit gain."""
    w = np.random.default_rng(seed).standard_normal((n_rows, columns)) / np.sqrt(columns)
    raw = np.asarray(format.quantize(w.astype(np.float32)))
    made = pack_matrix(format, n_rows, columns, lambda first, count: raw[first : first + count], current())
    _KEPT.append(made)
    return made


def named(name: str) -> BlockFormat:
    format: BlockFormat = get(name)
    return format


def batch(n_tokens: int, tokens: np.ndarray | None = None, output_rows: np.ndarray | None = None) -> np.ndarray:
    """A batch record without positions and pages. The arrays must outlive it."""
    words = np.zeros(op.BATCH_WORDS, np.int64)
    words[op.N_TOKENS // 8] = n_tokens
    if tokens is not None:
        words[op.TOKENS // 8] = tokens.ctypes.data
    if output_rows is not None:
        words[op.N_OUTPUTS // 8], words[op.OUTPUT_ROWS // 8] = len(output_rows), output_rows.ctypes.data
    return words


def phases(records: np.ndarray) -> list[list[int]]:
    """Indices of the operations between barriers."""
    found: list[list[int]] = [[]]
    for i, record in enumerate(records):
        found[-1].append(i)
        if record[1]:
            found.append([])
    return [phase for phase in found if phase]


def walk(records: np.ndarray, words: np.ndarray, n_threads: int, order: Sequence[int]) -> None:
    """Run a step on this thread alone: in each phase, one share after the other in ``order``, each through all operations.

    It is what happens when one thread runs far ahead of the others, as far as barriers let it.
    """
    for phase in phases(records):
        for thread in order:
            for i in phase:
                _FUNCTION(int(records[i, 0]))(records[i].ctypes.data, words.ctypes.data, thread, n_threads)


def two_norms(program: Program, format: BlockFormat, width: int = 128) -> tuple[Buffer, dict[str, int]]:
    """embed, norm, three products of one input, activation, product with residual, select, norm, product.

    Returns the result and the index of some operations.
    """
    x = program.embed(matrix(named("f32"), 50, width))
    h = program.rms_norm(x, np.ones(width, np.float32), 1e-5)
    marks = {"norm": len(program.operations) - 1}
    gate = program.matmul(matrix(format, width, width, 1), h)
    marks["first product"] = len(program.operations) - 1
    up = program.matmul(matrix(format, width, width, 2), h)
    other = program.matmul(matrix(format, width, width, 3), h)
    marks["last product"] = len(program.operations) - 1
    s = program.swiglu(gate, up)
    marks["swiglu"] = len(program.operations) - 1
    x = program.matmul(matrix(format, width, width, 4), s, residual=x, bias=np.ones(width, np.float32))
    marks["bias"] = len(program.operations) - 1
    y = program.swiglu(x, other)
    last = program.select_outputs(y)
    marks["select"] = len(program.operations) - 1
    return program.matmul(matrix(format, 70, width, 5), program.rms_norm(last, np.ones(width, np.float32), 1e-5)), marks
