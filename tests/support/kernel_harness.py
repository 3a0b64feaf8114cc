"""What the kernel tests share: calling one kernel with a record and a batch record, as the executor does."""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest

from gumba.backends.cpu.kernels import record as op
from gumba.backends.cpu.kernels.record import FIRST_ARGUMENT, RECORD_WORDS, Kernel
from gumba.backends.cpu.packing import ROW_ALIGN, PackedMatrix, aligned_empty, pack_matrix
from gumba.quants import FORMATS, BlockFormat, FloatFormat
from gumba.simd import detect
from gumba.simd.isa import Isa
from gumba.simd.processor import request_tiles

_FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)

#: Every instruction set that this machine can run, and this process may.
ISAS = [
    isa for isa in map(detect.known().get, detect.available()) if isa and (isa.matrix_unit is None or request_tiles())
]
GENERIC = detect.known()["generic"]


def read_of_isa(*sources: Any) -> set[str]:
    """The attributes of an instruction set that these modules or functions read, directly or by its methods, but for its name."""
    read: set[str] = set()
    names = re.findall(r"\bisa\.(\w+)", "".join(map(inspect.getsource, sources)))
    while names:
        name = names.pop()
        if callable(method := vars(Isa).get(name)):
            names += re.findall(r"\bself\.(\w+)", inspect.getsource(method))
        else:
            read.add(name)
    return read - {"name"}


def isas_with(read: Iterable[str]) -> list[Isa]:
    """The instruction sets that differ in these attributes; of those that are alike in all of them, the first.

    Code that reads nothing else of an instruction set is the same for them, byte for byte, and takes seconds to compile.
    """
    kinds: dict[tuple[object, ...], Isa] = {}
    for isa in ISAS:
        kinds.setdefault(tuple(getattr(isa, name) for name in sorted(read)), isa)
    return list(kinds.values())


#: For code without products of bfloat16: every instruction set with anything else of its own.
ISAS_BUT_BF16 = isas_with(
    {field.name for field in fields(Isa)} - {"name", "needs", "portable", "dot_bf16", "round_bf16"}
)
#: Formats whose products differ in form: plain numbers, an offset, a minimum, parts with scales and minimums of their own, halves
#: with scales of their own, signed bytes, a table, a codebook.
FORMS = ("f32", "f16", "q4_0", "q4_1", "q4_k", "q6_k", "q8_0", "iq4_nl", "iq2_xs")
#: Of kernels that call the same code as the plain product: some of these. The others are for ``pytest -m isas``.
KINDS_OF_FORMATS = [
    format if format.name in ("f32", "q4_1", "q4_k", "q6_k") else pytest.param(format, marks=pytest.mark.isas)
    for format in FORMATS.values()
]


def of_formats(formats: Iterable[BlockFormat], isas: Sequence[Isa]) -> list[Any]:
    """Parameters (format, instruction set). Sets but the best one are for ``pytest -m isas``, since a product takes seconds to
    compile; every run tests one format, Q4_1, on all sets, and one of each form on the generic set.
    """

    def always(format: BlockFormat, isa: Isa) -> bool:
        return isa is isas[0] or format.name == "q4_1" or (isa is GENERIC and format.name in FORMS)

    return [
        pytest.param(format, isa, marks=() if always(format, isa) else pytest.mark.isas)
        for format in formats
        for isa in isas
    ]


#: The distance from 1 to the next smaller float32.
EPS32 = 2.0**-24


def isa_id(isa: object) -> str:
    """The name that a test's parameter shows."""
    return getattr(isa, "name", None) or str(isa)


