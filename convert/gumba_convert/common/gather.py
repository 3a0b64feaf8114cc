"""Reads rows of a planned tensor from the files of a checkpoint: reordered, stacked, transposed, changed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from gumba_convert.checkpoint.safetensors import FileReader, SafeTensor
from gumba_convert.common.plan import Source

# Scattered rows are read as one span if it has at most this many times their number.
MAX_SPREAD = 4
#: Number of values of two tensors compared at once: 4 MB of float32 each.
COMPARE_CHUNK = 1 << 20
#: The values of MXFP4's codes: sign, two bits of exponent, one of fraction.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def unit(source: Source) -> int:
    """Number of rows that must be read together: all of a transposed matrix."""
    return source.shape[-2] if source.transposed else 1


def read_rows(reader: FileReader, source: Source, first: int, n_rows: int) -> np.ndarray:
    """Rows `first` to `first + n_rows` of the tensor to write: [n_rows, row_length], bfloat16 as uint16.

    Raises:
        ConvertError: a tensor of a dtype that cannot be converted, or a file that ended early.
    """
    length = source.row_length
    if source.mxfp4:
        return _mxfp4_rows(reader, source, first, n_rows)
    if source.transposed:
        height = source.shape[-2]  # selected from a stored matrix: [length, height]
        selected = _selected(reader, source, first // height * length, n_rows // height * length, height)
        rows = selected.reshape(-1, length, height).swapaxes(1, 2).reshape(n_rows, length)
    else:
        rows = _selected(reader, source, first, n_rows, length)
    return source.change(_float32(rows)) if source.change is not None else rows


def _selected(reader: FileReader, source: Source, first: int, n_rows: int, length: int) -> np.ndarray:
    """Rows `first` to `first + n_rows` of the tensor to write, before transposing, of `length` values each."""
    if source.columns is None:
        return _gather(reader, source, first, n_rows, length)
    stored = source.parts if isinstance(source.parts, np.ndarray) else source.parts[0]
    return _gather(reader, source, first, n_rows, stored.shape[-1])[:, source.columns]


def _gather(reader: FileReader, source: Source, first: int, n_rows: int, length: int) -> np.ndarray:
    """Complete stored rows, of `length` values each."""
    if isinstance(source.parts, np.ndarray):
        flat = source.parts.reshape(-1, length)
        return flat[first : first + n_rows] if source.rows is None else flat[source.rows[first : first + n_rows]]
    wanted = np.arange(first, first + n_rows) if source.rows is None else source.rows[first : first + n_rows]
    starts = np.cumsum([0, *(part.n_elements // length for part in source.parts)])
    owner = np.searchsorted(starts, wanted, side="right") - 1
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1), n_rows]
    pieces = [
        _part_rows(reader, source.parts[owner[begin]], wanted[begin:end] - starts[owner[begin]], length)
        for begin, end in pairwise(cuts)
    ]
    if len({piece.dtype for piece in pieces}) > 1:
        pieces = [_float32(piece) for piece in pieces]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _part_rows(reader: FileReader, tensor: SafeTensor, rows: np.ndarray, length: int) -> np.ndarray:
    """The rows with the indices `rows` of one tensor of the checkpoint."""
    low, high = int(rows.min()), int(rows.max()) + 1
    if high - low <= MAX_SPREAD * len(rows):
        data = reader.read(tensor, low * length, (high - low) * length).reshape(-1, length)
        return data if high - low == len(rows) and bool(np.all(np.diff(rows) == 1)) else data[rows - low]
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
    return np.concatenate(
        [
            reader.read(tensor, int(rows[begin]) * length, (end - begin) * length).reshape(-1, length)
            for begin, end in pairwise(cuts)
        ]
    )


def _mxfp4_rows(reader: FileReader, source: Source, first: int, n_rows: int) -> np.ndarray:
    """Rows of a tensor in MXFP4, in float32: blocks of 32 four-bit values, the first of each byte in its low half, times
    a power of two (OCP Microscaling Formats, version 1.0)."""
    blocks, scales = source.parts
    wanted = np.arange(first, first + n_rows) if source.rows is None else source.rows[first : first + n_rows]
    low, count, n_blocks = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1, source.row_length // 32
    codes = reader.read(blocks, low * n_blocks * 16, count * n_blocks * 16, packed=True)
    exponents = reader.read(scales, low * n_blocks, count * n_blocks, packed=True)
    codes, exponents = (
        codes.reshape(count, n_blocks, 16)[wanted - low],
        exponents.reshape(count, n_blocks)[wanted - low],
    )
    values = FP4[np.stack((codes & 15, codes >> 4), axis=-1)].reshape(n_rows, n_blocks, 32)
    scaled: np.ndarray = np.ldexp(values, exponents[..., None].astype(np.int32) - 127)
    return scaled.reshape(n_rows, -1)


def same_values(reader: FileReader, a: SafeTensor, b: SafeTensor) -> bool:
    """Whether two tensors have one shape and equal values, NaN unequal to itself; reads up to the first difference."""
    if a.shape != b.shape:
        return False
    reader.open([a, b])
    for first in range(0, a.n_elements, COMPARE_CHUNK):
        n = min(COMPARE_CHUNK, a.n_elements - first)
        x, y = reader.read(a, first, n), reader.read(b, first, n)
        if not np.array_equal(_float32(x), _float32(y)):
            return False
    return True


def _float32(values: np.ndarray) -> np.ndarray:
    """Float32 of stored values; uint16 is bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def where(source: Source) -> str:
    """The tensor's name for error messages."""
    if isinstance(source.parts, np.ndarray):
        return f"tensor {source.name!r}"
    names = [part.name for part in source.parts]
    return f"{source.parts[0].path}: tensor {names[0]!r}" + (f" to {names[-1]!r}" if len(names) > 1 else "")
