"""Downloads from a hub: a loopback server with the routes that huggingface_hub uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.local_sites import Hub, serving
from support.tiny_checkpoints import write_checkpoint

CHILD = """
import sys
from gumba.errors import GumbaError
from gumba_convert import convert
try:
    convert(sys.argv[1], sys.argv[2], name=None)
except GumbaError as error:
    print(type(error).__name__, error, sep=": ")
    sys.exit(2)
"""
FETCH_FILE = """
import sys
from gumba.errors import GumbaError
from gumba.hub.fetch import fetch_file
try:
    print(fetch_file(sys.argv[1], *sys.argv[3:]).read_text())
except GumbaError as error:
    print(type(error).__name__, error, sep=": ")
    sys.exit(2)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "server"
    write_checkpoint(folder)
    (folder / "training.log").write_text("not needed")
    (folder / "pytorch_model.bin").write_text("not needed")
    with serving(Hub(folder)) as server:
        yield server


def run(
    tmp_path: Path, url: str, source: str, *more: str, code: str = CHILD, **environment: str
) -> subprocess.CompletedProcess[str]:
    import os

    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env = {key: value for key, value in env.items() if not key.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", code, source, str(tmp_path / "out.gguf"), *more]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_downloaded_converted_and_cached(hub: Hub, tmp_path: Path) -> None:
    first = run(tmp_path, hub.url, "ada/tiny")
    assert first.returncode == 0, first.stdout + first.stderr
    made = (tmp_path / "out.gguf").read_bytes()
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}  # nothing is sent
    (tmp_path / "out.gguf").unlink()
    hub.shutdown()
    hub.server_close()  # the hub is gone: the cache must suffice
    second = run(tmp_path, hub.url, "ada/tiny")
    assert second.returncode == 0, second.stdout + second.stderr
    assert (tmp_path / "out.gguf").read_bytes() == made


def test_weights_of_another_name_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    """config.json may name an index, which names files."""
    import json

    (hub.folder / "model.safetensors").rename(hub.folder / "weights[1].safetensors")
    config = json.loads((hub.folder / "config.json").read_text())
    (hub.folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.index.json"}))
    from gumba_convert.checkpoint.safetensors import read_header

    names = read_header(hub.folder / "weights[1].safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "weights[1].safetensors")}
    (hub.folder / "other.index.json").write_text(json.dumps(index))
    (hub.folder / "weights1.safetensors").write_bytes(b"not needed")
    done = run(tmp_path, hub.url, "ada/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("GET", "/ada/tiny/resolve/main/weights1.safetensors") not in hub.requests


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.startswith("DownloadError: ") and done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def test_unknown_model(hub: Hub, tmp_path: Path) -> None:
    assert "ada/other: no such model" in one_line(run(tmp_path, hub.url, "ada/other"))
    assert not (tmp_path / "out.gguf").exists()


def test_hub_in_trouble(hub: Hub, tmp_path: Path) -> None:
    hub.status = 500
    message = one_line(run(tmp_path, hub.url, "ada/tiny"))
    assert "ada/tiny" in message


def test_unreachable(tmp_path: Path) -> None:
    message = one_line(run(tmp_path, "http://127.0.0.1:9", "ada/tiny"))
    assert "cannot be reached" in message
    assert message.rstrip().endswith("(and there is no local file or folder ada/tiny)"), (
        "a mistyped path looks like an id"
    )


def test_offline(tmp_path: Path) -> None:
    assert "not in the cache" in one_line(run(tmp_path, "http://127.0.0.1:9", "ada/tiny", HF_HUB_OFFLINE="1"))


def test_one_file_by_name_or_pattern(hub: Hub, tmp_path: Path) -> None:
    def fetched(pattern: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, hub.url, "ada/tiny", pattern, code=FETCH_FILE)

    for pattern in ("training.log", "*.log"):
        done = fetched(pattern)
        assert done.returncode == 0 and done.stdout == "not needed\n", done.stdout + done.stderr
    for pattern, reason in (
        ("*.gguf", "no files match"),
        ("*tokenizer*", "2 files match"),
        ("none.gguf", "no files match"),
    ):
        done = fetched(pattern)
        assert done.returncode == 2 and reason in done.stdout, done.stdout + done.stderr
    assert {path for method, path in hub.requests if method == "GET" and "/resolve/" in path} == {
        "/ada/tiny/resolve/main/training.log"
    }
    hub.shutdown()
    hub.server_close()  # the hub is gone: a file that was named is in the cache
    done = fetched("training.log")
    assert done.returncode == 0 and done.stdout == "not needed\n", done.stdout + done.stderr


def test_every_file_that_a_conversion_may_read_is_downloaded() -> None:
    """Names of files in the converter's source are all among those that are downloaded."""
    import fnmatch
    import re

    import gumba_convert
    from gumba.hub.fetch import NEEDED

    named = re.compile(r'"([\w.-]+(?:/[\w.-]+)?\.(?:json|model|txt|tiktoken|jinja|py|safetensors))"')
    found = set()
    for path in Path(gumba_convert.__path__[0]).rglob("*.py"):
        found |= set(named.findall(path.read_text(encoding="utf-8")))
    found -= {
        "tokenizer.ggml.model",
        ".index.json",
        "params.json",
    }  # a key of metadata, an ending, a file that is not read
    assert {"config.json", "qwen.tiktoken", "vocab.txt"} <= found
    assert [name for name in sorted(found) if not any(fnmatch.fnmatch(name, each) for each in NEEDED)] == []
