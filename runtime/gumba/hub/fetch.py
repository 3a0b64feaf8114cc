"""Downloads from the Hugging Face hub: the files of a checkpoint that a conversion reads, or a GGUF file.

`modelscope.py` downloads ids that begin with `modelscope:`. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are
honoured.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gumba.errors import DownloadError, RequestError
from gumba.hub import blobs, modelscope
from gumba.hub.errors import NotFoundError, UnreachableError, hub_errors
from gumba.hub.gguf_files import RemoteFile
from gumba.hub.home import has_home, no_home
from gumba.hub.reference import Reference, checked_path, parse
from gumba.progress import size

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

NEEDED = [
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "qwen.tiktoken",
    "tekken.json",
    "tokenization_chatglm.py",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
    "[0-9]_Dense/model.safetensors",
    "README.md",
]
# Old layouts of sentence-transformers have the checkpoint in a folder.
NEEDED += [f"0_Transformer/{name}" for name in NEEDED if "/" not in name]

_HEX = frozenset("0123456789abcdef")
log = logging.getLogger("gumba")


@dataclass(frozen=True)
class Listing:
    """The files of a repository; `folder`: its copy in the cache, if the hub was not contacted or is unreachable."""

    files: tuple[RemoteFile, ...]
    folder: Path | None = None


def fetch(hub_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """The local folder of a checkpoint on a hub, downloaded or taken from the cache.

    Raises:
        RequestError: `hub_id` names a GGUF file, or is not an id.
        DownloadError: no such model or revision, no access, no connection (and nothing in the cache), or disk full. The
            message adds that there is no local folder of that name either.
    """
    reference = parse(hub_id)
    if reference is None:
        raise RequestError(f"{hub_id!r} is neither a folder nor a valid hub id")
    if reference.names_file:
        raise RequestError(f"{hub_id}: a GGUF file already; expected a checkpoint (a hub id without type or file)")
    reference = replace(reference.with_revision(revision), cache_dir=cache_dir)
    try:
        listing = list_files(reference)
        if listing.folder is None:
            announce_checkpoint(reference, listing.files, log.warning)
        return fetch_checkpoint(reference, cached=listing.folder is not None)
    except DownloadError as error:
        raise with_local_note(error, hub_id) from None


def fetch_checkpoint(reference: Reference, *, cached: bool = False) -> Path:
    """The local folder of a repository's checkpoint, as `fetch` returns it. `cached`: do not contact the hub."""
    folder = _snapshot(reference, NEEDED, cached)
    for _ in range(2):  # config.json may name an index, which names files
        named = _named_weights(folder)
        if named:
            folder = _snapshot(reference, [glob.escape(name) for name in named], cached)
    return folder


def _snapshot(reference: Reference, patterns: Sequence[str], cached: bool) -> Path:
    """The local folder of a repository, with its files that match `patterns`."""
    if reference.modelscope:
        return modelscope.fetch(reference, patterns)
    _check_settings(reference.cache_dir)
    # Imported here: huggingface_hub takes 0.2 s, and a local folder does not need it.
    from huggingface_hub import snapshot_download

    with hub_errors(reference):
        places = {**_places(reference), "local_files_only": cached}
        return Path(snapshot_download(reference.repository, allow_patterns=list(patterns), max_workers=4, **places))


def _named_weights(folder: Path) -> list[str]:
    """The missing files among the weights that config.json (`transformers_weights`), or the index in it, names."""
    with contextlib.suppress(
        OSError, ValueError, AttributeError, KeyError, TypeError
    ):  # errors are reported when the file is read
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
        if isinstance(named, str):
            names = {checked_path(named, "config.json")}
            if named.endswith(".index.json") and (folder / named).is_file():
                weight_map = json.loads((folder / named).read_text(encoding="utf-8"))["weight_map"]
                names |= {checked_path(str(name), named) for name in weight_map.values()}
            return sorted(name for name in names if not (folder / name).is_file())
    return []


