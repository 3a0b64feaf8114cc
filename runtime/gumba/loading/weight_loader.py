"""Reads a model's tensors, with every check that the kernels rely on, and packs its matrices."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from gumba import quants
from gumba.backends.base import Backend, Matrix, MatrixShape, Packer
from gumba.errors import GGUFError, ModelError, UnsupportedError
from gumba.gguf import GGUFFile, GGUFTensor
from gumba.gguf.types import NOT_WEIGHTS
from gumba.quants import FORMATS, BlockFormat

#: Far above any real model. Sizes are multiplied as Python integers, so nothing overflows below these.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class TensorRule:
    """A tensor that files must have, or may have. ``shape``: rows first; one dimension for a vector."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def require_positive(gguf: GGUFFile, key: str, maximum: int, default: int | None = None) -> int:
    """An integer metadata value in 1 .. ``maximum``; ``default`` if the key is absent (None: it is required)."""
    value = gguf.require(key, int) if default is None else gguf.get(key, int, default)
    if not 1 <= value <= maximum:
        raise ModelError(f"{gguf.path}: metadata {key} is {value}, expected 1 to {maximum}")
    return value


def require_float(
    gguf: GGUFFile, key: str, default: float | None = None, *, minimum: float = 1e-12, maximum: float = 1e12
) -> float:
    """A float metadata value in ``minimum`` .. ``maximum``; ``default`` if the key is absent (None: it is required)."""
    value = gguf.require(key, float) if default is None else gguf.get(key, float, default)
    if not minimum <= value <= maximum:  # also false for NaN
        raise ModelError(f"{gguf.path}: metadata {key} is {value}, expected {minimum:g} to {maximum:g}")
    return float(value)


def check_tensors(gguf: GGUFFile, rules: Mapping[str, TensorRule], ignored: Callable[[str], bool]) -> None:
    """Compare the file's tensors with the rules. Raises ModelError naming all that are missing, unexpected or mis-shaped."""
    expected = {rule.name: rule for rule in rules.values()}
    missing = [n for n, rule in expected.items() if rule.required and n not in gguf.tensors]
    unexpected = [n for n in gguf.tensors if n not in expected and not ignored(n)]
    wrong = [
        f"{n} is {list(gguf.tensors[n].shape)}, expected {list(rule.shape)}"
        for n, rule in expected.items()
        if n in gguf.tensors and gguf.tensors[n].shape != rule.shape
    ]
    problems = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong)):
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            problems.append(f"{len(names)} tensor{'s' if len(names) > 1 else ''} {title}: {shown}")
    if problems:
        raise ModelError(f"{gguf.path}: {'; '.join(problems)}")


def block_format(gguf: GGUFFile, tensor: GGUFTensor) -> BlockFormat:
    """A tensor's block format."""
    try:
        format = FORMATS[tensor.type.id]
    except KeyError:
        why = NOT_WEIGHTS.get(tensor.type.name, "this version cannot run")
        raise UnsupportedError(
            f"{gguf.path}: tensor {tensor.name} is {tensor.type.name}, which {why}: take a file of the same model in another "
            "type, such as q4_k_m or q8_0, or convert the original checkpoint with gumba convert"
        ) from None
    return format


