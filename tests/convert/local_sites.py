"""Servers on the loopback interface that have one tiny checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TypeVar


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
