"""Compiled kernels that a frozen application brings along, so that a processor they fit compiles nothing.

``gumba compile --output DIR`` makes the folder: DIR/HASH OF THE SOURCES/one file per kernel, as in the cache. The application
ships DIR as ``gumba-kernels``, beside its program or among its data files. What is in there is as trustworthy as the
application itself: a user who can write there can change the program too. So any user may own it, unlike the user's cache.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from pathlib import Path

from gumba.errors import ResourceError
from gumba.files import write_file

#: What an application calls the folder.
FOLDER = "gumba-kernels"


@functools.cache
def shipped_folders(sources: str) -> list[Path]:
    """The folders of kernels made of these ``sources`` (their hash) that this application ships; none unless it is frozen."""
    if not getattr(sys, "frozen", False):
        return []
    places = [Path(sys.executable).resolve().parent]
    unpacked = getattr(sys, "_MEIPASS", None)  # PyInstaller's folder of modules and data files
    if unpacked is not None:
        places.append(Path(unpacked))
    folders = [place / FOLDER / sources for place in places]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def ship(kernels: Iterable[Path], target: Path) -> None:
    """Copy files of the cache into ``target``, readable for everyone. Raises ResourceError when they cannot be written."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for kernel in kernels:
            write_file(target / kernel.name, kernel.read_bytes(), mode=0o644)
    except OSError as error:
        raise ResourceError(f"cannot write kernels into {target}: {error.strerror or error}") from error