def list_files(reference: Reference) -> Listing:
    """The files of a repository from the hub's API or, if that is unreachable, of its copy in the cache.

    Raises:
        DownloadError: as `fetch`.
    """
    if reference.modelscope:
        return Listing(*modelscope.list_files(reference))
    _check_settings(reference.cache_dir)
    from huggingface_hub import HfApi

    try:
        with hub_errors(reference):
            info = HfApi(token=reference.token).model_info(
                reference.repository, revision=reference.revision, files_metadata=True
            )
    except UnreachableError:
        folder = _cached(reference)
        if folder is None:
            raise
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        return Listing(tuple(map(RemoteFile, files)), folder)
    return Listing(tuple(_remote_file(reference, sibling) for sibling in info.siblings or ()))


def fetch_gguf(reference: Reference, files: Sequence[RemoteFile], report: blobs.Report, *, check: bool = False) -> Path:
    """Download `files` of `list_files` to the cache and return the path of the first. `check`: verify cached files, too.

    Raises:
        DownloadError: as `fetch`; or a file's size or hash differs from the hub's API.
        ResourceError: too little disk space.
    """
    if reference.modelscope:
        names = [file.path for file in files]
        return modelscope.fetch_gguf(reference, names) / names[0]
    from huggingface_hub import hf_hub_download

    for file in files:
        if file.size is None or not (file.sha256 or file.git_sha1):
            raise DownloadError(f"{reference.at}: the hub gives no size or no hash for {file.path}")
        blobs.fetch_blob(reference, file, _as_part(report, files, file), check=check)
    paths = []
    for file in files:
        with hub_errors(reference):
            paths.append(Path(hf_hub_download(reference.repository, file.path, **_places(reference))))
        digest = paths[-1].resolve().name if paths[-1].is_symlink() else ""
        if paths[-1].stat().st_size != file.size or digest not in ("", file.sha256 or file.git_sha1):
            raise DownloadError(
                f"{reference.at}: {file.path} changed on the hub during the download; run the command again"
            )
    return paths[0]


def _as_part(report: blobs.Report, files: Sequence[RemoteFile], file: RemoteFile) -> blobs.Report:
    """Report the progress of one file as a part of all files."""
    before = sum(other.size or 0 for other in files[: files.index(file)])
    total = sum(other.size or 0 for other in files)
    return lambda stage, done, _: report(stage, before + done, total)


