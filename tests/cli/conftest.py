"""Fixtures that run commands in a process of their own, or in this one."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gumba.cli.main import main
from gumba.jit.kernel_cache import sources_hash


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


#: ``gumba("run", …, stdin="…")``
Command = Callable[..., Result]


def without_notice(err: str) -> str:
    """The stderr of a command, without the notice of the first compilation of a kernel."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("gumba: compiling kernels"))


@pytest.fixture(scope="session")
def generic_kernels(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels for the generic instruction set that ``gumba compile`` finds the tiny model to need, and no others."""
    folder = tmp_path_factory.mktemp("generic")
    command = [sys.executable, "-m", "gumba", "compile", str(tiny), "--output", str(folder)]
    subprocess.run(command, env={**os.environ, "GUMBA_ISA": "generic"}, check=True, timeout=300)
    return folder / sources_hash()


@pytest.fixture
def nearly_full_cache(generic_kernels: Path, tmp_path: Path) -> Path:
    """A GUMBA_CACHE_DIR with all of ``generic_kernels`` but one."""
    folder = tmp_path / "cache" / "kernels" / generic_kernels.name
    for made in (folder.parent, folder):
        made.mkdir(mode=0o700, parents=True)
    files = sorted(generic_kernels.iterdir())
    (missing,) = (path for path in files if path.name.startswith("kernel.rms_norm-"))
    for path in files:
        if path != missing:
            shutil.copy(path, folder)
    return tmp_path / "cache"


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
