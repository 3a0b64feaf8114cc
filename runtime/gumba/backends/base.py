"""The interface of a backend: everything that ``models/``, ``layers/``, ``loading/`` and ``runner/`` use of one.

Architectures are written in ``Operations`` (``gumba.backends.operations``). This module declares the rest: packing weights, the
memory of the KV cache and of recurrent states, running steps, and ``Backend``, which creates all of them.
``gumba.backends.get`` returns the backend in use.

Everything here is a type. A backend need not inherit from any of them: mypy checks that it has the methods
(``docs/contributing/add-backend.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gumba.backends.cache_shapes import KVShape, StateShape
from gumba.backends.chunks import Chunk, StepLimits
from gumba.backends.operations import (
    ACTIVATIONS,
    Buffer,
    ExpertMatrices,
    Experts,
    ExpertWeights,
    Matrix,
    Operations,
    Program,
    RopeTable,
    Streams,
)
from gumba.quants import BlockFormat

__all__ = [
    "ACTIVATIONS", "Backend", "Buffer", "CachePages", "Chunk", "ExpertMatrices", "ExpertWeights", "Experts",
    "Function", "KVFormat", "Matrix", "MatrixShape", "Operations", "Packer", "Program", "ProgramSizes", "RopeTable",
    "Runner", "StateRuns", "StateSlots", "StepLimits", "Streams", "Workers",
]  # fmt: skip


# Weights ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatrixShape:
    """A matrix of ``rows`` rows of ``columns`` weights in a block format."""

    format: BlockFormat
    rows: int
    columns: int


class Packer(Protocol):
    """Packs the matrices of one file. Only ``pack`` is called by several threads.

    It is created with the shapes of all matrices of the file, so that it can allocate one piece of memory for all.
    """

    def allocate(self, shape: MatrixShape, scale: float = 1.0) -> Matrix:
        """Allocate a matrix, whose weights are packed later. Operations multiply by ``scale`` what its blocks stand for."""
        ...

    def prepare(self) -> None:
        """Compile what ``pack`` needs."""
        ...

    def row_runs(self, matrix: Matrix) -> Iterable[tuple[int, int]]:
        """The ranges of rows (first, last) that ``pack`` takes, in order: some megabytes each, together the whole matrix."""
        ...

    def pack(self, matrix: Matrix, first: int, rows: np.ndarray) -> None:
        """Pack one of ``row_runs``, from row ``first`` on. Several threads pack different ranges at once.

        ``rows``: the rows in the file, uint8 [count, bytes of a row]; the caller overwrites them after the call.
        """
        ...


# Memory of sequences ----------------------------------------------------------------------------------------------------


class KVFormat(Protocol):
    """The layout of keys and values in a page: ``page_tokens`` tokens of one sequence, for every layer and KV head."""

    @property
    def name(self) -> str:
        """Its ``kv_type``, such as "f16"."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens per page."""
        ...

    def key_bytes(self, head_dim: int, /) -> int:
        """Bytes of one head's keys in a page."""
        ...

    def value_bytes(self, v_dim: int, /) -> int:
        """Bytes of one head's values in a page."""
        ...


class CachePages(Protocol):
    """The memory of a pool of KV pages. ``gumba.runner.kv_cache`` tracks which pages are allocated."""

    @property
    def n_bytes(self) -> int:
        """Size of the whole pool."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy the content of one page to another."""
        ...

    def read(self, page: int, windowed: bool) -> bytes:
        """The content of a page: the layers with a sliding window (``windowed``), or those without.

        All keys, then all values, in the order of the layers. Depends only on the KV format and the backend.
        """
        ...

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill a page with what ``read`` returned. Raises RequestError if its length is wrong."""
        ...

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        ...


class StateSlots(Protocol):
    """The memory of recurrent states: slots of one size, each for the states of all layers of one sequence."""

    @property
    def slot_bytes(self) -> int:
        """Size of a slot."""
        ...

    @property
    def n_bytes(self) -> int:
        """Size of the whole pool."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy the state in one slot to another."""
        ...

    def read(self, slot: int) -> bytes:
        """The state in a slot, ``slot_bytes`` bytes."""
        ...

    def write(self, slot: int, data: bytes) -> None:
        """Fill a slot with what ``read`` returned."""
        ...

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        ...


# Running ----------------------------------------------------------------------------------------------------------------


class StateRuns(Protocol):
    """Says where the states of a step's sequences are: ``gumba.runner.state_pool.StatePool``."""

    def runs(self, chunks: Sequence[Chunk]) -> list[tuple[int, int, int, int]]:
        """For each chunk with tokens: index of its first token in the step, number of tokens, position, slot's byte offset.

        Records that the states include these tokens. Raises RequestError for a slot without the state before them.
        """
        ...


