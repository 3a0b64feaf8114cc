"""Downloads one file of a repository on the Hugging Face hub into the cache of the hub's own library.

The library checks no hash, and since its version 2 it restarts interrupted downloads. So this module downloads the content: it
resumes the incomplete file that the library also used, `blobs/HASH.incomplete`, and renames it only when its size and hash are
those of the hub's API. The library then creates its snapshots and references, without a download.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from gumba.errors import DownloadError, ResourceError
from gumba.hub.errors import hub_errors
from gumba.hub.gguf_files import RemoteFile
from gumba.hub.reference import Reference

#: Called with "download" or "check", the bytes done and the total bytes.
Report = Callable[[str, int, int], None]

_BLOCK = 1 << 16
_MAX_ATTEMPTS = 5
_MAGIC = b"GGUF"


def blob_path(reference: Reference, file: RemoteFile) -> Path:
    """The path of a file's complete content in the cache."""
    return repository_folder(reference) / "blobs" / str(file.sha256 or file.git_sha1)


def repository_folder(reference: Reference) -> Path:
    """The folder of a repository in the cache."""
    from huggingface_hub.file_download import repo_folder_name

    return _cache(reference) / repo_folder_name(repo_id=reference.repository, repo_type="model")


def _cache(reference: Reference) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) if reference.cache_dir is None else reference.cache_dir


def n_present(reference: Reference, file: RemoteFile) -> int:
    """The number of bytes of a file in the cache, including those of an interrupted download (0 without a hash)."""
    if not (file.sha256 or file.git_sha1):
        return 0
    blob = blob_path(reference, file)
    for path in (blob, _part(blob)):
        with contextlib.suppress(OSError):
            return min(path.stat().st_size, file.size or 0)
    return 0


def fetch_blob(reference: Reference, file: RemoteFile, report: Report, *, check: bool) -> None:
    """Download the content of a GGUF file into the cache. `check`: verify the hash of cached content.

    Raises:
        DownloadError: the hub stops or refuses to send, or sends other content than its API lists.
        ResourceError: too little disk space.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob = blob_path(reference, file)
    if not check and _is_complete(blob, file):
        return  # in a cache that may be read-only
    lock = _cache(reference) / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    try:
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # another process may be fetching the same file
            if blob.is_file():
                if _is_complete(blob, file) and (not check or _digest(blob, file, report) == blob.name):
                    return
                blob.unlink()  # damaged
            _download(reference, file, blob, report)
    except OSError as error:
        raise ResourceError(f"{reference.at}: {blob.parent} cannot be written: {error.strerror or error}") from error


def _is_complete(blob: Path, file: RemoteFile) -> bool:
    return blob.is_file() and blob.stat().st_size == file.size


def _download(reference: Reference, file: RemoteFile, blob: Path, report: Report) -> None:
    """Download the rest of `blob`; if the part of an earlier run proves wrong, download everything again."""
    part, size = _part(blob), file.size or 0
    present = n_present(reference, file)
    free = shutil.disk_usage(blob.parent).free
    if free < size - present:
        raise ResourceError(
            f"{blob.parent}: not enough disk space: {(size - present) // 1_000_000} MB needed, "
            f"{free // 1_000_000} MB free (HF_HUB_CACHE)"
        )
    for fresh in (present == 0, True):
        with part.open("r+b" if part.is_file() and not fresh else "wb") as out:
            _transfer(reference, file, out, report)
            out.flush()
            os.fsync(out.fileno())
        digest = _digest(part, file, report)
        if digest == blob.name:
            break
        part.unlink()
        if fresh:
            raise DownloadError(
                f"{reference.at}: {file.path} fails its check: the hub lists the hash {blob.name}, got {digest}"
            )
    with part.open("rb") as content:
        magic = content.read(4)
    if magic != _MAGIC:
        part.unlink()
        raise DownloadError(f"{reference.at}: {file.path} is not a GGUF file: it begins with {magic!r}")
    part.replace(blob)


def _transfer(reference: Reference, file: RemoteFile, out: IO[bytes], report: Report) -> None:
    """Append the hub's data to `out` until it has the file's size; reconnect a few times if the connection breaks."""
    size = file.size or 0
    out.seek(0, os.SEEK_END)
    if out.tell() > size:
        out.truncate(0)
    failure = "it ended early"
    for _ in range(_MAX_ATTEMPTS):
        start = out.seek(0, os.SEEK_END)
        if start == size:
            return
        try:
            with _opened(reference, file, start) as (first, blocks):
                out.seek(first)
                out.truncate()
                for block in blocks:
                    if out.tell() + len(block) > size:
                        raise DownloadError(
                            f"{reference.at}: {file.path}: the hub sends more than the {size} bytes that it lists"
                        )
                    _write(out, block, reference)
                    report("download", out.tell(), size)
        except (DownloadError, ResourceError):
            raise
        except Exception as error:  # of the library's HTTP client, which differs between its versions
            failure = _reason(error)
        done = out.seek(0, os.SEEK_END)
        if done <= start:
            break
    if out.tell() != size:
        raise DownloadError(
            f"{reference.at}: the download of {file.path} was interrupted at {out.tell()} of {size} bytes ({failure}); "
            "the same command resumes there"
        )


def _write(out: IO[bytes], block: bytes, reference: Reference) -> None:
    """Write to disk; an error is a ResourceError, unlike those of the connection."""
    try:
        out.write(block)
    except OSError as error:
        raise ResourceError(f"{reference.at}: the download cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _opened(reference: Reference, file: RemoteFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Request a file from byte `start` on: the first byte of the response, and its blocks."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(reference.repository, file.path, revision=reference.revision)
    headers = {**build_hf_headers(token=reference.token), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with contextlib.ExitStack() as stack:
        if callable(getattr(session, "stream", None)):  # httpx, since version 1 of the library; requests has a flag
            response = stack.enter_context(session.stream("GET", url, headers=headers, timeout=timeout))
            blocks = response.iter_bytes(_BLOCK)
        else:
            response = stack.enter_context(session.get(url, headers=headers, timeout=timeout, stream=True))
            blocks = response.iter_content(_BLOCK)
        if response.status_code == 416 and start:
            yield 0, iter(())  # the local part is longer than the file, or of another one
            return
        if response.status_code >= 400:
            with hub_errors(reference):
                hf_raise_for_status(response)
        expected = f"bytes {start}-"
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(expected)
        first = start if resumed else 0
        length = response.headers.get("Content-Length")
        if (
            length is not None
            and "Content-Encoding" not in response.headers
            and length != str((file.size or 0) - first)
        ):
            raise DownloadError(
                f"{reference.at}: {file.path}: the hub sends {length} bytes where {(file.size or 0) - first} are missing"
            )
        yield first, blocks


def _digest(path: Path, file: RemoteFile, report: Report) -> str:
    """The hash that identifies the content on the hub: SHA-256, or Git's SHA-1 for a small file."""
    total = path.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {total}\0".encode(), usedforsecurity=False)
    done = 0
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
            done += len(block)
            report("check", done, total)
    return digest.hexdigest()


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
