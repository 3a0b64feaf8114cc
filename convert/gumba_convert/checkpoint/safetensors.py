"""Reads untrusted safetensors files.

    header length N u64 little-endian | N bytes of JSON | data
    JSON: {"__metadata__": {str: str}, NAME: {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}}

Offsets count from the start of the data. The rules are those of the format's own library, all of them checked here:
the tensors fill the data exactly, without gaps or overlaps, and every size agrees with its shape and dtype. Only the
header is kept in memory; tensor data is read in pieces by position, never mapped, so that a file that shrinks while it is read
causes an error instead of a signal.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gumba.errors import ConvertError
from gumba_convert.checkpoint.json_object import JsonObject

MAX_HEADER = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 16

# Bits of one element. Only F32, F16 and BF16 can be converted; tensors of other dtypes may exist.
DTYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
PACKED = np.dtype(np.uint8)


@dataclass(frozen=True)
class SafeTensor:
    """One tensor of a safetensors file: `start` is the position of its first byte in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, SafeTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ConvertError: the file is not well-formed; names the file, and the tensor at fault.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise ConvertError(f"{path}: {size} bytes, too short for a safetensors header")
            if length > min(MAX_HEADER, size - 8):
                limit = f"the file has {size} bytes" if length > size - 8 else f"the limit is {MAX_HEADER}"
                raise ConvertError(f"{path}: safetensors header of {length} bytes, but {limit}")
            text = file.read(length)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error
    entries = _parse(path, text)
    tensors = {name: _entry(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _check_cover(path, tensors, 8 + length, size)
    return tensors


def _parse(path: Path, text: bytes) -> JsonObject:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ConvertError(f"{path}: {twice!r} appears twice in the safetensors header")
        return result

    if not text.startswith(b"{"):
        raise ConvertError(f"{path}: the safetensors header does not start with '{{'")
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: the safetensors header is not valid JSON: {error}") from None
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise ConvertError(f"{path}: __metadata__ of the safetensors header is not a map of strings")
    return entries  # type: ignore[no-any-return]


def _entry(path: Path, name: str, entry: object, data: int, size: int) -> SafeTensor:
    def fail(message: str) -> ConvertError:
        return ConvertError(f"{path}: tensor {name!r}: {message}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("its header entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPES.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise fail(f"unknown dtype {dtype!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 2**63 for n in shape)
    ):
        raise fail(f"shape {str(shape)[:80]} is not a list of at most {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise fail(f"data_offsets {str(offsets)[:80]} are not two numbers")
    begin, end = offsets
    if not 0 <= begin <= end <= size - data:
        raise fail(f"data_offsets {offsets} reach outside the {size - data} bytes of data")
    n_bits = math.prod(shape) * bits
    if n_bits != (end - begin) * 8:
        raise fail(f"{end - begin} bytes of data for shape {shape} of {dtype}, which takes {n_bits / 8:g}")
    return SafeTensor(path, name, dtype, tuple(shape), data + begin, end - begin)


def _check_cover(path: Path, tensors: dict[str, SafeTensor], data: int, size: int) -> None:
    """Check that the tensors fill the data exactly."""
    position = data
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.n_bytes)):
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise ConvertError(f"{path}: tensor {tensor.name!r} {kind} (byte {tensor.start}, expected {position})")
        position += tensor.n_bytes
    if position != size:
        raise ConvertError(f"{path}: {size - position} bytes after the last tensor")


class FileReader:
    """Reads elements of a tensor by position; safe to use from several threads. Keeps each file open once."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def open(self, tensors: list[SafeTensor]) -> None:
        """Open the files of `tensors`; must be called before `read`."""
        for tensor in tensors:
            if tensor.path not in self._files:
                try:
                    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
                    self._files[tensor.path] = os.open(tensor.path, flags)
                except OSError as error:
                    raise ConvertError(f"{tensor.path}: cannot be read: {error.strerror}") from error

    def read(self, tensor: SafeTensor, first: int, count: int, *, packed: bool = False) -> np.ndarray:
        """Elements `first` to `first + count` of a tensor, flat, as stored (BF16 as uint16, bytes as uint8).

        Raises:
            ConvertError: the dtype cannot be converted, or the file ended early.
        """
        dtype = PACKED if packed and tensor.dtype == "U8" else FLOATS.get(tensor.dtype)
        if dtype is None:
            raise ConvertError(
                f"{tensor.path}: tensor {tensor.name!r} is {tensor.dtype}; only F32, F16 and BF16 can be converted"
            )
        data = np.empty(count, dtype)
        view = data.data.cast("B") if count else memoryview(b"")
        offset, done = tensor.start + first * dtype.itemsize, 0
        while done < len(view):
            try:
                n = _read_into(self._files[tensor.path], view[done:], offset + done)
            except OSError as error:
                raise ConvertError(f"{tensor.path}: tensor {tensor.name!r}: {error.strerror}") from error
            if n == 0:
                raise ConvertError(f"{tensor.path}: tensor {tensor.name!r}: the file ended early; did it change?")
            done += n
        return data

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if hasattr(os, "preadv"):

    def _read_into(descriptor: int, view: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [view], offset)

else:
    import threading

    _SEEK = threading.Lock()

    def _read_into(descriptor: int, view: memoryview, offset: int) -> int:
        with _SEEK:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, min(len(view), 1 << 24))
        view[: len(data)] = data
        return len(data)
