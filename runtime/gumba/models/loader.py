"""Reading a model's metadata and tensors, with every check that the kernels rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gumba.errors import GGUFError, ModelError, UnsupportedError
from gumba.gguf import GGUFFile, GGUFTensor
from gumba.kernels.packed import PackedMatrix, pack
from gumba.quants import FORMATS
from gumba.simd.isa import Isa

#: No model that exists comes near these; sizes are multiplied as Python integers, so nothing overflows below them.
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class TensorRule:
    """What a tensor must look like. ``shape``: rows first; one dimension for a vector. ``required``: fail when missing."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def require_positive(gguf: GGUFFile, key: str, most: int, default: int | None = None) -> int:
    """An integer metadata value in 1 .. ``most``; ``default`` when the key is absent (None: it must be there)."""
    value = gguf.require(key, int) if default is None else gguf.get(key, int, default)
    if not 1 <= value <= most:
        raise ModelError(f"{gguf.path}: metadata {key} is {value}, expected 1 to {most}")
    return value


def require_float(
    gguf: GGUFFile, key: str, default: float | None = None, *, least: float = 1e-12, most: float = 1e12
) -> float:
    """A float metadata value in ``least`` .. ``most``; ``default`` when the key is absent (None: it must be there)."""
    value = gguf.require(key, float) if default is None else gguf.get(key, float, default)
    if not least <= value <= most:  # NaN is not, either
        raise ModelError(f"{gguf.path}: metadata {key} is {value}, expected {least:g} to {most:g}")
    return float(value)


def check_tensors(gguf: GGUFFile, rules: Mapping[str, TensorRule], ignored: Callable[[str], bool]) -> None:
    """Compare the file's tensors with the table: missing, unexpected and mis-shaped are reported together."""
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


def block_format(gguf: GGUFFile, tensor: GGUFTensor) -> ModuleType:
    """The module of a tensor's block format."""
    try:
        format: ModuleType = FORMATS[tensor.type.id]
    except KeyError:
        known = ", ".join(f.NAME for f in FORMATS.values())
        raise UnsupportedError(
            f"{gguf.path}: tensor {tensor.name} is {tensor.type.name}, which this version cannot run (it runs {known})"
        ) from None
    if tensor.shape[-1] % format.BLOCK_SIZE:
        raise ModelError(
            f"{gguf.path}: tensor {tensor.name} has rows of {tensor.shape[-1]}, expected a multiple of {format.BLOCK_SIZE}"
        )
    return format


class Loader:
    """Reads tensors, counts the bytes, and weaves matrices for an instruction set.

    Data is read, not mapped: a file that is cut while open gives an error instead of a signal, and its pages do not count as
    this process's memory beside the woven copy.
    """

    def __init__(
        self, gguf: GGUFFile, isa: Isa, n_threads: int, progress: Callable[[float], Any] | None = None
    ) -> None:
        self.gguf, self.isa, self.n_threads, self._progress = gguf, isa, n_threads, progress
        self._total = sum(t.n_bytes for t in gguf.tensors.values()) or 1
        self._done = 0

    def _read(self, tensor: GGUFTensor, offset: int, n_bytes: int) -> np.ndarray:
        data = np.empty(n_bytes, np.uint8)
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset + offset)
            if file.readinto(data.data) != n_bytes:
                raise GGUFError("the file ends inside the tensor", path=tensor.path, field=tensor.name)
        return data

    def _count(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._progress is not None:
            self._progress(min(1.0, self._done / self._total))

    def vector(self, name: str) -> np.ndarray | None:
        """A vector as float32; None when the file has none of that name."""
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            return None
        format = block_format(self.gguf, tensor)
        values = format.dequantize(self._read(tensor, 0, tensor.n_bytes))
        if not np.isfinite(values).all():
            raise ModelError(f"{self.gguf.path}: tensor {name} holds numbers that are not finite")
        self._count(tensor.n_bytes)
        return np.asarray(values, np.float32).reshape(tensor.shape)

    def matrix(self, name: str) -> PackedMatrix | None:
        """A matrix woven for the kernels; None when the file has none of that name."""
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            return None
        format = block_format(self.gguf, tensor)
        n_rows, columns = tensor.shape
        row_bytes = columns // format.BLOCK_SIZE * format.TYPE_SIZE

        def read(first: int, count: int) -> np.ndarray:
            self._count(count * row_bytes)
            return self._read(tensor, first * row_bytes, count * row_bytes).reshape(count, row_bytes)

        return pack(format, n_rows, columns, read, self.isa, self.n_threads)
