"""Arrays in metadata, decoded on demand.

A vocabulary is an array of strings, each stored as a length (u64) and its bytes:

    | 5 0 0 0 0 0 0 0 | h e l l o | 1 0 0 0 0 0 0 0 | , | ...

Only reading all lengths one after another shows where the array ends. `string_bounds` does that; it is the only part
of opening a file that takes noticeable time. Measured for 262,144 strings of 6 bytes (3.6 MB),
one core: a loop over ``struct.unpack_from`` 33 ms; the same without keeping the positions 21 ms; a loop over
``int.from_bytes`` 35 ms; ``bytes.split`` at seven zeros 22 ms; pointer doubling in numpy 354 ms; distances between
bytes that are not zero 11 ms; the method used here 5 ms; the same, searching for seven zeros by and-ing shifted masks,
4 ms, but three times the code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NoReturn, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from gumba.errors import GGUFError
from gumba.gguf.mapped import Cursor, MappedFile, printable
from gumba.gguf.types import NUMPY_DTYPES, ValueType

_U64 = struct.Struct("<Q")
_WINDOW = 1 << 18  # bytes searched together: small enough for the second-level cache
_PORTION = 1 << 16  # strings decoded together: bounds what positions take as Python integers
_BURST = 64  # strings walked one by one after a guess failed, before the next guess
_LONGEST_BURST = 1 << 16


def string_bounds(cursor: Cursor, count: int, field: str) -> npt.NDArray[np.int64]:
    """Walks over ``count`` strings at the cursor and returns int64[count + 1].

    String ``i`` takes the bytes ``bounds[i]`` to ``bounds[i + 1] - 8`` of the file. Raises GGUFError, naming the
    string, when one passes the cursor's limit. ``count`` must have been checked against the bytes that remain.

    Nearly every string is shorter than 256 bytes and holds no NUL. Then a length is eight bytes that read as a
    number below 256, and no other eight bytes do. So one search finds all such places in a window; they are accepted as
    long as each begins where the previous string ends, which makes the guess exact. Where the chain breaks (an empty
    string, a long one, a NUL), a few strings are walked one by one. The worst file costs about as much as the plain loop.
    """
    bounds = np.empty(count + 1, np.int64)
    done, burst = 0, _BURST
    while done < count:
        base = cursor.position
        data = cursor.file.bytes
        size = min(_WINDOW, cursor.limit - base - 7)
        if size <= 0:
            _burst(cursor, bounds, done, count, field)  # fails: no string fits
        as_lengths = np.ndarray((size,), "<u8", data, base, (1,))  # the eight bytes at every offset: they overlap
        starts = np.flatnonzero(as_lengths < 256)
        ends = starts + 8 + data[base + starts]
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        while done < count and cursor.position - base < size:
            here = cursor.position - base
            taken = 0
            first = int(starts.searchsorted(here))
            if first < len(starts) and starts[first] == here:
                next_break = int(breaks.searchsorted(first))
                last = int(breaks[next_break]) if next_break < len(breaks) else len(starts) - 1
                taken = min(last - first + 1, count - done)
                np.add(starts[first : first + taken], base + 8, out=bounds[done : done + taken])
                # All but the last end where another begins, inside the window; the last may pass the limit.
                end = base + int(ends[first + taken - 1])
                if end <= cursor.limit:
                    cursor.position = end
                    done += taken
                else:
                    cursor.position = base + int(starts[first + taken - 1])
                    done += taken - 1
            # Where guessing gains little, try it less often.
            burst = _BURST if taken > burst else min(2 * burst, _LONGEST_BURST)
            done = _burst(cursor, bounds, done, min(done + burst, count), field)
    bounds[count] = cursor.position + 8
    return bounds


def _burst(cursor: Cursor, bounds: npt.NDArray[np.int64], done: int, until: int, field: str) -> int:
    """Walks over strings ``done`` to ``until`` one by one; returns ``until``."""
    unpack, data, limit, position = _U64.unpack_from, cursor.data, cursor.limit, cursor.position
    starts = []
    for index in range(done, until):
        if position + 8 > limit:
            cursor.fail(f"string {index}: no space for its length ({cursor.why})", field, position)
        (length,) = unpack(data, position)
        position += 8
        if length > limit - position:
            message = f"string {index}: needs {length} bytes but only {limit - position} remain ({cursor.why})"
            cursor.fail(message, field, position - 8)
        starts.append(position)
        position += length
    bounds[done:until] = starts
    cursor.position = position
    return until


class GGUFArray(Sequence[object]):
    """An array of metadata values, decoded from the file on access.

    ``element_type`` is a `ValueType`; ``offset`` the byte offset of the first element in the file. Every access may
    raise GGUFError: when the file has been closed or has shrunk, or when a value is not what its type allows.
    """

    __slots__ = ("_bounds", "_file", "_key", "_length", "element_type", "offset")

    def __init__(
        self,
        key: str,
        element_type: ValueType,
        file: MappedFile,
        offset: int,
        length: int,
        bounds: npt.NDArray[np.int64] | None,
    ) -> None:
        self.element_type = element_type
        self.offset = offset
        self._key = key
        self._file = file
        self._length = length
        self._bounds = bounds

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"GGUFArray({self._length} x {self.element_type.name})"

    def __iter__(self) -> Iterator[object]:
        return iter(self.to_list())

    @overload
    def __getitem__(self, index: SupportsIndex) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> list[object]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> object:
        """One element as a Python value, or a list of them. Raises IndexError as a list would."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        position = index.__index__()
        if position < 0:
            position += self._length
        if not 0 <= position < self._length:
            raise IndexError(f"index {index} of an array of {self._length}")
        if self._bounds is None:
            return self.to_numpy()[position].item()
        start, end = int(self._bounds[position]), int(self._bounds[position + 1]) - 8
        raw = self._file.bytes[start:end].tobytes()
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._not_utf8(position, raw)

    def to_numpy(self) -> npt.NDArray[np.generic]:
        """An array of numbers or bools as a read-only numpy array [len(self)] of its own type, in native byte order.

        It is a view of the mapped file where the file aligns the numbers, a copy elsewhere.
        """
        if self._bounds is not None:
            raise self._error("is an array of strings, not of numbers", self.offset)
        dtype = NUMPY_DTYPES[self.element_type]
        raw = self._file.bytes[self.offset : self.offset + self._length * dtype.itemsize]
        if self.element_type is ValueType.BOOL and self._length and raw.max() > 1:
            index = int(np.argmax(raw > 1))
            raise self._error(f"element {index} is {raw[index]}, not a bool", self.offset + index)
        if raw.ctypes.data % dtype.alignment:
            raw = raw.copy()
            raw.flags.writeable = False
        return raw.view(dtype)

    def to_list(self) -> list[object]:
        """All elements as Python values: str, int, float or bool.

        Raises GGUFError at a string that is not UTF-8; `to_bytes_list` gives those.
        """
        if self._bounds is None:
            numbers: list[object] = self.to_numpy().tolist()
            return numbers
        strings: list[object] = []
        for first, data, starts, ends in self._spans():
            try:
                strings += [data[start:end].decode() for start, end in zip(starts, ends)]
            except UnicodeDecodeError:
                for index, (start, end) in enumerate(zip(starts, ends)):
                    try:
                        data[start:end].decode()
                    except UnicodeDecodeError:
                        self._not_utf8(first + index, data[start:end])
        return strings

    def to_bytes_list(self) -> list[bytes]:
        """All strings as the bytes in the file. Raises GGUFError for an array of numbers."""
        strings: list[bytes] = []
        for _, data, starts, ends in self._spans():
            strings += [data[start:end] for start, end in zip(starts, ends)]
        return strings

    def string_view(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """All strings without decoding them: the file's bytes (read-only view) and ``bounds``, int64[len(self) + 1].

        String ``i`` is ``bytes[bounds[i] : bounds[i + 1] - 8]``. Raises GGUFError for an array of numbers.
        """
        if self._bounds is None:
            raise self._error(f"is an array of {self.element_type.name}, not of strings", self.offset)
        return self._file.bytes, self._bounds

    def _spans(self) -> Iterator[tuple[int, bytes, list[int], list[int]]]:
        """In portions: the first string's index, a copy of the bytes, and where in it each string begins and ends."""
        if self._bounds is None:
            raise self._error(f"is an array of {self.element_type.name}, not of strings", self.offset)
        for first in range(0, self._length, _PORTION):
            bounds = self._bounds[first : first + _PORTION + 1]
            base = int(bounds[0])
            data = self._file.bytes[base : int(bounds[-1]) - 8].tobytes()
            yield first, data, (bounds[:-1] - base).tolist(), (bounds[1:] - (base + 8)).tolist()

    def _not_utf8(self, index: int, raw: bytes) -> NoReturn:
        bounds = self._bounds
        offset = self.offset if bounds is None else int(bounds[index])
        raise self._error(f"string {index} is not UTF-8: {raw[:80]!r}", offset)

    def _error(self, message: str, offset: int) -> GGUFError:
        return GGUFError(message, path=self._file.path, field=f"metadata {printable(self._key)}", offset=offset)
