"""Servers on the loopback interface that have one model, with the routes that the hubs' libraries use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit


class Local(ThreadingHTTPServer):
    """Serves `folder`; `status`: of every answer, when it is not 200."""

    daemon_threads = True

    def __init__(self, folder: Path, routes: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), routes)
        self.folder = folder
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


S = TypeVar("S", bound=Local)


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Answer requests in a thread of its own."""
    with server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Hub(Local):
    """A Hugging Face hub that has `folder` as the model ada/tiny.

    Attributes:
        requests: (method, path) of every request.
        ranges: The Range header of every request for the content of a GGUF file.
        files: Content that is sent instead of a file's, by its path: the API goes on to describe the file.
        said: The API's whole answer, in the place of the right one.
        listed: Changes to what the API says of a file, by its path.
        cut: So many bytes of a GGUF file are sent before the connection ends.
        takes_ranges: Whether a Range header has an effect.
        redirects: The server that content comes from, where it is another address.
        tokens: The Authorization header of every request.
        error: The X-Error-Code of answers that have another `status` than 200.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, HubRoutes)
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str | None] = []
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, dict[str, Any]] = {}
        self.said: bytes | None = None
        self.cut = 0
        self.takes_ranges, self.redirects = True, ""
        self.tokens: list[str | None] = []
        self.error = ""

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""

    def paths(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def described(self, path: str) -> dict[str, Any]:
        """A file as the API lists it; weights are in LFS."""
        data = (self.folder / path).read_bytes()
        found: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
        if path.endswith((".gguf", ".safetensors")):
            found["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
        return found | self.listed.get(path, {})


class HubRoutes(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.status != 200:
            return self.answer(self.server.status, b"{}", {"X-Error-Code": self.server.error})
        if path.startswith("/api/models/ada/tiny"):
            said = self.server.said
            return self.answer(200, json.dumps(self.api(path)).encode() if said is None else said)
        for prefix in (
            "/ada/tiny/resolve/main/",
            f"/ada/tiny/resolve/{COMMIT}/",
            "/ada/tiny/resolve/v1/",
            "/elsewhere/",
        ):
            if path.startswith(prefix) and (self.server.folder / path.removeprefix(prefix)).is_file():
                return self.content(path.removeprefix(prefix), prefix)
        code = "EntryNotFound" if path.startswith("/ada/tiny/") else "RepoNotFound"
        return self.answer(404, b"{}", {"X-Error-Code": code})

    do_HEAD = do_GET

    def api(self, path: str) -> object:
        """What the API says of the model, or of the files in it."""
        listed = [self.server.described(each) for each in self.server.paths()]
        if "/tree/" in path:
            return [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["blobId"]} for f in listed]
        return {"id": "ada/tiny", "sha": COMMIT, "siblings": listed}

    def content(self, path: str, prefix: str) -> None:
        listed = self.server.described(path)
        etag = listed["lfs"]["sha256"] if listed.get("lfs") else listed["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        headers["X-Linked-Size"] = str(listed["size"])
        if self.server.redirects and prefix != "/elsewhere/":
            return self.answer(302, b"", {**headers, "Location": f"{self.server.redirects}/elsewhere/{quote(path)}"})
        data = self.server.files.get(path, (self.server.folder / path).read_bytes())
        status, first = 200, 0
        if path.endswith(".gguf") and self.command == "GET":
            wanted = self.headers.get("Range")
            self.server.ranges.append(wanted)
            if wanted is not None and self.server.takes_ranges:
                status, first = 206, int(wanted.removeprefix("bytes=").rstrip("-"))
                if first >= len(data):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self.answer(status, data[first:], headers, self.server.cut if path.endswith(".gguf") else 0)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut] if cut else body)
            if cut:
                self.wfile.flush()
                self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
