"""Resolving MODEL, and pulling from a package index on the loopback interface, with all errors."""

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

from gumba import store
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
        self.stalling = threading.Semaphore(0)
        #: Set when a pip hangs up on a wheel that waits.
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
                    index.stalling.release()
                    while index.stall.is_set():
                        if select.select([self.connection], [], [], 0.01)[0]:
                            return index.left.set()  # pip has no more to say: its end is closed
                    body = body[len(body) // 2 :]
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
def tiny(monkeypatch: pytest.MonkeyPatch) -> store.KnownModel:
    """A known model of 768,004 bytes instead of the real ones."""
    model = store.KnownModel(
        title="Tiny",
        licence="CC0-1.0",
        requirement="tiny-model==1.0",
        wheel_bytes=10_000,
        member=MEMBER,
        n_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setitem(store.KNOWN, "tiny", model)
    monkeypatch.setattr("gumba.store.resolver.DEFAULT_MODEL", "tiny")
    return model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The only package index that pip uses."""
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


def test_pull_fetches_checks_and_keeps(tiny: store.KnownModel, index: Index, home: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}
    path = store.resolve("Tiny", check=True, progress=lambda stage, done, total: stages.update({stage: (done, total)}))
    assert path == home / "models" / "Tiny.Q4_0.gguf"
    assert path.read_bytes() == CONTENT
    assert files_below(home) == ["models/Tiny.Q4_0.gguf"] and list(path.parent.iterdir()) == [path]
    assert stages["download"] == (tiny.wheel_bytes, tiny.wheel_bytes)
    assert stages["unpack"] == (len(CONTENT), len(CONTENT))
    assert store.pulled("tiny") == path
    assert f"/{WHEEL}" in index.requests


def test_pull_again_downloads_only_to_repair_a_damaged_file(tiny: store.KnownModel, index: Index) -> None:
    path = store.resolve("tiny", check=True)
    index.requests.clear()
    assert store.resolve("tiny", check=True) == path
    assert index.requests == []
    path.write_bytes(CONTENT[:-1] + b"?")
    assert store.resolve("tiny", check=True) == path
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({MEMBER: CONTENT[:-1] + b"?"}, "fails its check"),
        ({MEMBER: CONTENT[:-1]}, f"got {len(CONTENT) - 1} with"),
        ({MEMBER: CONTENT + b"?"}, "got more with"),
        ({MEMBER: b"\0" * 50_000_000}, "got more with"),
        ({"tiny_model/Other.gguf": CONTENT}, "damaged or has changed"),
    ],
    ids=["changed", "short", "long", "bomb", "missing"],
)
def test_a_wrong_wheel_leaves_nothing(
    tiny: store.KnownModel, index: Index, home: Path, members: dict[str, bytes], says: str
) -> None:
    make_wheel(index.wheel, members)
    with pytest.raises(DownloadError, match=says):
        store.resolve("tiny", check=True)
    assert list((home / "models").iterdir()) == []


def test_an_unknown_release_is_pips_own_message(tiny: store.KnownModel, index: Index, home: Path) -> None:
    monkeypatched = replace(tiny, requirement="tiny-model==2.0")
    store.KNOWN["tiny"] = monkeypatched
    with pytest.raises(DownloadError, match=r"tiny-model==2\.0"):
        store.resolve("tiny", check=True)
    assert list((home / "models").iterdir()) == []


def test_offline(tiny: store.KnownModel, index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.close()
    with pytest.raises(DownloadError, match=r"could not download tiny-model==1\.0: .*offline"):
        store.resolve("tiny", check=True)
    assert list((home / "models").iterdir()) == []


def test_without_pip(tiny: store.KnownModel, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        store.resolve("tiny", check=True)
    assert not (home / "models").exists()


def test_too_little_disk(tiny: store.KnownModel, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(ResourceError, match="0 MB free"):
        store.resolve("tiny", check=True)


def pull_in_a_process(model: store.KnownModel) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from gumba import store; from gumba.cli.main import main\n"
        f"store.KNOWN['tiny'] = store.{model!r}\n"
        "sys.exit(main(['pull', 'tiny']))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_stops_pip_and_leaves_nothing(tiny: store.KnownModel, index: Index, home: Path) -> None:
    index.stall.set()
    process = pull_in_a_process(tiny)
    try:
        assert index.stalling.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, b"")
    assert (
        err.decode()
        == f"gumba: downloading Tiny (0.0 MB, CC0-1.0), with pip from its package index, to {home}/models\n"
    )
    assert index.left.wait(5), "pip runs on"
    assert list((home / "models").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_pull_takes_pip_with_it(tiny: store.KnownModel, index: Index, home: Path, number: int) -> None:
    """The next pull removes its files, but not those of a running one."""
    index.stall.set()
    with pull_in_a_process(tiny) as killed, pull_in_a_process(tiny) as living:
        assert index.stalling.acquire(timeout=60) and index.stalling.acquire(timeout=60)
        killed.send_signal(number)
        killed.wait(20)
        assert index.left.wait(20), "pip runs on"
        left = list((home / "models").glob(f".part-{killed.pid}-*"))
        assert len(left) == (1 if number == signal.SIGKILL else 0)
        index.stall.clear()
        out, err = living.communicate(timeout=60)
        assert living.returncode == 0, err
    assert store.resolve("tiny", check=True) == Path(out.decode().strip())
    assert files_below(home) == ["models/Tiny.Q4_0.gguf"] and len(list((home / "models").iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX")
def test_files_of_a_running_pull_are_kept(tiny: store.KnownModel, index: Index, home: Path) -> None:
    from gumba.files import unfinished_folder

    (home / "models").mkdir(parents=True)
    gone = home / "models" / f".part-{os.getpid()}-00000000"
    gone.mkdir()
    (gone / "wheel").write_bytes(b"x")
    with unfinished_folder(home / "models", ".part-") as living:
        store.resolve("tiny", check=True)
        assert living.exists() and not gone.exists()


def test_the_real_models_file_matches_the_table(real_model: Path) -> None:
    known = store.KNOWN["smollm2-135m-instruct"]
    data = real_model.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (known.n_bytes, known.sha256)


# -------------------------------------------------------------------------------------------------------- resolving


def test_a_file_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "modèle.gguf"
    file.write_bytes(b"")
    assert store.resolve(file) == file
    assert store.resolve(str(file)) == file


def test_a_file_wins_over_a_known_name(tiny: store.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"")
    assert store.resolve("tiny") == Path("tiny")


def test_a_known_name_is_pulled_once(tiny: store.KnownModel, index: Index, home: Path) -> None:
    assert store.resolve("tiny") == home / "models" / "Tiny.Q4_0.gguf"
    index.close()
    assert store.resolve(None) == home / "models" / "Tiny.Q4_0.gguf"


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"without config\.json"):
        store.resolve(tmp_path)


@pytest.mark.parametrize("text", ["a/b.gguf", "b.GGUF", "/a/b.gguf", "./a/b/c.gguf", "a/../b/c.gguf", "~absent/b.gguf"])
def test_a_file_that_is_missing(text: str) -> None:
    with pytest.raises(RequestError, match=f"^{text}: no such file$"):
        store.resolve(text)


@pytest.mark.parametrize(
    "text",
    ["", "a/b/c", "./a/b", "~/a/b", "/a/b", "a\0b", "x" * 5000, "../a", "~absent/a", "a/b:", "a b/c", "ä/b", "-a/b"],
)
def test_invalid_sources(text: str) -> None:
    with pytest.raises(RequestError, match=r"no model .*gumba pull --list"):
        store.resolve(text)


def test_a_revision_of_sources_without_revisions(tiny: store.KnownModel, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    for text in (str(tmp_path / "a.gguf"), "tiny"):
        with pytest.raises(RequestError, match="only models on a hub have revisions"):
            store.resolve(text, revision="main")


def test_an_unusable_home(
    tiny: store.KnownModel, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    monkeypatch.setenv("GUMBA_HOME", str(tmp_path / "file"))
    for model, use in (("tiny", "pulled models"), (tmp_path / "hf", "converted checkpoints")):
        with pytest.raises(
            ResourceError, match=rf"file/\w+, the folder of {use}, cannot .*: \w.* \(GUMBA_HOME is .*/file\)$"
        ):
            store.resolve(model)
    monkeypatch.delenv("GUMBA_HOME")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"\(set GUMBA_HOME to use another folder\)$"):
        store.resolve(tmp_path / "hf")


def test_folders(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert store.models_folder() == home / "models"
    assert store.converted_folder() == home / "converted"
    monkeypatch.delenv("GUMBA_HOME")
    assert store.models_folder() != store.converted_folder().parent / "models"
    assert store.models_folder().name == "models" and "gumba" in store.models_folder().parts


@pytest.mark.skipif(os.name != "posix", reason="passwd entries are POSIX")
@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["run", "-p", "x"], "GUMBA_HOME"),
        (["pull", "--list"], "GUMBA_HOME"),
        (["pull", "gpt2"], "HF_HOME"),
        (["inspect", "ada/tiny:Q8_0"], "HF_HOME"),
        (["inspect", "modelscope:ada/tiny:Q8_0"], "set HOME"),
    ],
)
def test_a_user_without_a_home_gets_one_line(tmp_path: Path, arguments: list[str], setting: str) -> None:
    """HOME is not set, and the user id has no passwd entry."""
    code = (
        "import pwd, sys\n"
        "def getpwuid(uid): raise KeyError('getpwuid(): uid not found')\n"
        "pwd.getpwuid = getpwuid\n"
        "from gumba.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    kept = ("PATH", "PYTHONPATH", "GUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "has no home folder" in done.stderr and setting in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "gumba-home"] or not list(tmp_path.iterdir()), "no folder called ~"


def test_other_forms_of_known_names() -> None:
    from gumba.hub.reference import parse
    from gumba.store.known import canonical

    for text in ("qwen2.5:0.5b", "Qwen2.5-0.5B", "qwen2.5-0.5b-instruct", "qwen2.5:0.5b-instruct"):
        assert canonical(text) == "qwen2.5:0.5b"
    for text in ("smollm2:135m", "smollm2-135m-instruct:latest", "SmolLM2-135M-Instruct"):
        assert canonical(text) == "smollm2-135m-instruct"
    assert canonical("nomic-embed-text:latest") == "nomic-embed-text"
    assert canonical("gpt2") is None
    assert store.did_you_mean("qwen2.5:0.6b") == "; did you mean qwen2.5:0.5b?"
    assert store.did_you_mean("qwen3") == "; did you mean qwen3:0.6b or qwen3:1.7b or qwen3-embedding:0.6b?"
    assert store.did_you_mean("Gemma") == "; did you mean gemma3:270m or gemma3:1b?"
    assert store.did_you_mean("llama") == "; did you mean llama3.2:1b or llama3.2:3b?"
    assert store.did_you_mean("llama3") == "", "another model"
    assert store.did_you_mean("nonsense") == store.did_you_mean("") == store.did_you_mean("ada/qwen3") == ""
    names = store.known_names()
    assert len(names) == len({canonical(name) for name in names}) >= 12, "no two stand for one another"
    for source in store.ON_HUB.values():
        assert parse(source) is not None


def test_an_unreachable_known_name() -> None:
    """It gets no suggestion, and is looked up on the hub only."""
    with pytest.raises(DownloadError) as caught:
        store.resolve("qwen2.5:0.5b", announce=print)
    assert str(caught.value) == (
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF: HF_HUB_OFFLINE is set, and the model is not in the cache"
    )
    with pytest.raises(DownloadError, match=r"\(and there is no local file or folder qwen2\)$"):
        store.resolve("qwen2", announce=print)
    with pytest.raises(DownloadError, match=r"qwen3\); did you mean qwen3:0\.6b or "):
        store.resolve("qwen3", announce=print)


def test_all_known_types_are_supported() -> None:
    from gumba.hub.gguf_files import is_supported

    assert [source for source in store.ON_HUB.values() if not is_supported(source.partition(":")[2])] == []
