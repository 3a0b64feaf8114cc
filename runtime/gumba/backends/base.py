"""What a backend provides: all that ``models/``, ``layers/``, ``loading/`` and ``runner/`` may name of one.

``Operations`` (``gumba.backends.operations``) is what architectures are written in. Here is what stands around it: packing
weights, the memory of sequences, running steps, and ``Backend``, which makes all of them. ``gumba.backends.get`` chooses one.

Everything here is a type. A backend need not inherit from any of it: mypy checks that it fits (``docs/contributing``).
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
    """Packs the matrices of one file. Methods but ``pack`` are called by one thread.

    Made with the shapes of all matrices of the file, so that they can lie in one run of memory.
    """

    def allocate(self, shape: MatrixShape) -> Matrix:
        """A matrix whose weights are yet to be packed."""
        ...

    def prepare(self) -> None:
        """Compile what ``pack`` needs."""
        ...

    def row_runs(self, matrix: Matrix) -> Iterable[tuple[int, int]]:
        """(first, last) row of the parts that ``pack`` takes, in order: some megabytes each, together the whole matrix."""
        ...

    def pack(self, matrix: Matrix, first: int, rows: np.ndarray) -> None:
        """Pack one of ``row_runs``, from row ``first`` on, called by several threads for different runs at a time.

        ``rows``: as the file has them, uint8 [count, bytes of a row]; it may be overwritten after the call.
        """
        ...


# Memory of sequences ----------------------------------------------------------------------------------------------------


class KVFormat(Protocol):
    """How keys and values lie in a page: ``page_tokens`` tokens of one sequence, for every layer and KV head."""

    @property
    def name(self) -> str:
        """As ``kv_type`` names it."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        ...

    def key_bytes(self, head_dim: int, /) -> int:
        """Bytes of one head's keys in a page."""
        ...

    def value_bytes(self, v_dim: int, /) -> int:
        """Bytes of one head's values in a page."""
        ...


class CachePages(Protocol):
    """The memory of a pool of KV pages. Which pages are taken is the business of ``gumba.runner.kv_cache``."""

    @property
    def n_bytes(self) -> int:
        """All its memory."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy a page over another."""
        ...

    def read(self, page: int, windowed: bool) -> bytes:
        """What a page holds of the layers with a window, or of those without.

        Layers in order, all keys, then all values. Depends on the KV format and the backend alone, not on the pool's size.
        """
        ...

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        """Fill a page with what ``read`` returned. Raises RequestError when that has another length."""
        ...

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        ...


class StateSlots(Protocol):
    """The memory of recurrent states: slots of one size, each for the layers' states of one sequence."""

    @property
    def slot_bytes(self) -> int:
        """Memory of a slot."""
        ...

    @property
    def n_bytes(self) -> int:
        """All its memory."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        ...

    def read(self, slot: int) -> bytes:
        """``slot_bytes`` bytes: what a slot holds."""
        ...

    def write(self, slot: int, data: bytes) -> None:
        """Fill a slot with what ``read`` returned."""
        ...

    def close(self) -> None:
        """Free the memory. The other methods raise EngineError from then on."""
        ...


# Running ----------------------------------------------------------------------------------------------------------------


class StateRuns(Protocol):
    """Where a step's sequences have their states: as ``gumba.runner.state_pool.States`` says."""

    def runs(self, chunks: Sequence[Chunk]) -> list[tuple[int, int, int, int]]:
        """Of each chunk with tokens: first token in the step, tokens, position of the first, byte offset of the slot.

        The tokens count as taken in. Raises RequestError for a slot that does not hold what came before.
        """
        ...


class Workers(Protocol):
    """What computes: a team of threads, a device's stream. Programs of several models may share it, one step at a time."""

    @property
    def n_threads(self) -> int:
        """Threads of the host that take part."""
        ...

    def close(self) -> None:
        """Let them end, after a step that is under way. Harmless when repeated."""
        ...


