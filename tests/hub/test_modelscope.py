"""Downloads from ModelScope: a loopback server with the routes that its package uses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from support.local_sites import Local, serving
from support.tiny_checkpoints import write_checkpoint

CONVERT = """
import sys
from gumba.errors import GumbaError
from gumba_convert import convert
try:
    convert(sys.argv[1], sys.argv[2])
except GumbaError as error:
    print(type(error).__name__, error, sep=": ")
    sys.exit(2)
"""
FETCH_FILE = CONVERT.replace("from gumba_convert import convert", "from gumba.hub.fetch import fetch_file").replace(
    "convert(sys.argv[1], sys.argv[2])", "print(fetch_file(sys.argv[1], sys.argv[3]).read_text())"
)
RESOLVE = CONVERT.replace("from gumba_convert import convert", "from gumba import store").replace(
    "convert(sys.argv[1], sys.argv[2])", "print(store.resolve(sys.argv[1]))"
)
WITHOUT = 'import sys\nsys.modules["modelscope"] = None\n' + CONVERT
MODEL = "/api/v1/models/ada/tiny"


class Site(Local):
    """Serves `folder` as the model ada/tiny.

    `requests`: (path, FilePath, Range) of every request; `cut`: of a file so many bytes are sent before the line goes dead;
    `spoiled`: whether files are other than their hashes say; `listed`: changes to what the list says of every file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Routes)
        self.requests: list[tuple[str, str, str]] = []
        self.cut, self.spoiled = 0, False
        self.listed: dict[str, object] = {}

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