def fetch_file(
    hub_id: str,
    pattern: str,
    *,
    local_dir: str | PathLike[str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
    revision: str | None = None,
) -> Path:
    """One file of a hub model, downloaded (into ``local_dir``, if given) or taken from the cache.

    ``pattern``: its name, or a glob pattern that matches no other file.

    Raises:
        RequestError: No file matches, or several do.
        DownloadError: As for ``fetch``.
    """
    reference = parse(hub_id)
    if reference is None or reference.names_file:
        raise RequestError(f"{hub_id!r}: expected a hub id (owner/name)")
    places = [None if folder is None else Path(folder) for folder in (local_dir, cache_dir)]
    reference = replace(reference.with_revision(revision), cache_dir=places[1])
    if reference.modelscope:
        return modelscope.fetch_file(reference, pattern, local_dir=places[0])
    _check_settings(places[1])
    from huggingface_hub import hf_hub_download, list_repo_files

    if pattern.lower().endswith(".gguf") and places[0] is None:  # resumed and checked
        listing = list_files(reference)
        name = modelscope.one_of(str(reference), [file.path for file in listing.files], pattern)
        if listing.folder is not None:
            return listing.folder / name
        files = [file for file in listing.files if file.path == name]
        announce_gguf(reference, files, log.warning)
        return fetch_gguf(reference, files, lambda stage, done, total: None)
    with hub_errors(reference):
        name = pattern
        if any(sign in pattern for sign in "*?["):  # a plain name needs no request if it is cached
            name = modelscope.one_of(
                str(reference), list_repo_files(reference.repository, revision=reference.revision), pattern
            )
        path = hf_hub_download(reference.repository, name, local_dir=places[0], **_places(reference))
        return Path(path)


def announce_checkpoint(reference: Reference, files: Sequence[RemoteFile], announce: Callable[[str], None]) -> None:
    """Announce the download of a checkpoint, with its source and size, unless everything is cached."""
    is_needed = re.compile("|".join(map(fnmatch.translate, NEEDED))).match
    needed = [file for file in files if is_needed(file.path)]
    missing = sum(file.size or 0 for file in needed) - n_present(reference, needed)
    if missing:
        announce(f"downloading the checkpoint {reference.at} ({size(missing)}) from {reference.host}")


def announce_gguf(reference: Reference, files: Sequence[RemoteFile], announce: Callable[[str], None]) -> None:
    """Announce the download of a GGUF file or its shards, with source and size, unless everything is cached."""
    total, present = sum(file.size or 0 for file in files), n_present(reference, files)
    if present < total or not total:
        what = files[0].path if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
        some = f", {size(present)} of it already downloaded" if present else ""
        announce(f"downloading {what} ({size(total)}{some}) of {reference.at} from {reference.host}")


def n_present(reference: Reference, files: Sequence[RemoteFile]) -> int:
    """The number of bytes of `files` that are cached."""
    if reference.modelscope:
        return modelscope.n_present(reference, files)
    return sum(blobs.n_present(reference, file) for file in files)


def _remote_file(reference: Reference, sibling: RepoSibling) -> RemoteFile:
    """Check an entry of the API's list, whose path and hash become file names in the cache."""
    try:
        path = checked_path(str(sibling.rfilename), reference.at)
    except RequestError as error:
        raise DownloadError(f"{error}, which the hub lists") from None
    lfs, size = sibling.lfs, sibling.size
    sha256 = None if lfs is None else lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
    for digest, length in ((sha256, 64), (sibling.blob_id, 40)):
        if digest is not None and not (isinstance(digest, str) and len(digest) == length and _HEX.issuperset(digest)):
            raise DownloadError(f"{reference.at}: {path}: the hub gives {digest!r:.80} as a hash")
    if size is not None and (type(size) is not int or size < 0):
        raise DownloadError(f"{reference.at}: {path}: the hub gives {size!r:.80} as a size")
    return RemoteFile(path, size, sha256, sibling.blob_id)


def _places(reference: Reference) -> dict[str, Any]:
    """The keywords of the hub's library for a repository, besides its id."""
    return {"revision": reference.revision, "cache_dir": reference.cache_dir, "token": reference.token}


def _cached(reference: Reference) -> Path | None:
    """The cached copy of a repository, possibly incomplete."""
    revision = reference.revision or "main"
    repository = blobs.repository_folder(reference)
    with contextlib.suppress(OSError, RequestError, UnicodeError):
        commit = (repository / "refs" / checked_path(revision, reference.at)).read_text(encoding="utf-8").strip()
        revision = commit or revision
    folder = repository / "snapshots" / revision
    return folder if len(revision) == 40 and _HEX.issuperset(revision) and folder.is_dir() else None


def _check_settings(cache_dir: Path | None) -> None:
    """Check the environment variables that the hub's library reads but does not check.

    Raises:
        RequestError: HF_ENDPOINT is not a URL, or the library refuses another variable's value.
        ResourceError: there is no home folder, and no other is set: the library would create a folder named ``~``.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        urlsplit(endpoint).port  # noqa: B018 - raises for an impossible one
    except ValueError as error:
        raise RequestError(
            f"HF_ENDPOINT is {endpoint!r}, expected a URL such as https://huggingface.co ({error})"
        ) from None
    try:
        import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        raise RequestError(
            f"an environment variable of the hub's library (HF_...) has an invalid value: {error}"
        ) from None
    named = any(os.environ.get(key) for key in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"))
    if cache_dir is None and not named and not has_home():
        raise no_home("the cache of the hub", "HF_HOME")


def with_local_note(error: DownloadError, text: str) -> DownloadError:
    """``error``, if it means that there is no such model, with a note that there is no local file or folder `text` either."""
    if not isinstance(error, NotFoundError | UnreachableError) or ":" in text or Path(text).exists():
        return error
    return DownloadError(f"{error} (and there is no local file or folder {text})")
