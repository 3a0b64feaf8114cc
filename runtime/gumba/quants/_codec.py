"""Quantizes and dequantizes whole tensors with one format's compiled loops: checks, chunks, threads, errors.

A tensor is converted in chunks of ``CHUNK`` values, so that the memory used besides input and output stays at 1 MB per
thread, whatever the tensor's size and type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gumba.errors import ModelError, RequestError, UnsupportedError

if TYPE_CHECKING:  # imports llvmlite
    from gumba.jit.jit import Entry

T = TypeVar("T", bound=np.generic)

#: Values converted at a time; a whole number of blocks of every format.
CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec:
    """Writes and reads the blocks of one format.

    ``name``: in lower case ("q4_0"); ``block_size``: weights in a block; ``type_size``: bytes of a block; ``loops()``: the
    compiled encoder (None: blocks are only read) and decoder, ``(address in, address out, number of blocks, values in a
    block)`` -> 0, or 1 for "not finite".
    """

    name: str
    block_size: int
    type_size: int
    loops: Callable[[], tuple[Entry | None, Entry]]

    def quantize(
        self, x: NDArray[np.generic], out: NDArray[np.uint8] | None = None, *, n_threads: int = 1
    ) -> NDArray[np.uint8]:
        """Encode ``x``: float32, float16, or bfloat16 as uint16, ``[..., n]``; n is a multiple of the block size.

        Returns uint8 ``[..., n / block_size * type_size]``: ``out`` when given (C-contiguous, of that shape). The
        result does not depend on ``n_threads``. The GIL is released while values are encoded.

        Raises ModelError for rows that are not whole blocks, and for a NaN, an infinity or a value that the format cannot
        hold (in most, one beyond float16's range; NVFP4 clips to 2,688, as ggml does), naming its index; RequestError for a
        wrong dtype or a wrong ``out``; UnsupportedError for a format that is only read.
        """
        encoder = self.loops()[0]
        if encoder is None:
            raise UnsupportedError(f"{self.name} blocks are read, but not written by this version")
        source = np.asarray(x)
        widen = _widener(source.dtype)
        shape = self._shape(source.shape, self.block_size, self.type_size, "values")
        result = _output(out, shape, np.dtype(np.uint8))
        encode = _ready(encoder)
        unit = self.block_size if source.flags.c_contiguous else max(source.shape[-1], 1)
        rows, target = source.reshape(-1, unit), result.reshape(-1)

        def work(first: int, last: int) -> None:
            values = widen(rows[first:last])
            blocks = target[first * unit // self.block_size * self.type_size :]
            if encode(_address(values), _address(blocks), values.size // self.block_size, self.block_size):
                self._explain(values, blocks, first * unit, source.shape)

        _spread(work, len(rows), unit, n_threads)
        return result

    def dequantize(
        self, data: NDArray[np.uint8], out: NDArray[np.float32] | None = None, *, n_threads: int = 1
    ) -> NDArray[np.float32]:
        """Decode ``data``: uint8 ``[..., bytes]``, whole blocks in each row.

        Returns float32 ``[..., bytes / type_size * block_size]``: ``out`` when given (C-contiguous, of that shape).
        Any bytes decode to something; a block whose scale is not finite decodes to values that are not finite.

        Raises ModelError for rows that are not whole blocks; RequestError for a wrong dtype or a wrong ``out``.
        """
        source = np.asarray(data)
        if source.dtype != np.uint8:
            raise RequestError(f"{self.name} blocks must be given as uint8, not {source.dtype}")
        shape = self._shape(source.shape, self.type_size, self.block_size, "bytes")
        result = _output(out, shape, np.dtype(np.float32))
        decode = _ready(self.loops()[1])
        unit = self.type_size if source.flags.c_contiguous else max(source.shape[-1], 1)
        rows, target = source.reshape(-1, unit), result.reshape(-1)

        def work(first: int, last: int) -> None:
            blocks = _plain(rows[first:last], 4)
            values = target[first * unit // self.type_size * self.block_size :]
            decode(_address(blocks), _address(values), blocks.size // self.type_size, self.block_size)

        _spread(work, len(rows), unit * self.block_size // self.type_size, n_threads)
        return result

    def _shape(self, shape: tuple[int, ...], block: int, becomes: int, what: str) -> tuple[int, ...]:
        if not shape:
            raise ModelError(f"{self.name} holds rows of {what}, not a single number")
        if shape[-1] % block:
            raise ModelError(f"rows of {shape[-1]} {what} are not whole {self.name} blocks of {block} {what}")
        return (*shape[:-1], shape[-1] // block * becomes)

    def _explain(
        self, values: NDArray[np.float32], blocks: NDArray[np.uint8], start: int, shape: Sequence[int]
    ) -> None:
        """Raise the error for a chunk that did not encode to finite numbers: which value, where, and why."""
        not_finite = np.flatnonzero(~np.isfinite(values))
        if not_finite.size:
            at, why = int(not_finite[0]), "weights must be finite"
        else:
            encoded = blocks[: values.size // self.block_size * self.type_size]
            first = int(np.flatnonzero(~np.isfinite(self.dequantize(encoded)))[0]) // self.block_size * self.block_size
            at = first + int(np.argmax(np.abs(values.reshape(-1)[first : first + self.block_size])))
            why = f"too large for {self.name}"
        index = ", ".join(str(i) for i in np.unravel_index(start + at, shape))
        raise ModelError(f"value {values.reshape(-1)[at]:g} at [{index}]: {why}")


def _address(array: NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])


def _plain(array: NDArray[T], alignment: int) -> NDArray[T]:
    """The same numbers, contiguous and at an aligned address; copied only if they are not."""
    array = np.ascontiguousarray(array)
    return array.copy() if _address(array) % alignment else array


def _widener(dtype: np.dtype[np.generic]) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    """The conversion of values of this type to float32."""
    if dtype == np.float32:
        return lambda x: _plain(cast("NDArray[np.float32]", x), 4)
    if dtype not in (np.float16, np.uint16):
        raise RequestError(f"weights must be float32, float16, or bfloat16 as uint16, not {dtype}")
    from gumba.quants import _compiled

    loop = _ready(_compiled.widen_f16 if dtype == np.float16 else _compiled.widen_bf16)

    def widen(x: NDArray[np.generic]) -> NDArray[np.float32]:
        narrow = _plain(x, 2)
        values = np.empty(narrow.size, np.float32)
        loop(_address(narrow), _address(values), narrow.size, 1)
        return values

    return widen


def _output(out: NDArray[T] | None, shape: tuple[int, ...], dtype: np.dtype[T]) -> NDArray[T]:
    if out is None:
        return np.empty(shape, dtype)
    if out.dtype != dtype or out.shape != shape:
        raise RequestError(f"out must be {dtype} {list(shape)}, not {out.dtype} {list(out.shape)}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise RequestError("out must be C-contiguous, aligned and writeable")
    return out


def _ready(loop: Entry) -> Entry:
    """Compile now rather than inside a thread pool, where all but one thread would only wait."""
    loop.compile()
    return loop


def _spread(work: Callable[[int, int], None], n_rows: int, row_values: int, n_threads: int) -> None:
    """Call ``work(first, last)`` for chunks that cover all rows; the first chunk's error is the one raised."""
    step = max(1, CHUNK // row_values)
    starts = range(0, n_rows, step)
    if n_threads == 1 or len(starts) < 2:
        for first in starts:
            work(first, min(first + step, n_rows))
        return
    stopped = False
    failures: dict[int, Exception] = {}
    left = iter(starts)  # shared: a free thread takes the next chunk

    def worker() -> None:
        nonlocal stopped
        for first in left:
            if stopped:
                return
            try:
                work(first, min(first + step, n_rows))
            except Exception as error:
                failures[first] = error
                stopped = True

    with ThreadPoolExecutor(n_threads - 1, "gumba-quants") as pool:
        tasks = [pool.submit(worker) for _ in range(min(n_threads, len(starts)) - 1)]
        try:
            worker()
        except BaseException:  # Ctrl-C: the other threads must not convert the rest of a large tensor
            stopped = True
            raise
    for task in tasks:
        task.result()
    if failures:
        raise failures[min(failures)]
