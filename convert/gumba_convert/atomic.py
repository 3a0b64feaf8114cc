"""Files and folders that appear at their target complete or not at all.

Work goes to a temporary beside the target, `.NAME.part-PID-RANDOM`, which replaces the target in one rename after
everything in it has been flushed to disk. Errors and Ctrl-C remove it. A process that is killed leaves it behind; the
next run that writes into the folder removes it, see `gumba.files`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from gumba.errors import ConvertError
from gumba.files import remove_abandoned, sync_folder, unfinished_file, unfinished_folder

_PREFIX = re.compile(r"\..+\.part-", re.DOTALL)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `target` when the block ends without an exception.

    Raises:
        ConvertError: the folder cannot be written, or writing, flushing or renaming failed (disk full, for one).
    """
    folder = _folder_of(target)
    if target.is_dir():
        raise ConvertError(f"{target} is a folder; name a file to write")
    remove_abandoned(folder, _PREFIX)
    with ExitStack() as stack:
        with _errors(f"in {folder}"):
            temporary, descriptor = stack.enter_context(unfinished_file(folder, _prefix(target)))
        with _errors(f"{target}"):
            with open(descriptor, "wb") as file:  # noqa: PTH123 - the descriptor was opened exclusively
                yield file
                file.flush()
                os.fsync(descriptor)
            temporary.replace(target)
            sync_folder(folder)


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
    remove_abandoned(folder, _PREFIX)
    with ExitStack() as stack:
        with _errors(f"in {folder}"):
            temporary = stack.enter_context(unfinished_folder(folder, _prefix(target)))
        with _errors(f"{target}"):
            yield temporary
            for path in temporary.iterdir():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            sync_folder(temporary)
            if target.is_dir():
                target.rmdir()
            temporary.replace(target)
            sync_folder(folder)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConvertError(f"cannot write {what}: {error.strerror or error}") from error


def _folder_of(target: Path) -> Path:
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ConvertError(f"cannot write {target}: there is no folder {folder}")
    return folder


def _prefix(target: Path) -> str:
    return f".{target.name}.part-"