class Routes(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = parse_qs(url.query).get("FilePath", [""])[0]
        wanted = self.headers.get("Range", "")
        self.server.requests.append((url.path, name, wanted))
        if self.server.status != 200:
            return self.answer(self.server.status, b'{"Code": 1, "Message": "trouble", "Success": false}')
        folder = self.server.folder
        if url.path == f"{MODEL}/repo/files":
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            listed = [
                {"Name": path.name, "Path": path.relative_to(folder).as_posix(), "Size": path.stat().st_size}
                | {"Type": "blob", "Sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                | self.server.listed
                for path in files
            ]
            return self.answer(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode())
        file = folder / name
        if url.path != f"{MODEL}/repo" or not name or not file.is_file():
            return self.answer(404, b'{"Code": 404, "Message": "no such thing", "Success": false}')
        data = file.read_bytes()
        if self.server.spoiled and file.suffix in (".safetensors", ".gguf"):
            data = bytes(len(data))
        first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if wanted else {}
        self.answer(206 if wanted else 200, data[first:], headers, file.suffix == ".safetensors")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        cut = cut and self.server.cut > 0
        self.wfile.write(body[: self.server.cut] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "server"
    write_checkpoint(folder)
    (folder / "training.log").write_text("not needed")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    described = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(described))
    with serving(Site(folder)) as server:
        yield server


def run(
    tmp_path: Path, url: str, source: str, *more: str, code: str = CONVERT, **environment: str
) -> subprocess.CompletedProcess[str]:
    outside = re.compile(r"HF_|HUGGING|MODELSCOPE_|.*_proxy$", re.IGNORECASE)
    env = {key: value for key, value in os.environ.items() if not outside.match(key)}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "GUMBA_HOME": str(tmp_path / "gumba")}
    env |= {"MODELSCOPE_ENDPOINT": url, "MODELSCOPE_HOME": str(tmp_path / "home")}
    env |= {"MODELSCOPE_CACHE": str(tmp_path / "cache"), "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0"}
    env |= environment
    command = [sys.executable, "-c", code, source, str(tmp_path / "out.gguf"), *more]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def one_line(done: subprocess.CompletedProcess[str], kind: str = "DownloadError") -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.startswith(f"{kind}: ") and done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def fetched(site: Site) -> set[str]:
    return {name for path, name, _ in site.requests if path == f"{MODEL}/repo"}


NEEDED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
NEEDED |= {"modules.json", "1_Pooling/config.json"}


def test_downloaded_converted_and_cached(site: Site, tmp_path: Path) -> None:
    first = run(tmp_path, site.url, "modelscope:ada/tiny")
    assert first.returncode == 0, first.stdout + first.stderr
    made = (tmp_path / "out.gguf").read_bytes()
    assert fetched(site) == NEEDED
    (tmp_path / "out.gguf").unlink()
    site.shutdown()
    site.server_close()  # the site is gone: the cache must suffice
    second = run(tmp_path, site.url, "modelscope:ada/tiny")
    assert second.returncode == 0, second.stdout + second.stderr
    assert (tmp_path / "out.gguf").read_bytes() == made


def test_a_download_resumes(site: Site, tmp_path: Path) -> None:
    site.cut = 1000
    assert "ada/tiny" in one_line(run(tmp_path, site.url, "modelscope:ada/tiny"))
    assert not (tmp_path / "out.gguf").exists()
    unreachable = one_line(run(tmp_path, "http://127.0.0.1:9", "modelscope:ada/tiny"))
    assert "cannot be reached" in unreachable, "what is there is not the whole"
    site.cut = 0
    site.requests.clear()
    done = run(tmp_path, site.url, "modelscope:ada/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [wanted for _, name, wanted in site.requests if name == "model.safetensors"] == ["bytes=1000-"]


def test_a_file_with_another_hash(site: Site, tmp_path: Path) -> None:
    site.spoiled = True
    assert "modelscope:ada/tiny: download failed" in one_line(run(tmp_path, site.url, "modelscope:ada/tiny"))
    assert not list(tmp_path.glob("cache/**/model.safetensors"))


@pytest.mark.parametrize(
    ("status", "message"), [(403, "refuses access"), (404, "no such model"), (500, "returned 500")]
)
def test_the_site_in_trouble(site: Site, tmp_path: Path, status: int, message: str) -> None:
    site.status = status
    done = run(tmp_path, site.url, "modelscope:ada/tiny")
    assert message in one_line(done)
    assert done.stderr == ""
    assert len(site.requests) <= 2, "its package retries more than twenty times by itself"


def test_unreachable(tmp_path: Path) -> None:
    done = run(tmp_path, "http://127.0.0.1:9", "modelscope:ada/tiny")
    assert "cannot be reached" in one_line(done)
    assert done.stderr == ""
    wishes = {"MODELSCOPE_LOG_LEVEL": "30", "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2"}
    told = run(tmp_path, "http://127.0.0.1:9", "modelscope:ada/tiny", **wishes)
    assert one_line(told) == done.stdout
    assert told.stderr.count("listing failed") == 1, "who sets the package's variables gets what they say"


def test_without_the_package(tmp_path: Path) -> None:
    message = one_line(run(tmp_path, "http://127.0.0.1:9", "modelscope:ada/tiny", code=WITHOUT))
    assert "pip install 'gumba[modelscope]'" in message


def test_one_file_by_name_or_pattern(site: Site, tmp_path: Path) -> None:
    for pattern in ("training.log", "*.log"):
        done = run(tmp_path, site.url, "modelscope:ada/tiny", pattern, code=FETCH_FILE)
        assert done.returncode == 0 and done.stdout == "not needed\n", done.stdout + done.stderr
    for pattern, kind, reason in (
        ("*.gguf", "RequestError", "no files match"),
        ("token*", "RequestError", "2 files match"),
        ("none.gguf", "DownloadError", "no such model, revision or file"),
    ):
        done = run(tmp_path, site.url, "modelscope:ada/tiny", pattern, code=FETCH_FILE)
        assert reason in one_line(done, kind)


def test_every_id_with_a_switch(site: Site, tmp_path: Path) -> None:
    """As MODEL of a command: converted once and cached, under a name with its site."""
    found = []
    for source, switch in (("ada/tiny", "1"), ("modelscope:ada/tiny", "")):
        done = run(tmp_path, site.url, source, code=RESOLVE, GUMBA_USE_MODELSCOPE=switch)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(done.stdout.strip())
    assert found[0] == found[1] and Path(found[0]).name.startswith("modelscope--ada--tiny-")
    assert "ada/tiny: the hub cannot be reached" in one_line(
        run(tmp_path, site.url, "ada/tiny", code=RESOLVE, GUMBA_USE_MODELSCOPE="0")
    )
    wrong = run(tmp_path, site.url, "ada/tiny", code=RESOLVE, GUMBA_USE_MODELSCOPE="maybe")
    assert "expected 1 or 0" in one_line(wrong, "RequestError")


def test_gguf_files(site: Site, tmp_path: Path) -> None:
    """By type, name and URL; from the cache if ModelScope is unreachable."""
    for name in ("tiny-Q4_0.gguf", "tiny-Q8_0.gguf", "mmproj-Q8_0.gguf"):
        (site.folder / name).write_bytes(b"GGUF" + name.encode())
    address = f"{site.url}/models/ada/tiny/resolve/master/tiny-Q4_0.gguf"
    for source, file in (
        ("modelscope:ada/tiny:q8_0", "tiny-Q8_0.gguf"),
        (address, "tiny-Q4_0.gguf"),
    ):
        done = run(tmp_path, site.url, source, code=RESOLVE)
        assert done.returncode == 0, done.stdout + done.stderr
        path = Path(done.stdout.strip())
        assert path.name == file and path.read_bytes() == b"GGUF" + file.encode()
    assert fetched(site) == {"tiny-Q8_0.gguf", "tiny-Q4_0.gguf"}
    assert "downloading tiny-Q4_0.gguf (18 B) of modelscope:ada/tiny at revision master from 127.0.0.1" in done.stderr
    assert "no file has the type Q5_0" in one_line(
        run(tmp_path, site.url, "modelscope:ada/tiny:Q5_0", code=RESOLVE), "RequestError"
    )
    done = run(tmp_path, "http://127.0.0.1:9", "modelscope:ada/tiny:Q8_0", code=RESOLVE)
    assert done.returncode == 0 and done.stdout.strip().endswith("tiny-Q8_0.gguf"), done.stdout + done.stderr


def test_a_gguf_file_with_another_hash(site: Site, tmp_path: Path) -> None:
    (site.folder / "tiny-Q8_0.gguf").write_bytes(b"GGUF" + bytes(1000))
    site.spoiled = True
    assert "modelscope:ada/tiny" in one_line(run(tmp_path, site.url, "modelscope:ada/tiny:Q8_0", code=RESOLVE))
    assert not list(tmp_path.glob("cache/**/tiny-Q8_0.gguf"))


def test_an_impossible_size(site: Site, tmp_path: Path) -> None:
    site.listed = {"Size": -1}
    assert "ModelScope gives -1 as a size" in one_line(run(tmp_path, site.url, "modelscope:ada/tiny", code=RESOLVE))
    assert all(name == "" for _, name, _ in site.requests)