class Loader:
    """Reads tensors and packs matrices for a backend. A context manager: leaving it closes the file handles.

    ``matrix`` only allocates memory; ``run`` then reads and packs all matrices, on all threads, in the order of the file. A
    thread has its own handle and reads some rows at a time: besides the packed copy there are never more than a few megabytes
    of the file in memory. Data is read, not mapped: a file that is truncated while open gives an error instead of a signal.
    Packed weights are not written again.
    """

    def __init__(
        self, gguf: GGUFFile, backend: Backend, n_threads: int, progress: Callable[[float], object] | None = None
    ) -> None:
        self.gguf, self.n_threads, self._progress = gguf, n_threads, progress
        self._backend = backend
        self._total = sum(t.n_bytes for t in gguf.tensors.values()) or 1
        self._done = 0
        self._lock = threading.Lock()
        self._matrices: list[tuple[GGUFTensor, int, Matrix]] = []
        self._packer: Packer | None = None
        self._own = _Files(gguf)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._own.__exit__()

    def vector(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray | None:
        """A tensor as float32, or its rows ``first`` up to ``last``; None if the file has no such tensor.

        Raises ModelError for numbers that are not finite, GGUFError.
        """
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            return None
        format = block_format(self.gguf, tensor)
        data = np.empty(tensor.n_bytes, np.uint8)
        self._own.read(tensor, 0, data)
        values = np.array(format.dequantize(data), np.float32).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.gguf.path}: tensor {name} holds numbers that are not finite")
        values.flags.writeable = False
        self._count(tensor.n_bytes)
        return values[first:last]

    def matrix(self, name: str, first: int = 0, last: int | None = None, scale: float = 1.0) -> Matrix | None:
        """A matrix, or its rows ``first`` up to ``last``; ``run`` packs it. None if the file has no such tensor.

        ``scale``: factor of the tensor's numbers.
        """
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            return None
        n_rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
        last = n_rows if last is None else last
        matrix = self._allocate(block_format(self.gguf, tensor), last - first, columns, scale)
        self._matrices.append((tensor, first, matrix))
        return matrix

    def experts(
        self, name: str, first: int = 0, last: int | None = None, scales: Sequence[float] | None = None
    ) -> list[Matrix] | None:
        """A tensor [n_experts, rows, columns] as one matrix per expert, or rows ``first`` up to ``last`` of each.

        ``run`` packs them. None if the file has no such tensor. ``scales``: factor of the numbers of each expert.
        """
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            return None
        n_experts, n_rows, columns = tensor.shape
        last = n_rows if last is None else last
        format, matrices = block_format(self.gguf, tensor), []
        for e in range(n_experts):
            matrices.append(self._allocate(format, last - first, columns, 1.0 if scales is None else scales[e]))
            self._matrices.append((tensor, e * n_rows + first, matrices[-1]))
        return matrices

    def _allocate(self, format: BlockFormat, rows: int, columns: int, scale: float) -> Matrix:
        """A matrix to be packed. The first call allocates memory for all matrices of the file."""
        if self._packer is None:
            shapes = [
                (MatrixShape(block_format(self.gguf, tensor), *tensor.shape[-2:]), math.prod(tensor.shape[:-2]))
                for tensor in self.gguf.tensors.values()
                if len(tensor.shape) in (2, 3)
            ]
            self._packer = self._backend.packer(shapes)
        return self._packer.allocate(MatrixShape(format, rows, columns), scale)

    def run(self) -> None:
        """Read and pack all matrices. Raises GGUFError when the file cannot be read.

        When an exception leaves this, KeyboardInterrupt and those of the progress callback included, all threads have ended.
        """
        if self._packer is not None:
            self._packer.prepare()
            quants.prepare_check()
            order = sorted(self._matrices, key=lambda m: (str(m[0].path), m[0].offset, m[1]))
            self._matrices = []
            self._pack_all(
                self._packer, [(*matrix, *run) for matrix in order for run in self._packer.row_runs(matrix[2])]
            )
        self._own.check_unchanged()
        self._report()

    def _pack_all(self, packer: Packer, row_runs: Sequence[tuple[GGUFTensor, int, Matrix, int, int]]) -> None:
        """Pack ``row_runs`` (arguments of ``_pack``) on all threads."""
        remaining = iter(row_runs)
        failed: list[BaseException] = []

        def work(own: _Files, report: bool) -> None:
            while not failed:
                with self._lock:
                    row_run = next(remaining, None)
                if row_run is None:
                    return
                self._pack(packer, own, *row_run)
                if report:
                    self._report()

        def help() -> None:
            try:
                with _Files(self.gguf) as own:
                    work(own, False)
            except BaseException as error:
                failed.append(error)

        helpers = [threading.Thread(target=help, name=f"gumba-load-{i}") for i in range(1, self.n_threads)]
        started: list[threading.Thread] = []
        try:
            for helper in helpers[: len(row_runs) - 1]:
                try:
                    helper.start()
                except RuntimeError:  # the system has no more threads: continue with fewer
                    break
                started.append(helper)
            work(self._own, True)
            for helper in started:
                helper.join()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            for helper in started:
                helper.join()
        if failed:
            raise failed[0]

    def _pack(
        self, packer: Packer, own: _Files, tensor: GGUFTensor, start: int, matrix: Matrix, first: int, last: int
    ) -> None:
        """Read and pack rows ``first`` up to ``last`` of a matrix whose first row is the tensor's row ``start``."""
        row_bytes = tensor.n_bytes // math.prod(tensor.shape[:-1])
        data = own.buffer((last - first) * row_bytes)
        own.read(tensor, (start + first) * row_bytes, data)
        rows = data.reshape(last - first, row_bytes)
        self._check_finite(tensor, start + first, rows)
        packer.pack(matrix, first, rows)
        self._count(len(data))

    def _check_finite(self, tensor: GGUFTensor, start: int, rows: np.ndarray) -> None:
        """Raise ModelError for a scale, or a number of a float format, that is NaN or infinite in the rows from ``start`` on."""
        format = FORMATS[tensor.type.id]
        found = quants.find_not_finite(format, rows)
        if found is None:
            return
        *expert, row = (int(i) for i in np.unravel_index(start + found[0], tensor.shape[:-1] or (1,)))
        where = f"row {row} of expert {expert[0]}" if expert else f"row {row}"
        first = found[1] * format.block_size
        what = (
            f"the scale of columns {first} to {first + format.block_size - 1}"
            if format.block_size > 1
            else f"column {first}"
        )
        raise ModelError(
            f"{self.gguf.path}: tensor {tensor.name}, {where}: {what} is NaN or infinite: the file is damaged or was made from "
            "damaged weights; download it again, or convert the original checkpoint with gumba convert"
        )

    def _count(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(min(1.0, self._done / self._total))


class _Files:
    """One thread's handles of a model's files, and its read buffer."""

    def __init__(self, gguf: GGUFFile) -> None:
        self._gguf = gguf
        self._open: dict[Path, FileIO] = {}
        self._buffer = np.empty(0, np.uint8)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def check_unchanged(self) -> None:
        """Raise GGUFError when a file was changed while it was read: the data may be a mixture of both versions."""
        for path in self._gguf.shards:
            file = self._open.get(path)
            try:
                status = path.stat() if file is None else os.fstat(file.fileno())
            except OSError:  # deleted after it was opened
                continue
            if self._gguf.changed(path, status):
                raise GGUFError("the file was changed while it was read", path=path)

    def buffer(self, n_bytes: int) -> np.ndarray:
        if len(self._buffer) < n_bytes:
            whole = np.empty(n_bytes + 64, np.uint8)
            self._buffer = whole[-whole.ctypes.data % 64 :][:n_bytes]  # at a cache line
        return self._buffer[:n_bytes]

    def read(self, tensor: GGUFTensor, offset: int, out: np.ndarray) -> None:
        """Fill ``out`` with a tensor's bytes from ``offset`` on. Raises GGUFError."""
        try:
            file = self._open.get(tensor.path)
            if file is None:
                file = self._open[tensor.path] = FileIO(tensor.path)
                if self._gguf.changed(tensor.path, os.fstat(file.fileno())):
                    raise GGUFError("the file was changed or replaced since it was opened", path=tensor.path)
            file.seek(tensor.offset + offset)
            done = 0
            while done < len(out):
                n = file.readinto(out[done:].data)
                if not n:
                    raise GGUFError("the file ends inside the tensor", path=tensor.path, field=tensor.name)
                done += n
        except OSError as error:
            raise GGUFError(f"cannot be read: {error.strerror}", path=tensor.path, field=tensor.name) from error