class Batch:
    """One batch record, and the arrays that it points to."""

    def __init__(
        self,
        n_tokens: int,
        tokens: Sequence[int] = (),
        positions: Sequence[int] = (),
        slots: Sequence[int] = (),
        tiles: Sequence[tuple[int, ...]] = (),
        output_rows: Sequence[int] = (),
        split: int = 0,
        runs: Sequence[tuple[int, ...]] = (),
        window_slots: Sequence[int] = (),
    ) -> None:
        self.words = np.zeros(op.BATCH_WORDS, np.int64)
        self.tiles = list(tiles)
        self._set(op.N_TOKENS, n_tokens)
        self._set(op.N_TILES, len(tiles))
        self._set(op.N_OUTPUTS, len(output_rows))
        self._set(op.SPLIT, split)
        self._set(op.N_RUNS, len(runs))
        self._arrays = [
            (op.TOKENS, np.array(tokens, np.int32)),
            (op.POSITIONS, np.array(positions, np.int32)),
            (op.SLOTS, np.array(slots, np.int64)),
            (op.TILES, np.array(tiles, np.int64)),
            (op.OUTPUT_ROWS, np.array(output_rows, np.int32)),
            (op.RUNS, np.array(runs, np.int64)),
            (op.WINDOW_SLOTS, np.array(window_slots, np.int64)),
        ]
        for offset, array in self._arrays:
            self._set(offset, array.ctypes.data)

    def _set(self, offset: int, value: int) -> None:
        self.words[offset // 8] = value


def rows(values: np.ndarray, rows: int | None = None, padding: float = np.nan) -> np.ndarray:
    """float32 [rows, padded width] at a cache line, holding ``values``; all the rest is ``padding``."""
    n, width = values.shape
    count = n if rows is None else rows
    padded = -(-width // ROW_ALIGN) * ROW_ALIGN
    made = aligned_empty(4 * count * padded).view(np.float32).reshape(count, padded)
    made[:] = padding
    made[:n, :width] = values
    return made


@dataclass
class Setup:
    """One kernel with its inputs, what it must make of them, and how close.

    ``out``: the memory that the kernel writes (put back to what it was before each run); ``view``: the results in it.
    ``tolerance``: largest absolute difference, one number or an array; 0 asks for the same bits. ``keep``: what must
    live as long as the addresses among the arguments.
    """

    kernel: Kernel
    arguments: dict[str, int | float]
    batch: Batch
    out: np.ndarray
    view: Callable[[np.ndarray], np.ndarray]
    expected: np.ndarray
    tolerance: Any = 0
    keep: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before = self.out.copy()

    def run(self, n_threads: int = 1, order: Iterable[int] | None = None, batch: Batch | None = None) -> np.ndarray:
        """Results of all shares, run one after the other in ``order``."""
        self.out[:] = self._before
        record = np.zeros(RECORD_WORDS, np.int64)
        words = self.kernel.words(self.arguments)
        record[0] = self.kernel.address
        record[FIRST_ARGUMENT : FIRST_ARGUMENT + len(words)] = words
        function = _FUNCTION(int(record[0]))
        words_of_batch = (batch or self.batch).words
        for thread in range(n_threads) if order is None else order:
            function(record.ctypes.data, words_of_batch.ctypes.data, thread, n_threads)
        return self.view(self.out).copy()

    def check(self) -> np.ndarray:
        """Run it whole, compare with what is expected, then in shares: the same bits. Returns the results."""
        got = self.run()
        assert got.shape == self.expected.shape
        if np.ndim(self.tolerance) == 0 and self.tolerance == 0:
            np.testing.assert_array_equal(got, self.expected)
        else:
            off = np.abs(got.astype(np.float64) - self.expected)
            assert np.all(np.isfinite(got))
            assert np.all(off <= self.tolerance), f"off by {off.max()}, {np.max(off / self.tolerance)} times too much"
        for order in ([1, 0], [2, 0, 1], list(range(50))):
            np.testing.assert_array_equal(same_bits(self.run(len(order), order)), same_bits(got))
        return got


def same_bits(values: np.ndarray) -> np.ndarray:
    """The bytes of an array: for comparisons in which NaN equals NaN and 0.0 differs from -0.0."""
    return np.ascontiguousarray(values).view(np.uint8)


def random_rows(format: BlockFormat, n_rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [n_rows, bytes of a row]: blocks of random bits whose float fields are ordinary numbers."""
    if isinstance(format, FloatFormat):
        return np.asarray(format.quantize(rng.standard_normal((n_rows, columns)).astype(np.float32)))
    blocks = np.empty((n_rows, columns // format.block_size), format.dtype)
    raw = blocks.view(np.uint8)
    raw[:] = rng.integers(0, 256, raw.shape)
    for name in format.dtype.names:
        if np.issubdtype(format.dtype[name].base, np.floating):
            blocks[name] = rng.standard_normal(blocks[name].shape) * 0.01
        elif format.name == "nvfp4" and name == "d":  # all scales but the one that is none
            blocks[name] = rng.integers(0, 127, blocks[name].shape)
        elif name == "e":  # a power of two
            blocks[name] = rng.integers(120, 126, blocks[name].shape)
    if format.name == "iq1_m":
        set_iq1_m_scales(blocks, rng.standard_normal(blocks.shape) * 0.01)
    return raw


def set_iq1_m_scales(blocks: np.ndarray, d: np.ndarray | float) -> None:
    """Give blocks of IQ1_M these scales: 4 bits in the top of each of four 16-bit words."""
    bits = np.broadcast_to(np.asarray(d, np.float16), blocks.shape).view(np.uint16)[..., None]
    blocks["scales"] = blocks["scales"] & 0x0FFF | bits >> np.array([0, 4, 8, 12], np.uint16) << 12


def packed(format: BlockFormat, raw: np.ndarray, columns: int, isa: Isa) -> PackedMatrix:
    """The rows of blocks, packed for ``isa``."""
    return pack_matrix(format, len(raw), columns, lambda first, count: raw[first : first + count], isa)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def n_blocks(width: int) -> int:
    return -(-width // 32)


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng([7, *seed])
