"""Fetching a checkpoint from ModelScope, through its own package, which is an extra: `pip install 'gumba[modelscope]'`.

Downloads go on where they ended, are checked against their hashes, and lie in ModelScope's own cache.
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

# The package reads these once, as it is imported; by default it tries an unreachable site for most of a minute. Downloads
# of files, which begin after the site has answered, keep its own patience.
_PATIENCE = {
    "MODELSCOPE_API_MAX_RETRIES": "1",
    "MODELSCOPE_API_CONNECT_TIMEOUT": "5",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
}
_LOG_LEVEL = "MODELSCOPE_LOG_LEVEL"


def fetch(reference: Reference, patterns: Sequence[str]) -> Path:
    """The local folder of a model, with the files that fit `patterns`. MODELSCOPE_ENDPOINT, _CACHE and _API_TOKEN count.

    Raises:
        DownloadError: the package is not installed; no such model, no access, a file that is not what its hash says, no
            connection (and no finished download in the cache), or disk full.
    """
    return _snapshot(reference, patterns, "config.json")


def fetch_gguf(reference: Reference, files: Sequence[str]) -> Path:
    """The local folder of a model with GGUF `files`, by their names, in it. Raises as `fetch` does."""
    patterns = [glob.escape(each) for each in files]
    folder = _snapshot(reference, patterns, files[-1])
    missing = [each for each in files if not (folder / each).is_file()]
    if missing:
        raise DownloadError(f"{reference.at}: ModelScope has not sent {', '.join(missing)}")
    for each in files:
        with (folder / each).open("rb") as file:
            if file.read(4) != b"GGUF":
                raise DownloadError(f"{reference.at}: {each} is no GGUF file")
    return folder


def list_files(reference: Reference) -> tuple[tuple[RemoteFile, ...], Path | None]:
    """The files of a model; where ModelScope cannot be reached those of its copy in the cache, and that copy's folder.

    Raises:
        DownloadError: as `fetch`.
    """
    download, name = _part("snapshot_download").snapshot_download, reference.repository
    with _errors(reference):
        try:
            listed = _part("api").HubApi().get_model_files(name, revision=reference.revision, recursive=True)
        except ConnectionError:
            folder = _cached(download, reference, "")
            if folder is None:
                raise
            found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            return tuple(RemoteFile(path) for path in found), folder
        return tuple(_remote_file(reference, each) for each in listed if each.get("Type") != "tree"), None


def n_present(reference: Reference, files: Sequence[RemoteFile]) -> int:
    """The bytes of files that are in the cache already, complete."""
    folder = _cached(_part("snapshot_download").snapshot_download, reference, "")
    if folder is None:
        return 0
    return sum(file.size or 0 for file in files if (folder / file.path).is_file())


def _remote_file(reference: Reference, listed: dict[str, Any]) -> RemoteFile:
    """A file as ModelScope lists it, checked: its package tries forever to fetch one of a negative size."""
    try:
        path = checked_path(str(listed.get("Path")), reference.at)
    except RequestError as error:
        raise DownloadError(f"{error}, which ModelScope lists") from None
    size = listed.get("Size")
    if size is not None and (type(size) is not int or size < 0):
        raise DownloadError(f"{reference.at}: {path}: ModelScope gives {size!r:.80} as a size")
    return RemoteFile(path, size)


def _snapshot(reference: Reference, patterns: Sequence[str], needed: str) -> Path:
    """The local folder of a model; where ModelScope cannot be reached an earlier download that has the file `needed`."""
    download = _part("snapshot_download").snapshot_download
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
    """What the package is told of a model beside its name."""
    cache_dir = None if reference.cache_dir is None else str(reference.cache_dir)
    token = {} if reference.token is None else {"token": reference.token}
    return {"revision": reference.revision, "cache_dir": cache_dir, **token}


def _cached(download: Any, reference: Reference, needed: str) -> Path | None:
    """The result of an earlier download, if that was finished."""
    try:
        folder = Path(download(reference.repository, local_files_only=True, **_places(reference)))
    except Exception:  # nothing is there, in whatever words the package says so
        return None
    return None if any(folder.rglob("*.incomplete")) or not (folder / needed).exists() else folder


def fetch_file(reference: Reference, pattern: str, *, local_dir: Path | None) -> Path:
    """One file of a model, by its name or a glob pattern that fits no other.

    Raises:
        RequestError: no file fits, or several do.
        DownloadError: as `fetch`.
    """
    download, name = _part("file_download").model_file_download, reference.repository
    with _errors(reference):
        if any(sign in pattern for sign in "*?["):
            files = _part("api").HubApi().get_model_files(name, revision=reference.revision, recursive=True)
            names = [str(each.get("Path")) for each in files if each.get("Type") != "tree"]
            pattern = one_of(str(reference), names, pattern)
        return Path(
            download(name, pattern, local_dir=None if local_dir is None else str(local_dir), **_places(reference))
        )


def one_of(hub_id: str, names: Sequence[str], pattern: str) -> str:
    """The one name that fits a pattern.

    Raises:
        RequestError: none does, or several do.
    """
    fitting = [each for each in names if fnmatch.fnmatch(each, pattern)]
    if len(fitting) != 1:
        raise RequestError(
            f"{hub_id}: {len(fitting) or 'no'} files fit {pattern!r}, expected one of {', '.join(names)}"
        )
    return fitting[0]


def _part(module: str) -> Any:
    """A module of the package, imported by its name only, so that frozen programs do not bring it along."""
    if not has_home():  # importing it fails, in its own words
        raise no_home("ModelScope's package", "HOME")
    ours = [key for key in _PATIENCE if key not in os.environ]
    try:
        os.environ |= {key: _PATIENCE[key] for key in ours}
        return import_module(f"modelscope.hub.{module}")
    except ImportError as error:
        raise DownloadError(
            f"models of ModelScope are fetched with its own package: pip install 'gumba[modelscope]' ({error})"
        ) from None
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The package's own lines on stderr are left out: an error says it all. MODELSCOPE_LOG_LEVEL brings them back."""
    loggers = [] if os.environ.get(_LOG_LEVEL) else [logging.getLogger(f"modelscope{each}") for each in ("", "_hub")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def _errors(reference: Reference) -> Iterator[None]:
    """What goes wrong there, as DownloadError. The package raises errors of its own, of requests and of the system."""
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
            raise DownloadError(f"{at}: ModelScope answered {status}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"{at}: download failed: {reason[:300]}") from None


def _status(error: BaseException | None) -> int:
    """The HTTP status that an error is about, or one that led to it; 0 where there is none."""
    while error is not None:
        for holder in (error, getattr(error, "response", None)):
            status = getattr(holder, "status_code", None)
            if isinstance(status, int):
                return status
        error = error.__cause__
    return 0
