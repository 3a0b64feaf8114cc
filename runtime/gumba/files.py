"""Atomic writes: a file or folder appears under its name complete, or not at all.

Data goes to a temporary beside the target, ``PREFIX + PID-RANDOM``, which replaces the target in one rename after it was
flushed to disk. Errors and Ctrl-C remove it. A killed process leaves it behind: its owner locks it (``flock``) while it works
on it, the system releases the lock however the owner ends, and the next write into the folder removes unlocked temporaries.
If the system or the file system has no such locks, the process id in the name decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_SUFFIX = re.compile(r"([0-9]{1,10})-[0-9a-f]{8}")
#: Prefixes that ``atomic_file`` and ``atomic_folder`` give to temporaries.
_PREFIXES = re.compile(r"\..+\.part-", re.DOTALL)
#: Permissions of a file that only its owner can read and write.
_PRIVATE = 0o600
#: Errors of file systems that cannot flush a folder, and of folders that this user may not open for reading.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


@contextlib.contextmanager
def atomic_file(
    target: Path, *, mode: int | None = None, prefix: str | None = None, durable: bool = True
) -> Iterator[BinaryIO]:
    """Open a binary file that replaces ``target`` when the block ends without an exception.

    Args:
        target: The file; an existing one is replaced.
        mode: Permissions of the file; None: 0o666 less the process's umask.
        prefix: Start of the temporary's name; the caller then removes what killed runs left. None: ``.NAME.part-``.
        durable: Flush the file and its folder to disk. False for a cache whose files carry checksums.

    Raises OSError if the folder cannot be written, or writing, flushing or renaming fails.
    """
    folder = target.parent
    if prefix is None:
        prefix = _prefix(target)
        remove_abandoned(folder, _PREFIXES)
    with unfinished_file(folder, prefix, mode=mode) as (temporary, descriptor):
        with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor was opened exclusively
            yield file
            file.flush()
            if durable:
                os.fsync(descriptor)
        temporary.replace(target)
        if durable:
            sync_folder(folder)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Create a folder that becomes ``target`` when the block ends without an exception.

    ``target`` must not exist yet, or be an empty folder. Raises OSError if creating, flushing or renaming fails.
    """
    folder = target.parent
    remove_abandoned(folder, _PREFIXES)
    with unfinished_folder(folder, _prefix(target)) as temporary:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        if target.is_dir():
            target.rmdir()
        temporary.replace(target)
        sync_folder(folder)


def write_file(
    path: Path, data: bytes, *, mode: int | None = None, prefix: str | None = None, durable: bool = True
) -> None:
    """Write ``data`` to ``path``, complete or not at all. Arguments as of ``atomic_file``. Raises OSError."""
    with atomic_file(path, mode=mode, prefix=prefix, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def unfinished_file(folder: Path, prefix: str, *, mode: int | None = None) -> Iterator[tuple[Path, int]]:
    """Create a locked file in ``folder``; yield its path, and a descriptor for writing that the caller closes.

    On exit the file is removed unless it was renamed. ``mode``: its permissions, None: 0o666 less the process's umask.
    Raises OSError if it cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = _new_name(folder, prefix)
        descriptor = os.open(path, flags, 0o666 if mode is None else _PRIVATE)
        if _lock(descriptor, path):
            break
        os.close(descriptor)
    # The lock outlives the caller's descriptor. An open file could not be renamed on Windows, which has no locks here.
    holder = None if fcntl is None else os.dup(descriptor)
    try:
        if mode not in (None, _PRIVATE):  # some file systems have no permissions, and refuse to change them
            path.chmod(mode)
        yield path, descriptor
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if holder is not None:
            os.close(holder)


@contextlib.contextmanager
def unfinished_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """Create a locked folder in ``folder`` and yield its path; remove it on exit.

    Raises OSError if it cannot be created.
    """
    descriptor = None
    while True:
        path = _new_name(folder, prefix)
        path.mkdir()
        if fcntl is None:
            break
        with contextlib.suppress(FileNotFoundError):  # another run may remove it before it is locked
            descriptor = os.open(path, os.O_RDONLY)
            if _lock(descriptor, path):
                break
            os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(folder: Path, prefix: re.Pattern[str]) -> None:
    """Remove the temporary files and folders in ``folder`` whose owner is gone; ``prefix`` matches the start of their names.

    Those that cannot be removed stay, without an error.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            start = prefix.match(path.name)
            suffix = None if start is None else _SUFFIX.fullmatch(path.name[start.end() :])
            if suffix is not None and not path.is_symlink():
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(path, int(suffix[1]))


def sync_folder(folder: Path) -> None:
    """Flush a rename in ``folder`` to disk, if the system and the file system allow it."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _remove_if_abandoned(path: Path, owner: int) -> None:
    """Remove ``path``, created by the process ``owner``, unless it is still in use."""
    if not (path.is_file() or path.is_dir()):
        return  # opening a pipe or a device could block
    descriptor = None if fcntl is None else os.open(path, os.O_RDONLY)
    try:
        free = None if descriptor is None else _try_lock(descriptor)
        if free is False or (free is None and _alive(owner)):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _prefix(target: Path) -> str:
    return f".{target.name}.part-"


def _new_name(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def _lock(descriptor: int, path: Path) -> bool:
    """Lock a file or folder just created. False if another run removed it before it was locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return True  # some network file systems have no locks: the process id decides
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool | None:
    """Try to lock a file or folder: False if its owner holds the lock, None if the file system has no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _alive(pid: int) -> bool:
    """Whether a process with the id ``pid`` is running."""
    if sys.platform == "win32":  # os.kill would end the process
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
