"""Kernels that a frozen application brings along: used when they fit, and never instead of those that do."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gumba.errors import ResourceError
from gumba.jit import bundled, kernel_cache
from support.kernel_setups import counts


def forget() -> None:
    kernel_cache.cache_folder.cache_clear()
    bundled.shipped_folders.cache_clear()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an application that this process is now; it ships the kernel of ``counts``, and there is no cache."""
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    kernel_cache.kept.clear()
    assert counts() == (1, 0)
    app = tmp_path / "app"
    bundled.ship(kernel_cache.kept, app / "gumba-kernels" / kernel_cache.sources_hash())
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(app / "program"))
    monkeypatch.setenv("GUMBA_CACHE_DIR", "")
    forget()
    yield app
    forget()


def kernel_of(app: Path) -> Path:
    [file] = [path for path in app.rglob("*") if path.is_file()]
    return file


def test_beside_the_program(app: Path) -> None:
    assert counts() == (0, 1)


def test_among_the_data_files(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "program"))
    assert counts() == (1, 0)
    forget()
    monkeypatch.setattr(sys, "_MEIPASS", str(app), raising=False)
    assert counts() == (0, 1)


def test_they_come_before_the_cache(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(tmp_path / "unused"))
    assert counts() == (0, 1) and not (tmp_path / "unused").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_they_may_belong_to_the_user_who_installed_the_program(app: Path) -> None:
    kernel = kernel_of(app)
    os.chown(kernel, 12345, 12345)
    kernel.chmod(0o444)
    assert counts() == (0, 1)


def test_everyone_may_read_them(app: Path) -> None:
    if os.name == "posix":
        assert kernel_of(app).stat().st_mode & 0o777 == 0o644


def test_no_other_program_has_them(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", False)
    forget()
    assert counts() == (1, 0)


def test_those_of_other_sources_do_not_count(app: Path) -> None:
    kernel_of(app).parent.rename(app / "gumba-kernels" / ("0" * 20))
    assert counts() == (1, 0)


def test_damage_is_noticed(app: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = kernel_of(app)
    data = bytearray(kernel.read_bytes())
    data[-100] ^= 1
    kernel.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="gumba"):
        assert counts() == (1, 0)
    assert "is damaged" in caplog.text
    assert kernel.read_bytes() == data


def test_without_sources_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a freezer packed the sources away: old kernels could not be told from new ones."""
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "__file__", str(tmp_path / "gumba" / "jit" / "kernel_cache.py"))
    kernel_cache.sources_hash.cache_clear()
    forget()
    try:
        with caplog.at_level(logging.WARNING, logger="gumba"):
            assert counts() == (1, 0)
        assert "there are no sources in" in caplog.text
        assert not (tmp_path / "cache").exists()
    finally:
        kernel_cache.sources_hash.cache_clear()
        forget()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write kernels into"):
        bundled.ship([], tmp_path / "file" / "x")


def test_a_full_disk_and_a_killed_run_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, target = tmp_path / "kernel", tmp_path / "x"
    kernel.write_bytes(b"code")
    target.mkdir()
    (target / ".kernel.part-1-0123abcd").write_bytes(b"half")  # as a killed run leaves it: no process holds its lock

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"cannot write kernels into .*No space left"):
            bundled.ship([kernel], target)
    assert list(target.iterdir()) == []
    bundled.ship([kernel], target)
    assert [path.name for path in target.iterdir()] == ["kernel"]
    assert (target / "kernel").stat().st_mode & 0o777 == (0o644 if os.name == "posix" else 0o666)
