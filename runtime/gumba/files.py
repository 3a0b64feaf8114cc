"""Temporary files and folders that their owner locks, so that a later run can remove those of killed runs.

A temporary file or folder is named ``PREFIX + PID-RANDOM``. Its owner locks it (``flock``) while it works on it; the system
releases the lock however the owner ends. If the system or the file system has no such locks, the process id in the name
decides.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_SUFFIX = re.compile(r"([0-9]{1,10})-[0-9a-f]{8}")
_STILL_ACTIVE = 259
_QUERY_LIMITED_INFORMATION = 0x1000


@contextlib.contextmanager
def unfinished_file(folder: Path, prefix: str) -> Iterator[tuple[Path, int]]:
    """Create a locked file in ``folder``; yield its path, and a descriptor for writing that the caller closes.

    On exit the file is removed unless it was renamed. Raises OSError if it cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = _new_name(folder, prefix)
        descriptor = os.open(path, flags, 0o666)
        if _lock(descriptor, path):
            break
        os.close(descriptor)
    # The lock outlives the caller's descriptor. An open file could not be renamed on Windows, which has no locks here.
    holder = None if fcntl is None else os.dup(descriptor)
    try:
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
    """Remove the unfinished files and folders in ``folder`` whose owner is gone; ``prefix`` matches the start of their names.

    Those that cannot be removed stay, without an error.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            start = prefix.match(path.name)
            suffix = None if start is None else _SUFFIX.fullmatch(path.name[start.end() :])
            if suffix is not None and not path.is_symlink():
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(path, int(suffix[1]))


def write_file(path: Path, data: bytes, prefix: str, *, mode: int | None = None) -> None:
    """Write ``data`` to ``path``, whole or not at all, and remove what killed runs left under names that begin with ``prefix``.

    Args:
        path: The file; an existing one is replaced.
        data: Its contents.
        prefix: How the name of the unfinished file begins.
        mode: Permissions of the file; None: what the process's umask leaves.

    Raises OSError.
    """
    remove_abandoned(path.parent, re.compile(re.escape(prefix)))
    with unfinished_file(path.parent, prefix) as (temporary, descriptor):
        with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor was opened exclusively
            if mode is not None:
                temporary.chmod(mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Flush a rename in ``folder`` to disk, if the system allows opening a folder for that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        import ctypes

        kernel32 = ctypes.windll.kernel32
        handle = kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
        if not handle:
            return False
        code = ctypes.c_ulong()
        known = kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel32.CloseHandle(handle)
        return not known or code.value == _STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
