"""A backend that computes nothing: models load on it and take steps, whose results are zeros of the right shapes.

The smallest ``gumba.backends.base.Backend``: docs/contributing/add-backend.md goes through it part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from gumba.backends import base
from gumba.backends.cache_shapes import ConvState, KVShape, StateShape
from gumba.errors import EngineError, RequestError
from support.recording_program import Recorded, RecordedBuffer, RecordedMatrix, RecordingProgram

#: Rows of a matrix that are packed at a time.
ROWS_AT_A_TIME = 7


class RecordingPacker:
    """Keeps nothing of the weights; counts the rows of each matrix that arrive."""

    def __init__(self, shapes: Iterable[tuple[base.MatrixShape, int]]) -> None:
        self.room = sum(count * shape.rows for shape, count in shapes)
        self.packed: dict[int, int] = {}

    def allocate(self, shape: base.MatrixShape, scale: float = 1.0) -> RecordedMatrix:
        return RecordedMatrix(shape.format, shape.rows, shape.columns)

    def prepare(self) -> None:
        pass

    def row_runs(self, matrix: base.Matrix) -> Iterable[tuple[int, int]]:
        for first in range(0, matrix.rows, ROWS_AT_A_TIME):
            yield first, min(first + ROWS_AT_A_TIME, matrix.rows)

    def pack(self, matrix: base.Matrix, first: int, rows: np.ndarray) -> None:
        own = cast(RecordedMatrix, matrix)
        row_bytes = own.columns // own.format.block_size * own.format.type_size
        assert rows.dtype == np.uint8 and rows.shape[1] == row_bytes and first % ROWS_AT_A_TIME == 0
        self.packed[id(matrix)] = self.packed.get(id(matrix), 0) + len(rows)


@dataclass(frozen=True)
class RecordingFormat:
    """float32, token by token."""

    name: str = "f32"
    page_tokens: int = 16

    def key_bytes(self, head_dim: int, /) -> int:
        return 4 * head_dim * self.page_tokens

    def value_bytes(self, v_dim: int, /) -> int:
        return 4 * v_dim * self.page_tokens


class RecordingPages:
    """Remembers of a page what was written to it as a whole."""

    def __init__(
        self, shapes: Sequence[KVShape], n_pages: int, format: base.KVFormat, beside: RecordingPages | None, window: int
    ) -> None:
        self.bytes_of = {
            windowed: sum(shape.bytes_per_page(format) for shape in shapes if (shape.window > 0) == windowed)
            for windowed in (False, True)
        }
        self.n_bytes = n_pages * sum(self.bytes_of.values())
        #: What a program needs to know: each layer's shape, in whichever pool it is.
        self.layers = list(shapes)
        if beside is not None:
            pairs = zip(beside.layers, shapes, strict=True)
            self.layers = [other if other.n_kv_heads else own for other, own in pairs]
        self.window = window
        self._pages: dict[tuple[int, bool], bytes] = {}
        self._closed = False

    def copy(self, source: int, target: int) -> None:
        for windowed in (False, True):
            self.write(target, self.read(source, windowed), windowed)

    def read(self, page: int, windowed: bool) -> bytes:
        self._check()
        return self._pages.get((page, windowed), bytes(self.bytes_of[windowed]))

    def write(self, page: int, data: bytes, windowed: bool) -> None:
        self._check()
        if len(data) != self.bytes_of[windowed]:
            raise RequestError(f"a KV page of {len(data)} bytes: expected {self.bytes_of[windowed]}")
        self._pages[page, windowed] = data

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise EngineError("the model is closed")


class RecordingSlots:
    """Remembers of a slot what was written to it as a whole."""

    def __init__(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> None:
        self.parts = parts
        self.slot_bytes = slot_bytes(parts)
        self.n_bytes = n_slots * self.slot_bytes
        self._slots: dict[int, bytes] = {}

    def copy(self, source: int, target: int) -> None:
        self.write(target, self.read(source))

    def read(self, slot: int) -> bytes:
        return self._slots.get(slot, bytes(self.slot_bytes))

    def write(self, slot: int, data: bytes) -> None:
        self._slots[slot] = data

    def close(self) -> None:
        self._slots.clear()


def slot_bytes(parts: Sequence[Sequence[StateShape]]) -> int:
    """Memory of a slot."""
    sizes = (
        part.width * (part.n_taps - 1) if isinstance(part, ConvState) else part.n_heads * part.dim * part.dim
        for layer in parts
        for part in layer
    )
    return 4 * sum(sizes)


@dataclass
class RecordingWorkers:
    """No threads."""

    n_threads: int
    closed: bool = False

    def close(self) -> None:
        self.closed = True


class RecordingRunner:
    """Checks every step, and gives zeros."""

    def __init__(
        self,
        program: RecordingProgram,
        hidden: RecordedBuffer,
        logits: RecordedBuffer,
        limits: base.StepLimits,
        states: base.StateRuns | None,
    ) -> None:
        assert hidden.of_outputs and logits.of_outputs, "results have a row for each wanted token"
        self._program, self._widths = program, (hidden.width, logits.width)
        self._limits, self._states = limits, states
        self._n_outputs, self._closed = 0, False

    def run(self, chunks: Sequence[base.Chunk]) -> np.ndarray:
        if self._closed:
            raise EngineError("the model is closed")
        self._limits.check(chunks)
        if self._states is not None:
            self._states.runs(chunks)
        counts = ({"none": 0, "last": min(1, len(c.tokens)), "all": len(c.tokens)}[c.outputs] for c in chunks)
        self._n_outputs = sum(counts)
        return np.zeros((self._n_outputs, self._widths[1]), np.float32)

    @property
    def hidden(self) -> np.ndarray:
        return np.zeros((self._n_outputs, self._widths[0]), np.float32)

    def run_timed(self, chunks: Sequence[base.Chunk]) -> np.ndarray:
        self.run(chunks)
        return np.zeros(len(self._program.operations), np.int64)

    @property
    def operations(self) -> list[Recorded]:
        if self._closed:
            raise EngineError("the model is closed")
        return self._program.operations

    def close(self) -> None:
        self._closed = True


class RecordingBackend:
    """``packers``, ``teams``: those that it made, one for each file and for each model."""

    name = "recording"
    target = "nothing"
    default_kv_type = "f32"
    kv_types = ("f32",)

    def __init__(self) -> None:
        self.packers: list[RecordingPacker] = []
        self.teams: list[RecordingWorkers] = []

    def packer(self, shapes: Iterable[tuple[base.MatrixShape, int]]) -> RecordingPacker:
        self.packers.append(RecordingPacker(shapes))
        return self.packers[-1]

    def kv_format(self, kv_type: object) -> RecordingFormat:
        if kv_type != "f32":
            raise RequestError(f"kv_type {kv_type!r}: expected f32")
        return RecordingFormat()

    def cache_pages(
        self,
        shapes: Sequence[KVShape],
        n_pages: int,
        format: base.KVFormat,
        window_pages: base.CachePages | None = None,
        window: int = 0,
    ) -> RecordingPages:
        return RecordingPages(shapes, n_pages, format, cast("RecordingPages | None", window_pages), window)

    def state_slot_bytes(self, parts: Sequence[Sequence[StateShape]]) -> int:
        return slot_bytes(parts)

    def state_slots(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> RecordingSlots:
        return RecordingSlots(parts, n_slots)

    def workers(self, n_threads: int, processors: Sequence[int] | None = None) -> RecordingWorkers:
        self.teams.append(RecordingWorkers(n_threads))
        return self.teams[-1]

    def program(
        self, sizes: base.ProgramSizes, n_threads: int, pages: base.CachePages, states: base.StateSlots | None = None
    ) -> base.Program:
        parts = [] if states is None else cast(RecordingSlots, states).parts
        program = RecordingProgram(sizes.max_context, cast(RecordingPages, pages).layers, parts)
        return cast(base.Program, program)

    def runner(
        self,
        program: base.Program,
        hidden: base.Buffer,
        logits: base.Buffer,
        workers: base.Workers,
        limits: base.StepLimits,
        states: base.StateRuns | None = None,
    ) -> RecordingRunner:
        own = cast(RecordingProgram, program)
        return RecordingRunner(own, cast(RecordedBuffer, hidden), cast(RecordedBuffer, logits), limits, states)

    def functions_of(self, programs: Sequence[base.Program]) -> list[base.Function]:
        return []

    def step_functions(self) -> list[base.Function]:
        return []

    def llama_functions(self) -> list[base.Function]:
        return []


if TYPE_CHECKING:
    _fits: Callable[[], base.Backend] = RecordingBackend