class Workers(Protocol):
    """What computes: a team of threads, or a device's stream. Several models may share it, one step at a time."""

    @property
    def n_threads(self) -> int:
        """Number of threads on the host."""
        ...

    def close(self) -> None:
        """Wait for the current step, then end the threads. Closing twice is harmless."""
        ...


class Runner(Protocol):
    """A finished program with its memory. Only one thread at a time may call it."""

    def run(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Compute one step: logits, float32 [n_outputs, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. If a number is out of range, ``StepLimits.check`` raises the error,
        before anything is computed. Raises EngineError if closed.
        """
        ...

    @property
    def hidden(self) -> np.ndarray:
        """Final hidden states of the last step, from which its logits were computed: float32 [n_outputs, n_embd], a view."""
        ...

    def run_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """As ``run``, but returns the nanoseconds that each of ``operations`` took, int64 [n]."""
        ...

    @property
    def operations(self) -> Sequence[Any]:
        """The operations of a step, in order, for this backend's profiler. Raises EngineError if closed."""
        ...

    def close(self) -> None:
        """Free the program's memory. Closing twice is harmless."""
        ...


class Function(Protocol):
    """A function that is compiled at its first use, or ahead of it."""

    @property
    def name(self) -> str:
        """Unique among the backend's functions."""
        ...

    @property
    def py_func(self) -> Callable[..., Any]:
        """The Python function."""
        ...

    @property
    def is_missing(self) -> bool:
        """Whether it must still be compiled: it is neither loaded nor in the kernel cache."""
        ...

    def compile(self) -> None:
        """Compile or load it now."""
        ...


@dataclass(frozen=True)
class ProgramSizes:
    """Bounds of a program: maximum number of tokens in one step, and of a sequence."""

    max_batch_tokens: int
    max_context: int


class Backend(Protocol):
    """A device that models run on: the CPU with one instruction set, or one GPU."""

    @property
    def name(self) -> str:
        """ "cpu", "cuda"."""
        ...

    @property
    def target(self) -> str:
        """What code is compiled for, e.g. the instruction set. ``name`` and ``target`` determine the layout of packed weights."""
        ...

    # Weights

    def packer(self, shapes: Iterable[tuple[MatrixShape, int]]) -> Packer:
        """A packer for the matrices of a file: each shape, and the number of matrices of this shape."""
        ...

    # Memory of sequences

    @property
    def default_kv_type(self) -> str:
        """The KV format that this device computes with fastest; the same on every device for a portable backend."""
        ...

    @property
    def kv_types(self) -> Sequence[str]:
        """Names of all KV formats."""
        ...

    def kv_format(self, kv_type: object) -> KVFormat:
        """The KV format of that name. Raises RequestError for an unknown one."""
        ...

    def cache_pages(
        self, shapes: Sequence[KVShape], n_pages: int, format: KVFormat, window_pages: CachePages | None = None,
        window: int = 0,
    ) -> CachePages:  # fmt: skip
        """Zeroed memory for ``n_pages`` pages. Raises MemoryError.

        ``shapes``: the keys and values of each layer; ``NOTHING`` for layers in another pool. ``window_pages``: the memory of the
        window pool, if there is one, for the last ``window`` positions.
        """
        ...

    def state_slot_bytes(self, parts: Sequence[Sequence[StateShape]]) -> int:
        """Size of a slot. ``parts``: for each layer, the shapes of the parts of its state."""
        ...

    def state_slots(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> StateSlots:
        """Memory for ``n_slots`` slots. Raises MemoryError."""
        ...

    # Running

    def workers(self, n_threads: int, processors: Sequence[int] | None = None) -> Workers:
        """Start the threads. ``processors``: those that threads are pinned to; None: the system places them.

        Raises ResourceError if a thread cannot be started.
        """
        ...

    def program(
        self, sizes: ProgramSizes, n_threads: int, pages: CachePages, states: StateSlots | None = None
    ) -> Program:
        """An empty program, whose attention stores keys and values in ``pages`` and whose recurrent states are in ``states``."""
        ...

    def runner(
        self, program: Program, hidden: Buffer, logits: Buffer, workers: Workers, limits: StepLimits,
        states: StateRuns | None = None,
    ) -> Runner:  # fmt: skip
        """Finish a program: allocate its buffers and prepare it to run. Raises ResourceError, MemoryError.

        ``hidden``, ``logits``: the buffers that can be read after a step.
        """
        ...

    # Compiling ahead of time

    def functions_of(self, programs: Sequence[Program]) -> list[Function]:
        """The functions that these programs run, each once."""
        ...

    def step_functions(self) -> list[Function]:
        """The functions that loading and running any model needs."""
        ...

    def llama_functions(self) -> list[Function]:
        """The functions that Llama-like models and their profiles need, in every block format and KV format."""
        ...
