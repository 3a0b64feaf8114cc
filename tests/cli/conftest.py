"""How the tests run commands: in a process of their own, or in this one where only the behaviour matters."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gumba.cli.main import main
from support import tiny_chat


@dataclass(frozen=True)
class Result:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


#: ``gumba("run", …, stdin="…")``
Command = Callable[..., Result]


def without_notice(err: str) -> str:
    """What a command said on stderr, but for the notice that whoever comes first to a kernel gets."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("gumba: compiling kernels"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny chat model with random weights."""
    return tiny_chat.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def gumba_process(home: Path) -> Command:
    """Run the command in a process of its own."""

    def run(*args: object, stdin: str = "", program: Sequence[str] = ("-m", "gumba"), **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, *program, *map(str, args)],
            input=stdin.encode(),
            capture_output=True,
            env={**os.environ, **env},
            timeout=300,
        )
        return Result(done.returncode, done.stdout.decode(), without_notice(done.stderr.decode()))

    return run


@pytest.fixture
def gumba(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process."""

    def run(*args: object, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = main(list(map(str, args)))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, without_notice(captured.err))

    return run
