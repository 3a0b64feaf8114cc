"""Atomic files and folders of conversions: ``gumba.files`` with ConvertError instead of OSError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from gumba import files
from gumba.errors import ConvertError


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `target` when the block ends without an exception.

    Raises:
        ConvertError: the folder cannot be written, or writing, flushing or renaming failed (disk full, for one).
    """
    folder = _folder_of(target)
    if target.is_dir():
        raise ConvertError(f"{target} is a folder; name a file to write")
    with _errors(target), ExitStack() as stack:
        with _errors(f"in {folder}"):
            file = stack.enter_context(files.atomic_file(target.absolute()))
        yield file


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends without an exception.

    Raises:
        ConvertError: `target` exists and is not an empty folder, or writing, flushing or renaming failed.
    """
    folder = _folder_of(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConvertError(f"{target} exists already; name a new folder")
    with _errors(target), ExitStack() as stack:
        with _errors(f"in {folder}"):
            temporary = stack.enter_context(files.atomic_folder(target.absolute()))
        yield temporary


@contextmanager
def _errors(where: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConvertError(f"cannot write {where}: {error.strerror or error}") from error


def _folder_of(target: Path) -> Path:
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ConvertError(f"cannot write {target}: there is no folder {folder}")
    return folder
