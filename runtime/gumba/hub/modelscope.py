"""Downloads from ModelScope with its own package, an optional dependency: `pip install 'gumba[modelscope]'`.

Interrupted downloads resume, hashes are checked, and files are stored in ModelScope's own cache.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gumba.errors import DownloadError, GumbaError, RequestError
from gumba.hub.gguf_files import RemoteFile
from gumba.hub.home import has_home, no_home
from gumba.hub.reference import Reference, checked_path

# The package reads these once, when it is imported; by default it retries an unreachable site for most of a minute. Downloads
# of files, which start after the site has responded, keep the package's own timeouts.
_TIMEOUTS = {
    "MODELSCOPE_API_MAX_RETRIES": "1",
    "MODELSCOPE_API_CONNECT_TIMEOUT": "5",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
}
_LOG_LEVEL = "MODELSCOPE_LOG_LEVEL"


def fetch(reference: Reference, patterns: Sequence[str]) -> Path:
    """Download the files of a model that match `patterns`; return its local folder.

    MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN apply.

    Raises:
        DownloadError: the package is not installed; no such model, no access, a file with another hash, no
            connection (and no finished download in the cache), or disk full.
    """
    return _snapshot(reference, patterns, "config.json")


def fetch_gguf(reference: Reference, files: Sequence[str]) -> Path:
    """Download GGUF `files` of a model; return its local folder. Raises as `fetch` does."""
    patterns = [glob.escape(name) for name in files]
    folder = _snapshot(reference, patterns, files[-1])
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise DownloadError(f"{reference.at}: ModelScope did not send {', '.join(missing)}")
    for name in files:
        with (folder / name).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise DownloadError(f"{reference.at}: {name} is not a GGUF file")
    return folder


def list_files(reference: Reference) -> tuple[tuple[RemoteFile, ...], Path | None]:
    """The files of a model; if ModelScope is unreachable, those of the copy in the cache, and the folder of that copy.

    Raises:
        DownloadError: as `fetch`.
    """
    download, name = _package_module("snapshot_download").snapshot_download, reference.repository
    with _errors(reference):
        try:
            listed = _package_module("api").HubApi().get_model_files(name, revision=reference.revision, recursive=True)
        except ConnectionError:
            folder = _cached(download, reference, "")
            if folder is None:
                raise
            names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            return tuple(RemoteFile(path) for path in names), folder
        return tuple(_remote_file(reference, entry) for entry in listed if entry.get("Type") != "tree"), None


def n_present(reference: Reference, files: Sequence[RemoteFile]) -> int:
    """The number of bytes of `files` that are complete in the cache."""
    folder = _cached(_package_module("snapshot_download").snapshot_download, reference, "")
    if folder is None:
        return 0
    return sum(file.size or 0 for file in files if (folder / file.path).is_file())


def _remote_file(reference: Reference, entry: dict[str, object]) -> RemoteFile:
    """Check an entry of ModelScope's list: its package retries forever for a file of a negative size."""
    try:
        path = checked_path(str(entry.get("Path")), reference.at)
    except RequestError as error:
        raise DownloadError(f"{error}, which ModelScope lists") from None
    size = entry.get("Size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise DownloadError(f"{reference.at}: {path}: ModelScope gives {size!r:.80} as a size")
    return RemoteFile(path, size)


def _snapshot(reference: Reference, patterns: Sequence[str], needed: str) -> Path:
    """Download files; if ModelScope is unreachable, use an earlier download with the file `needed`. Returns the folder."""
    download = _package_module("snapshot_download").snapshot_download
    with _errors(reference):
        try:
            folder = download(reference.repository, allow_patterns=list(patterns), max_workers=4, **_places(reference))
            return Path(folder)
        except ConnectionError:
            cached = _cached(download, reference, needed)
            if cached is None:
                raise
            return cached


def _places(reference: Reference) -> dict[str, str | None]:
    """The package's keyword arguments for a model."""
    cache_dir = None if reference.cache_dir is None else str(reference.cache_dir)
    token = {} if reference.token is None else {"token": reference.token}
    return {"revision": reference.revision, "cache_dir": cache_dir, **token}


def _cached(download: Any, reference: Reference, needed: str) -> Path | None:
    """The folder of an earlier, complete download; None without one."""
    try:
        folder = Path(download(reference.repository, local_files_only=True, **_places(reference)))
    except Exception:  # the package raises several kinds if there is none
        return None
    return None if any(folder.rglob("*.incomplete")) or not (folder / needed).exists() else folder


def fetch_file(reference: Reference, pattern: str, *, local_dir: Path | None) -> Path:
    """Download one file of a model, by its name or a glob pattern that matches no other.

    Raises:
        RequestError: no file matches, or several do.
        DownloadError: as `fetch`.
    """
    download, name = _package_module("file_download").model_file_download, reference.repository
    with _errors(reference):
        if any(sign in pattern for sign in "*?["):
            files = _package_module("api").HubApi().get_model_files(name, revision=reference.revision, recursive=True)
            names = [str(entry.get("Path")) for entry in files if entry.get("Type") != "tree"]
            pattern = one_of(str(reference), names, pattern)
        return Path(
            download(name, pattern, local_dir=None if local_dir is None else str(local_dir), **_places(reference))
        )


def one_of(hub_id: str, names: Sequence[str], pattern: str) -> str:
    """The one name that matches a pattern.

    Raises:
        RequestError: none does, or several do.
    """
    matches = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if len(matches) != 1:
        raise RequestError(
            f"{hub_id}: {len(matches) or 'no'} files match {pattern!r}, expected one of {', '.join(names)}"
        )
    return matches[0]


def _package_module(module: str) -> Any:
    """Import a module of the package by name only, so that frozen programs do not include it."""
    if not has_home():  # its import would fail with an unclear message
        raise no_home("ModelScope's package", "HOME")
    ours = [key for key in _TIMEOUTS if key not in os.environ]
    try:
        os.environ |= {key: _TIMEOUTS[key] for key in ours}
        return import_module(f"modelscope.hub.{module}")
    except ImportError as error:
        raise DownloadError(
            f"models of ModelScope are downloaded with its own package: pip install 'gumba[modelscope]' ({error})"
        ) from None
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the package's log messages: the error has them. MODELSCOPE_LOG_LEVEL turns them on."""
    loggers = [] if os.environ.get(_LOG_LEVEL) else [logging.getLogger(f"modelscope{end}") for end in ("", "_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _errors(reference: Reference) -> Iterator[None]:
    """Raise DownloadError for errors in the ``with`` block: those of the package, of requests and of the system."""
    at = reference.at
    try:
        with _silence():
            yield
    except GumbaError:
        raise
    except ConnectionError:
        raise DownloadError(f"{at}: ModelScope cannot be reached, and the model is not in the cache") from None
    except Exception as error:
        status = _status(error)
        if status == 404:
            raise DownloadError(f"{at}: no such model, revision or file on ModelScope, or it is private") from None
        if status in (401, 403):
            raise DownloadError(f"{at}: ModelScope refuses access (set MODELSCOPE_API_TOKEN)") from None
        if status:
            raise DownloadError(f"{at}: ModelScope returned {status}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"{at}: download failed: {reason[:300]}") from None


def _status(error: BaseException | None) -> int:
    """The HTTP status of an error or of one of its causes; 0 without one."""
    while error is not None:
        for holder in (error, getattr(error, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int):
                return status
        error = error.__cause__
    return 0
