"""gumba.files: permissions, leftovers of killed runs, and flushing (tests/convert/test_atomic.py has the other guarantees)."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gumba.files import atomic_file, sync_folder, write_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions, nor opens folders")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
@pytest.mark.parametrize(("mode", "expected"), [(None, 0o666), (0o600, 0o600), (0o644, 0o644)])
def test_permissions(mode: int | None, expected: int, tmp_path: Path) -> None:
    """Without a mode the umask applies; a private file is private from the start."""
    umask = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a", mode=mode):
            [temporary] = tmp_path.iterdir()
            assert mode != 0o600 or stat.S_IMODE(temporary.stat().st_mode) == 0o600
    finally:
        os.umask(umask)
    permissions = stat.S_IMODE((tmp_path / "a").stat().st_mode)
    assert permissions == (expected & ~0o027 if mode is None else expected)


@posix
def test_a_private_file_where_permissions_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_file(tmp_path / "a", b"1", mode=0o600)
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize("prefix", [None, ".new-"])
def test_leftovers_of_a_killed_run(prefix: str | None, tmp_path: Path) -> None:
    """They are removed, unless the caller has a prefix, and removes them itself."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    leftover = f".b.part-{child.pid}-00000000"
    (tmp_path / leftover).touch()
    write_file(tmp_path / "a", b"1", prefix=prefix)
    assert names(tmp_path) == (["a"] if prefix is None else [leftover, "a"])


def test_a_cache_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("flushed"))
    write_file(tmp_path / "a", b"1", durable=False)
    assert names(tmp_path) == ["a"]


@posix
@pytest.mark.parametrize(("code", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_file_systems_that_cannot_flush_folders(
    code: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(OSError, match=os.strerror(code)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)
