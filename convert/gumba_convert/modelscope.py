"""Fetching a checkpoint from ModelScope, through its own package, which is an extra: `pip install 'gumba[modelscope]'`.

An id that begins with `modelscope:` names a model there; with GUMBA_USE_MODELSCOPE=1 every hub id does, as other engines
have it. Downloads go on where they ended, are checked against their hashes, and lie in ModelScope's own cache.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gumba.errors import DownloadError, RequestError

PREFIX = "modelscope:"
SWITCH = "GUMBA_USE_MODELSCOPE"
# The package reads these once, as it is imported; by default it tries an unreachable site for most of a minute. Downloads
# of files, which begin after the site has answered, keep its own patience.
_PATIENCE = {
    "MODELSCOPE_API_MAX_RETRIES": "1",
    "MODELSCOPE_API_CONNECT_TIMEOUT": "5",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
}
_LOG_LEVEL = "MODELSCOPE_LOG_LEVEL"
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def named(hub_id: str) -> str | None:
    """The name on ModelScope that a hub id stands for; None where it names a model on the Hugging Face hub.

    Raises:
        RequestError: GUMBA_USE_MODELSCOPE says neither yes nor no.
    """
    if hub_id.startswith(PREFIX):
        return hub_id[len(PREFIX) :]
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch not in _YES + _NO:
        raise RequestError(f"{SWITCH} is {os.environ[SWITCH]!r}, expected 1 or 0")
    return hub_id if switch in _YES else None


def fetch(name: str, patterns: Sequence[str], *, revision: str | None, cache_dir: Path | None) -> Path:
    """The local folder of a model, with the files that fit `patterns`. MODELSCOPE_ENDPOINT, _CACHE and _API_TOKEN count.

    Raises:
        DownloadError: the package is not installed; no such model, no access, a file that is not what its hash says, no
            connection (and no finished download in the cache), or disk full.
    """
    download = _part(name, "snapshot_download").snapshot_download
    given = {"revision": revision, "cache_dir": None if cache_dir is None else str(cache_dir)}
    with _errors(name, revision):
        try:
            return Path(download(name, allow_patterns=list(patterns), max_workers=4, **given))
        except ConnectionError:
            cached = _cached(download, name, given)
            if cached is None:
                raise
            return cached


def _cached(download: Any, name: str, given: dict[str, str | None]) -> Path | None:
    """What an earlier download has left, if it came to its end."""
    try:
        folder = Path(download(name, local_files_only=True, **given))
    except Exception:  # nothing is there, in whatever words the package says so
        return None
    return None if any(folder.rglob("*.incomplete")) or not (folder / "config.json").is_file() else folder


def fetch_file(name: str, pattern: str, *, local_dir: Path | None, cache_dir: Path | None) -> Path:
    """One file of a model, by its name or a glob pattern that fits no other.

    Raises:
        RequestError: no file fits, or several do.
        DownloadError: as `fetch`.
    """
    download = _part(name, "file_download").model_file_download
    places = {
        key: None if each is None else str(each) for key, each in (("local_dir", local_dir), ("cache_dir", cache_dir))
    }
    with _errors(name, None):
        if any(sign in pattern for sign in "*?["):
            files = _part(name, "api").HubApi().get_model_files(name, recursive=True)
            names = [str(each.get("Path")) for each in files if each.get("Type") != "tree"]
            pattern = one_of(f"{PREFIX}{name}", names, pattern)
        return Path(download(name, pattern, **places))


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


def _part(name: str, module: str) -> Any:
    """A module of the package, imported by its name only, so that frozen programs do not bring it along."""
    ours = [key for key in _PATIENCE if key not in os.environ]
    try:
        os.environ |= {key: _PATIENCE[key] for key in ours}
        return import_module(f"modelscope.hub.{module}")
    except ImportError as error:
        raise DownloadError(
            f"{PREFIX}{name}: models of ModelScope are fetched with its own package: pip install 'gumba[modelscope]' ({error})"
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
def _errors(name: str, revision: str | None) -> Iterator[None]:
    """What goes wrong there, as DownloadError. The package raises errors of its own, of requests and of the system."""
    at = f"{PREFIX}{name}" + (f" at revision {revision}" if revision else "")
    try:
        with _silence():
            yield
    except (DownloadError, RequestError):
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
