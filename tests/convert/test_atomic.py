"""A conversion's file is complete or absent, whatever happens to the process."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gumba.errors import ConvertError
from gumba_convert import convert, export
from gumba_convert.atomic import atomic_file, atomic_folder
from support.tiny_checkpoints import write_checkpoint

CHILD = """
import sys, time
from gumba_convert import convert
def slow(stage, done, total):
    print(done, flush=True)
    time.sleep(0.005)
convert(sys.argv[1], sys.argv[2], type="f32", progress=slow)
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "hf"
    write_checkpoint(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("after", [0, 1, 8, 20, 40])
def test_killed(checkpoint: Path, tmp_path: Path, after: int) -> None:
    target = tmp_path / "out.gguf"
    command = [sys.executable, "-c", CHILD, str(checkpoint), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert not target.exists()
    convert(checkpoint, target, type="f32")
    assert names(tmp_path) == ["out.gguf"]  # the next run removes what the killed one left
    convert(checkpoint, tmp_path / "again.gguf", type="f32")
    assert digest(target) == digest(tmp_path / "again.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child")
def test_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(checkpoint), str(tmp_path / "out.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.communicate()
    assert child.returncode != 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_writing_fails(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str) -> None:
    (tmp_path / "out.gguf").write_text("GGUF, an older result")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    if step == "write":
        monkeypatch.setattr("gumba_convert.to_gguf.in_order", fail)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConvertError, match=rf"cannot write .*out\.gguf: {os.strerror(code)}"):
        convert(checkpoint, tmp_path / "out.gguf")
    assert names(tmp_path) == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "GGUF, an older result"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_disk_that_fills_up(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="No space left"), atomic_file(tmp_path / "x") as file:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
        file.write(bytes(1 << 20))
    assert names(tmp_path) == []


def test_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (steps.append("replace"), replace(self, to))[1])
    with atomic_file(tmp_path / "x") as file:
        file.write(b"1")
    assert steps[:2] == ["fsync", "replace"]
    assert sys.platform == "win32" or steps == ["fsync", "replace", "fsync"]


def test_error_in_the_block(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), atomic_file(tmp_path / "x") as file:
            file.write(b"1")
            raise error
        with pytest.raises(error), atomic_folder(tmp_path / "y") as folder:
            (folder / "a").write_text("1")
            raise error
    assert names(tmp_path) == []


def test_temporary_of_a_running_process_is_kept(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "x") as first:
        first.write(b"first")
        with atomic_file(tmp_path / "x") as second:
            second.write(b"second")
        assert (tmp_path / "x").read_bytes() == b"second"
    assert (tmp_path / "x").read_bytes() == b"first"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_only_unlocked_temporaries_are_removed(tmp_path: Path) -> None:
    """The lock decides, not the process id in the name, which another process may have by now, e.g. in a container."""
    import fcntl

    locked, free = tmp_path / f".x.part-{os.getpid()}-00000000", tmp_path / f".x.part-{os.getpid()}-00000001"
    other, folder = tmp_path / f".y.part-{os.getpid()}-00000002", tmp_path / f".z.part-{os.getpid()}-00000003"
    for path in (free, other):
        path.touch()
    (folder / "inner").mkdir(parents=True)
    kept = [".part-1-00000000", ".x.part-1-0", ".x.part-a-00000000", "x.part-1-00000000"]  # names of others
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".l.part-1-00000000").symlink_to(tmp_path / "x")
    os.mkfifo(tmp_path / ".p.part-1-00000000")
    with locked.open("wb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        with atomic_file(tmp_path / "x"):
            assert locked.exists()
            assert not free.exists() and not other.exists() and not folder.exists()
    rest = [".l.part-1-00000000", ".p.part-1-00000000", locked.name, "x"]
    assert names(tmp_path) == sorted([*kept, *rest])


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_without_locks_the_process_id_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none."""
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ours, gone = tmp_path / f".x.part-{os.getpid()}-00000000", tmp_path / f".x.part-{child.pid}-00000000"
    for path in (ours, gone):
        path.touch()
    with atomic_file(tmp_path / "x"), atomic_folder(tmp_path / "y"):
        assert ours.exists() and not gone.exists()


def test_concurrent_writers_and_cleaners(tmp_path: Path) -> None:
    """A writer whose file another run removes between its creation and its lock creates another one."""
    from concurrent.futures import ThreadPoolExecutor

    def write(i: int) -> None:
        with atomic_file(tmp_path / f"{i}") as file:
            file.write(b"%d" % i)
        with atomic_folder(tmp_path / f"f{i}") as folder:
            (folder / "a").write_text(str(i))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(100)))
    assert names(tmp_path) == sorted([*(str(i) for i in range(100)), *(f"f{i}" for i in range(100))])


TARGETS = ["folder", "missing/out.gguf"]


@pytest.mark.parametrize("target", TARGETS)
def test_impossible_target(checkpoint: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConvertError):
        convert(checkpoint, tmp_path / target)
    assert names(tmp_path) == ["folder"]


def test_export_does_not_touch_a_folder_in_use(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a.gguf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(ConvertError, match="exists already"):
        export(tmp_path / "a.gguf", tmp_path / "hf")
    assert names(tmp_path / "hf") == ["mine"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_export_killed(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a.gguf")
    child = CHILD.replace('convert(sys.argv[1], sys.argv[2], type="f32"', "export(sys.argv[1], sys.argv[2]")
    child = child.replace("import convert", "import export")
    command = [sys.executable, "-c", child, str(tmp_path / "a.gguf"), str(tmp_path / "hf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    time.sleep(0.01)
    assert not (tmp_path / "hf").exists()
    export(tmp_path / "a.gguf", tmp_path / "hf")
    assert names(tmp_path) == ["a.gguf", "hf"]
