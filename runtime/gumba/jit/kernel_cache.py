"""The folder of compiled kernels: where it is, whether it is safe, and which sources its files were compiled from.

One file per kernel (``gumba.jit.object_file`` knows what is in them), in a folder named after a hash of all sources that
compiled code can come from. It is private to the user (mode 0700, owner checked), each file appears whole or not at all, and
where there is no safe folder, kernels are compiled in memory. ``GUMBA_CACHE_DIR`` moves it; ``GUMBA_CACHE_DIR=`` (empty)
turns it off.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import re
import stat
import sys
import tempfile
from pathlib import Path

import llvmlite
import platformdirs

from gumba._version import __version__
from gumba.files import remove_abandoned, write_file

log = logging.getLogger("gumba")

#: Folders of the package whose sources may hold compiled code: all of them, and no other (tests/jit/test_compiled_folders.py).
COMPILED_FOLDERS = ("backends/cpu", "jit", "quants", "sampling/kernels", "simd", "tokenizer/kernels")

#: Prefix of files that are still being written.
_NEW = ".new-"
#: Cache files of the kernels that this process uses.
kept: list[Path] = []
#: Cache files that could not be written, and why.
lost: dict[Path, str] = {}
#: Kinds of problems with cache files that the user has been warned of.
_warned: set[str] = set()


def _numba_version() -> bytes:
    """The contents of numba's version file, read without importing numba where it lies in a folder."""
    spec = importlib.util.find_spec("numba")
    if spec is not None and spec.origin is not None:
        with contextlib.suppress(OSError):
            return (Path(spec.origin).parent / "_version.py").read_bytes()
    import numba

    return str(numba.__version__).encode()


def _sources_state() -> list[tuple[str, int, int]]:
    """Size and time of every source that compiled code can come from."""
    package = Path(__file__).parent.parent
    sources = []
    for folder in COMPILED_FOLDERS:
        for path in (package / folder).glob("**/*.py"):
            with contextlib.suppress(OSError):
                status = path.stat()
                sources.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(sources)


#: The sources' state when this module was imported, which every module with compiled code imports first. Code that was imported
#: before an edit and compiled after it must not be cached under the new sources' hash.
_imported = _sources_state()


@functools.cache
def sources_hash() -> str:
    """Hash of gumba's version and of every source that compiled code can come from.

    Raises FileNotFoundError where they are not on disk: without them, old kernels cannot be told from new ones.
    """
    digest = hashlib.sha256(f"{__version__}|{llvmlite.__version__}|{sys.version_info[:2]}".encode() + _numba_version())
    package = Path(__file__).parent.parent
    for folder in COMPILED_FOLDERS:
        sources = sorted((package / folder).glob("**/*.py"))
        if not sources:
            raise FileNotFoundError(f"there are no sources in {package / folder}")
        for path in sources:
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _private(folder: Path) -> bool:
    """Whether ``folder`` is a real folder that only this user, or the system's, can write (true where owners do not exist)."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return info.st_uid in (0, os.getuid()) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_protected(folder: Path) -> bool:
    """Whether no other user can replace the folders in ``folder`` (its group is trusted, if it has one)."""
    info = folder.stat()
    if not hasattr(os, "getuid"):
        return True
    owned = info.st_uid in (0, os.getuid())
    return owned and (not info.st_mode & stat.S_IWOTH or bool(info.st_mode & stat.S_ISVTX))


@functools.cache
def cache_folder() -> Path | None:
    """The folder of compiled kernels for these sources, created when missing; None when there is no safe one.

    It may be one that can only be read (``cache_writable``): that of an image, say.
    """
    setting = os.environ.get("GUMBA_CACHE_DIR")
    if setting == "":
        return None
    try:
        root = Path(setting) if setting else Path(platformdirs.user_cache_dir("gumba", appauthor=False))
        root = root.expanduser().resolve()  # a relative path must not mean another folder after a change of directory
        folder = root / "kernels" / sources_hash()
        for path in (folder.parent, folder):  # one by one: folders that ``parents`` makes do not get the mode
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, safe in ((root, _is_protected), (folder.parent, _private), (folder, _private)):
            if not safe(path):
                log.warning("kernel cache %s is not private to this user: kernels are compiled in memory", path)
                return None
    except (OSError, RuntimeError) as error:
        log.warning("no kernel cache (%s): kernels are compiled in memory", error)
        return None
    with contextlib.suppress(OSError):  # one that can only be read
        os.utime(folder)  # in use, for ``prune_cache``, also by those who find all kernels there
    return folder


def cache_writable() -> bool:
    """Whether compiled kernels can be kept."""
    folder = cache_folder()
    return folder is not None and _writable(folder)


@functools.cache
def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("kernel cache %s cannot be written (%s): what it lacks is compiled in memory", folder, error)
        return False
    return True


def prune_cache(keep: int = 3) -> None:
    """Delete what killed processes left, and all but the ``keep`` most recently used folders (each version or edit makes one).

    Nothing else that may lie there: only folders and files with the names that this module gives.
    """
    folder = cache_folder()
    if folder is None or not cache_writable():
        return
    remove_abandoned(folder, re.compile(re.escape(_NEW)))
    others = []
    with contextlib.suppress(OSError):
        for other in folder.parent.iterdir():
            with contextlib.suppress(OSError):
                info = other.lstat()
                if other != folder and stat.S_ISDIR(info.st_mode) and re.fullmatch(r"[0-9a-f]{20}", other.name):
                    others.append((info.st_mtime_ns, other))
    for _, old in sorted(others, reverse=True)[keep - 1 :]:
        with contextlib.suppress(OSError):
            for file in old.iterdir():
                if re.fullmatch(r"\.new-.*|.*-[0-9a-f]{16}", file.name) and stat.S_ISREG(file.lstat().st_mode):
                    file.unlink(missing_ok=True)
            old.rmdir()


def warn_once(kind: str, message: str, *args: object) -> None:
    """Warn of the first file with trouble of this ``kind``; the others, which may be all of the cache, are for the log alone."""
    log.log(logging.INFO if kind in _warned else logging.WARNING, message, *args)
    _warned.add(kind)


def read_own(path: Path) -> bytes:
    """The bytes of a plain file of this user's; OSError for a link, or for what others own or can write.

    Opening never waits: a FIFO in the place of the file is refused like any other file that is not a plain one.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        info = os.fstat(file.fileno())
        strange = hasattr(os, "getuid") and (
            info.st_uid not in (0, os.getuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if not stat.S_ISREG(info.st_mode) or strange:
            raise PermissionError("it is not a plain file that only this user can write")
        return file.read()


def write(path: Path, data: bytes) -> None:
    """Write a file into the folder, complete or not at all; not where it cannot be written, or the sources have changed."""
    if not cache_writable():
        lost[path] = "the folder cannot be written"
        return
    if _sources_state() != _imported:
        log.info("kernel cache: gumba's sources have changed since they were imported; %s is not kept", path.name)
        lost[path] = "gumba's sources have changed since they were imported"
        return
    try:
        write_file(path, data, mode=0o600, prefix=_NEW, durable=False)
    except OSError as error:
        lost[path] = error.strerror or str(error)
        warn_once("write", "kernel cache: cannot write %s (%s): kernels are compiled anew each time", path, lost[path])
