"""Files and folders that appear at their target complete or not at all.

Work goes to a temporary beside the target, `.NAME.part-PID-RANDOM`, which replaces the target in one rename after
everything in it has been flushed to disk. Errors and Ctrl-C remove it. A process that is killed leaves it behind; the
next run for the same target removes it, knowing it as abandoned because its process is gone and its lock is free.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gumba.errors import ConvertError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `target` when the block ends without an exception.

    Raises:
        ConvertError: the folder cannot be written, or writing, flushing or renaming failed (disk full, for one).
    """
    folder = _folder_of(target)
    if target.is_dir():
        raise ConvertError(f"{target} is a folder; name a file to write")
    _remove_abandoned(folder, target.name)
    temporary = _temporary(target)
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise ConvertError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor was opened exclusively
            _lock(descriptor)
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
        _sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConvertError(f"cannot write {target}: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends without an exception. `target` must not exist yet,
    or be an empty folder.

    Raises:
        ConvertError: `target` is taken, or writing, flushing or renaming failed.
    """
    folder = _folder_of(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConvertError(f"{target} exists already; name a new folder")
    _remove_abandoned(folder, target.name)
    temporary = _temporary(target)
    try:
        temporary.mkdir()
    except OSError as error:
        raise ConvertError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _sync_folder(temporary)
        if target.is_dir():
            target.rmdir()
        temporary.replace(target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ConvertError(f"cannot write {target}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _folder_of(target: Path) -> Path:
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ConvertError(f"cannot write {target}: there is no folder {folder}")
    return folder


def _prefix(name: str) -> str:
    return f".{name}.part-"


def _temporary(target: Path) -> Path:
    return target.absolute().parent / f"{_prefix(target.name)}{os.getpid()}-{secrets.token_hex(4)}"


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove temporaries of earlier runs for the same target that no living process works on."""
    for path in folder.glob(f"{_glob_escape(_prefix(name))}*"):
        owner = path.name[len(_prefix(name)) :].partition("-")[0]
        if not owner.isdecimal() or _alive(int(owner)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not _locked(path):
            path.unlink(missing_ok=True)


def _glob_escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill would end the process; an open file cannot be removed there anyway
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _lock(descriptor: int) -> None:
    """Mark the file as being worked on, for processes that do not see our process id (another container)."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks: the process id has to do
            return


def _locked(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, where the system lets a folder be opened for that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
