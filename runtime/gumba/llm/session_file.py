"""Session files: the tokens of a conversation and their KV pages, so that it can be resumed without a prefill.

    8 bytes    b"gumbaKV4"
    8 bytes    length of the header, little-endian
    header     JSON: what the pages depend on (model, kv_type, portable, page sizes), the number of tokens and of those with
               KV pages, the application's notes
    tokens     int32
    pages      ``page_bytes`` each, in order; from page ``near_from`` on followed by ``near_bytes`` of the layers with a window;
               the last page followed by ``state_bytes``
    32 bytes   SHA-256 of everything before

A file is written atomically, and only used if its checksum is right and it was written for the same model. Pages of another
model would be wrong numbers, never a wrong address: nothing in them is an index.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np

from gumba.errors import RequestError, ResourceError
from gumba.files import atomic_file

MAGIC = b"gumbaKV4"
#: Longest header that is read.
MAX_HEADER = 16 << 20
#: Key of the header -> what is different if the values differ.
_DIFFERENCES = {
    "model": "another model",
    "kv_type": "another kv_type",
    "portable": "another setting of portable",
    "page_tokens": "other pages",
    "page_bytes": "other pages",
    "near_bytes": "other pages",
    "window": "other pages",
    "state_bytes": "other states",
}


#: What the contents of pages depend on: the keys of a header whose values must be the same.
PageLayout = TypedDict(  # noqa: UP013 - these are keys of the file, not names of the code
    "PageLayout",
    {
        "model": str,
        "kv_type": str,
        "portable": bool,
        "page_tokens": int,
        "page_bytes": int,
        "near_bytes": int,
        "window": int,
        "state_bytes": int,
    },
)


@dataclass(frozen=True)
class Session:
    """The contents of a session file without its pages.

    Attributes:
        tokens: Token ids.
        n_kept: Number of leading tokens whose keys and values are in the pages.
        n_pages: Number of pages.
        first_window_page: Index of the first page with keys and values of layers with a window.
        notes: The application's notes.
    """

    tokens: list[int]
    n_kept: int
    n_pages: int
    first_window_page: int
    notes: Any


def write(path: Path, layout: PageLayout, session: Session, page: Callable[[int], bytes]) -> None:
    """Write a session file.

    Args:
        path: The file.
        layout: What the pages depend on: model, data type, sizes.
        session: All but the pages.
        page: Returns the bytes of page i.

    Raises RequestError for notes that JSON cannot hold, ResourceError if the file cannot be written.
    """
    tokens = session.tokens
    numbers = {"n_tokens": len(tokens), "n_kept": session.n_kept, "near_from": session.first_window_page}
    try:
        header = json.dumps({**layout, **numbers, "notes": session.notes}).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"notes of a session: expected values that JSON can hold ({error})") from None
    if len(header) > MAX_HEADER:
        raise RequestError(f"notes of a session: {len(header)} bytes, expected at most {MAX_HEADER}")
    try:
        with atomic_file(path, mode=0o600) as file:
            digest = hashlib.sha256()

            def put(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            put(MAGIC + struct.pack("<Q", len(header)) + header)
            put(np.array(tokens, "<i4").tobytes())
            for index in range(session.n_pages):
                put(page(index))
            file.write(digest.digest())
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from None


def read(
    path: Path, layout: PageLayout, n_vocab: int, store: Callable[[Session, Callable[[], bytes]], None]
) -> Session:
    """Read a session file.

    Args:
        path: The file.
        layout: As for ``write``; the file's must be the same.
        n_vocab: Token ids must be below this.
        store: ``store(session, page)`` is called once everything has been checked; each call of ``page`` returns the next page.

    Raises RequestError if the file is not a session file, is damaged, or belongs to another model.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, layout, n_vocab, store)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None


def _read(
    path: Path,
    file: BinaryIO,
    layout: PageLayout,
    n_vocab: int,
    store: Callable[[Session, Callable[[], bytes]], None],
) -> Session:
    begin = file.read(16)
    if len(begin) < 16 or begin[:8] != MAGIC:
        raise RequestError(f"{path} is not a session file of this version")
    (length,) = struct.unpack("<Q", begin[8:])
    damaged = RequestError(f"{path} is damaged")
    if length > MAX_HEADER:
        raise damaged
    data = file.read(length)
    n_tokens, n_kept, first_window_page, notes = _parse_header(path, data, layout)
    n_pages = -(-n_kept // layout["page_tokens"])
    pages_bytes = n_pages * layout["page_bytes"] + (n_pages - first_window_page) * layout["near_bytes"]
    pages_bytes += layout["state_bytes"] if n_pages else 0
    if os.fstat(file.fileno()).st_size != 16 + length + 4 * n_tokens + pages_bytes + 32:
        raise damaged
    page_sizes = [layout["page_bytes"]] * n_pages
    for index in range(first_window_page, n_pages):
        page_sizes[index] += layout["near_bytes"]
    if page_sizes:
        page_sizes[-1] += layout["state_bytes"]
    digest = hashlib.sha256(begin + data)
    tokens = np.frombuffer(file.read(4 * n_tokens), "<i4")
    digest.update(tokens.tobytes())
    pages_start = file.tell()
    for page_size in page_sizes:
        digest.update(file.read(page_size))
    if digest.digest() != file.read() or len(tokens) != n_tokens or tokens.min() < 0 or tokens.max() >= n_vocab:
        raise damaged
    file.seek(pages_start)
    session = Session(tokens.tolist(), n_kept, n_pages, first_window_page, notes)
    remaining_sizes = iter(page_sizes)

    def page() -> bytes:
        page_size = next(remaining_sizes)
        contents = file.read(page_size)
        if len(contents) != page_size:
            raise damaged
        return contents

    store(session, page)
    return session


def _parse_header(path: Path, data: bytes, layout: PageLayout) -> tuple[int, int, int, Any]:
    """The header's n_tokens, n_kept, "near_from" and notes, with every number in range.

    Raises RequestError if the header is damaged, or if it differs from ``layout``.
    """
    damaged = RequestError(f"{path} is damaged")
    try:
        header = json.loads(data)
        n_tokens, n_kept, first_window_page, notes = (
            header[name] for name in ("n_tokens", "n_kept", "near_from", "notes")
        )
        sizes = {name: header[name] for name in layout}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
    for name, value in layout.items():
        if sizes[name] != value:
            raise RequestError(
                f"{path} was written with {_DIFFERENCES[name]}: it can only be loaded with the same {name}"
            )
    if not type(n_tokens) is type(n_kept) is type(first_window_page) is int:
        raise damaged
    first_window_limit = max(0, n_kept - layout["window"] + 1) // layout["page_tokens"]
    if n_tokens < 1 or not 0 <= n_kept <= n_tokens or not 0 <= first_window_page <= first_window_limit:
        raise damaged
    return n_tokens, n_kept, first_window_page, notes