class Runner(Protocol):
    """A finished program with its memory. One thread at a time may call it."""

    def run(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """Compute one step: logits, float32 [n_outputs, n_vocab], in the order of chunks and tokens.

        The rows are a view that the next step overwrites. Calls ``StepLimits.check`` where a number is out of range, before
        anything is computed. Raises EngineError when closed.
        """
        ...

    @property
    def hidden(self) -> np.ndarray:
        """Of the last step: the final hidden states, float32 [n_outputs, n_embd], of which the logits were made; a view."""
        ...

    def run_timed(self, chunks: Sequence[Chunk]) -> np.ndarray:
        """As ``run``; nanoseconds that each of ``operations`` took, int64 [n]."""
        ...

    @property
    def operations(self) -> Sequence[Any]:
        """What a step consists of, in order, for profiles of this backend. Raises EngineError when closed."""
        ...

    def close(self) -> None:
        """Free the program's memory. Harmless when repeated."""
        ...


class Function(Protocol):
    """A function that is compiled at its first use, or ahead of it."""

    @property
    def name(self) -> str:
        """Tells it apart from the backend's others."""
        ...

    @property
    def py_func(self) -> Callable[..., Any]:
        """Its source."""
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
    """Bounds of a program: most tokens of a step, most tokens of a sequence."""

    max_batch_tokens: int
    max_context: int


class Backend(Protocol):
    """A device to run on, as chosen at load: an instruction set of the CPU, one GPU."""

    @property
    def name(self) -> str:
        """ "cpu", "cuda"."""
        ...

    @property
    def target(self) -> str:
        """What code is made for, e.g. the instruction set. Packed weights of equal ``name`` and ``target`` are alike."""
        ...

    # Weights

    def packer(self, shapes: Iterable[tuple[MatrixShape, int]]) -> Packer:
        """A packer for the matrices of a file: shapes, and how many there are of each."""
        ...

    # Memory of sequences

    @property
    def default_kv_type(self) -> str:
        """The KV format that this device computes with fastest."""
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
        """Zeroed memory for ``n_pages`` pages of layers of these shapes. Raises MemoryError.

        ``window_pages``: where layers lie that have a pool of their own, for tokens of the last ``window`` positions. Its
        ``shapes`` are ``NOTHING`` here.
        """
        ...

    def state_slot_bytes(self, parts: Sequence[Sequence[StateShape]]) -> int:
        """Memory of a slot for the states of all layers. ``parts``: of each layer."""
        ...

    def state_slots(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> StateSlots:
        """Memory for ``n_slots`` slots. Raises MemoryError."""
        ...

    # Running

    def workers(self, n_threads: int, processors: Sequence[int] | None = None) -> Workers:
        """Start what computes. ``processors``: those that threads are tied to; None: wherever the system places them.

        Raises ResourceError when a thread cannot be started.
        """
        ...

    def program(
        self, sizes: ProgramSizes, n_threads: int, pages: CachePages, states: StateSlots | None = None
    ) -> Program:
        """An empty program whose attentions store into ``pages`` and whose recurrent layers have their states in ``states``."""
        ...

    def runner(
        self, program: Program, hidden: Buffer, logits: Buffer, workers: Workers, limits: StepLimits,
        states: StateRuns | None = None,
    ) -> Runner:  # fmt: skip
        """Finish a program: place its buffers and make it ready to run. Raises ResourceError, MemoryError.

        ``hidden``, ``logits``: the results that stay readable after a step.
        """
        ...

    # Compiling ahead of time

    def functions_of(self, programs: Sequence[Program]) -> list[Function]:
        """The functions that these programs run, each once."""
        ...

    def step_functions(self) -> list[Function]:
        """The functions that loading a model and running a step need, whatever its program."""
        ...

    def llama_functions(self) -> list[Function]:
        """The functions that programs of the Llama kind run, in every block format and KV format, and profiles of them."""
        ...
