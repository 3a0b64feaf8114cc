"""A file mapped into memory for reading, and a cursor over it that cannot leave it.

Nothing here knows GGUF. It guards against paths that are not regular files (opening a FIFO would block, a
device has no end), and against files that shrink while they are mapped. Touching a mapped page beyond the end of the file
kills the process with SIGBUS, which Python cannot catch, so `MappedFile.check` compares the file's present size
with the mapped one before each access. A file that shrinks between check and access still kills the process: do not overwrite
a model file in place while it is in use; replacing it by a rename is safe.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from gumba.errors import GGUFError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def printable(name: str, limit: int = 80) -> str:
    """``name`` for an error message, without control characters: a file must not be able to send them to a terminal."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Identifies a file and its version: device, inode, size, modification time in nanoseconds."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class MappedFile:
    """A regular file, mapped read-only.

    ``bytes``: uint8[size]; ``size`` and ``identity``: of the file when it was opened. Arrays sliced from ``bytes`` stay valid
    after `close`: the mapping ends with the last of them.
    """

    __slots__ = ("_bytes", "_map", "data_start", "identity", "path", "size", "touched")

    def __init__(self, path: str | PathLike[str], least: int) -> None:
        """Maps the file at ``path``. Raises GGUFError unless it is a readable regular file of ``least`` (> 0) bytes."""
        self.path = Path(path)
        self.size = 0
        self.data_start = 0
        self.identity: tuple[int, ...] = ()
        #: Time of the last change of contents or attributes (ctime), in nanoseconds; 0 where the system has none.
        self.touched = 0
        self._bytes: npt.NDArray[np.uint8] | None = None
        try:
            # Non-blocking, so that a FIFO without a writer opens at once and is then refused like any other device.
            flags = (
                os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
            )
            descriptor = os.open(self.path, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                    raise GGUFError(f"cannot be opened: it is {kind}", path=self.path)
                self.size = status.st_size
                self.identity = identity(status)
                self.touched = status.st_ctime_ns if os.name == "posix" else 0
                if self.size < least:
                    raise GGUFError(
                        f"not a GGUF file: it has {self.size} bytes, and the header alone takes {least}",
                        path=self.path,
                        field="header",
                        offset=self.size,
                    )
                self._map: mmap.mmap = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GGUFError(f"cannot be opened: {reason}", path=printable(str(self.path), 4096)) from error
        self._bytes = np.frombuffer(self._map, np.uint8)
        with suppress(OSError):  # the current folder is gone: the path stays as it is
            self.path = self.path.absolute()  # it may be opened again after a change of folder

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """uint8[size], read-only: the whole file. Raises GGUFError when it is closed or has shrunk."""
        if self._bytes is None:
            raise GGUFError("the file is closed", path=self.path)
        present = self._map.size()
        if present < self.size:
            raise GGUFError(
                f"the file has shrunk from {self.size} to {present} bytes since it was opened",
                path=self.path,
                field="file size",
                offset=present,
            )
        return self._bytes

    def close(self) -> None:
        """Close the file: ``bytes`` raises GGUFError from then on. Closing twice is harmless."""
        if self._bytes is not None:
            self._bytes = None
            with suppress(BufferError):  # a view is still in use: the mapping ends with it
                self._map.close()


class InMemoryFile(MappedFile):
    """The beginning of a file of ``size`` bytes, in memory. Errors name ``path``."""

    __slots__ = ()

    def __init__(self, path: str | PathLike[str], data: bytes, size: int) -> None:
        self.path = Path(path)
        self.size = size
        self.data_start = self.touched = 0
        self.identity = ()
        self._bytes = np.frombuffer(data, np.uint8)

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """uint8[n], read-only: the beginning of the file."""
        if self._bytes is None:
            raise GGUFError("the file is closed", path=self.path)
        return self._bytes

    def close(self) -> None:
        self._bytes = None


class Cursor:
    """Reads little-endian fields one after the other; each read names its field, for the error message.

    ``limit``: the offset that no field may pass, the end of the file or an earlier one; ``why``: the reason, for messages.
    """

    __slots__ = ("data", "file", "limit", "position", "why")

    def __init__(self, file: MappedFile, most: int, why: str) -> None:
        self.file = file
        self.data = file.bytes.data
        self.position = 0
        self.limit = min(file.size, most)
        self.why = why if most < file.size else "the file ends there"

    def fail(self, message: str, field: str, offset: int | None = None) -> NoReturn:
        """Raises GGUFError at ``offset``, by default the current position."""
        raise GGUFError(message, path=self.file.path, field=field, offset=self.position if offset is None else offset)

    def need(self, n_bytes: int, field: str) -> int:
        """Steps over ``n_bytes`` and returns where they begin; GGUFError when they are not all there."""
        start = self.position
        if n_bytes > self.limit - start:
            self.fail(f"needs {n_bytes} bytes but only {self.limit - start} remain ({self.why})", field)
        self.position = start + n_bytes
        return start

    def u32(self, field: str) -> int:
        value: int = _U32.unpack_from(self.data, self.need(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        value: int = _U64.unpack_from(self.data, self.need(8, field))[0]
        return value

    def raw(self, n_bytes: int, field: str) -> bytes:
        start = self.need(n_bytes, field)
        return self.data[start : start + n_bytes].tobytes()

    def name(self, field: str, longest: int) -> str:
        """A string that names something: 1 to ``longest`` bytes of UTF-8 without NUL."""
        start = self.position
        length = self.u64(f"{field} length")
        if not 0 < length <= longest:
            self.fail(f"{length} bytes; allowed are 1 to {longest}", f"{field} length", start)
        raw = self.raw(length, field)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8: {raw[:80]!r}", field, start + 8 + error.start)
        if "\0" in text:
            self.fail(f"holds a NUL byte: {printable(text)}", field, start + 8 + raw.index(0))
        return text
