"""The cache of compiled kernels: found again, made anew when sources change or files are damaged, never trusted unsafely.

Tests in this process make their kernel afresh each time (``counts``), so that it asks the cache again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gumba
from gumba.files import unfinished_file
from gumba.jit import jit
from gumba.jit import kernel_cache as kernel_cache
from gumba.jit.kernel_cache import cache_folder, prune_cache, read_own, sources_hash
from gumba.jit.object_file import MAGIC, load_kernel
from support.kernel_setups import counts

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners here")
root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the kernel of ``counts``."""
    path = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUMBA_CACHE_DIR", str(path))
        cache_folder.cache_clear()
        assert counts() == (1, 0)
    return path


@pytest.fixture
def warm(filled: Path, cache: Path) -> Path:
    """The test's cache, with the kernel of ``counts`` in it."""
    shutil.copytree(filled, cache)
    return cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """GUMBA_CACHE_DIR of the test's own; nothing is remembered before or after."""
    path = tmp_path / "cache"
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(path))
    monkeypatch.setattr(kernel_cache, "_warned", set())
    monkeypatch.setattr(kernel_cache, "lost", {})
    cache_folder.cache_clear()
    yield path
    cache_folder.cache_clear()


def use(caplog: pytest.LogCaptureFixture, setting: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another GUMBA_CACHE_DIR from here on."""
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(setting))
    cache_folder.cache_clear()
    caplog.clear()


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_compiled_once_then_loaded(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert counts() == (1, 0)
    assert len(files(cache)) == 1
    assert counts() == (0, 1)
    assert not warnings(caplog)
    assert not [path for path in files(cache) if path.name.startswith(".new-")]


@posix
def test_the_folder_is_private(cache: Path) -> None:
    assert counts() == (1, 0)
    for folder in (cache / "kernels", cache / "kernels" / sources_hash()):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in files(cache))


@posix
def test_a_user_whose_files_are_group_writable_has_a_cache(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """umask 002, the default of Debian and Fedora: folders made on the way must not count against it."""
    before = os.umask(0o002)
    try:
        assert counts() == (1, 0) and counts() == (0, 1)
    finally:
        os.umask(before)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        lambda data: bytes(32) + data[32:],
        lambda data: b"\x80\x04garbage." * 99,
    ],
    ids=["empty", "short", "half", "zeros", "one bit", "hash", "garbage"],
)
def test_damaged_files_are_made_anew(damage, warm: Path, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    for path in files(warm):
        path.write_bytes(damage(path.read_bytes()))
    assert counts() == (1, 0)
    assert len(warnings(caplog)) == 1 and all("made anew" in text for text in warnings(caplog))
    caplog.clear()
    assert counts() == (0, 1)
    assert not warnings(caplog) and len(files(warm)) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "link to itself", "folder"])
def test_what_is_no_plain_file_is_not_waited_for(kind: str, warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening a FIFO that no process writes to would wait for ever. All but the folder are replaced."""
    [path] = files(warm)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        fifo = path if kind == "fifo" else warm / "fifo"
        os.mkfifo(fifo)
        if fifo != path:
            path.symlink_to(fifo)
    assert counts() == (1, 0)
    assert str(path) in warnings(caplog)[0]
    assert counts() == ((1, 0) if kind == "folder" else (0, 1))


def test_what_a_killed_process_left_goes_with_the_next_one(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first kernel; not what another process is writing."""
    [path] = files(warm)
    path.unlink()
    left = path.with_name(".new-4194304-0123abcd")
    left.write_bytes(b"half of a kernel")
    with unfinished_file(path.parent, ".new-") as (busy, descriptor):
        os.close(descriptor)
        monkeypatch.setattr(jit.stats, "compiled", 0)
        assert counts() == (1, 0)
        assert files(warm) == sorted([path, busy])


def test_a_damaged_cache_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gumba")
    for name in "abc":
        (tmp_path / name).write_bytes(b"damaged, all of them, long enough for a hash")
        assert load_kernel(tmp_path / name, name) is None
    assert len(warnings(caplog)) == 1 and len(caplog.records) == 3


FACTS = {"name": "kernel.scale", "symbol": "f", "needs": []}
PAYLOADS = [
    pickle.dumps(("something", "else")),
    MAGIC,
    MAGIC + b"[]\ncode",
    MAGIC + json.dumps(FACTS).encode() + b"\nno object file",
    MAGIC + json.dumps(FACTS | {"name": "kernel.other"}).encode() + b"\n",
    MAGIC + json.dumps(FACTS | {"needs": ["gumba_no_such_function"]}).encode() + b"\n",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_payload_that_is_no_kernel_is_made_anew(payload: bytes, warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The hash is right, what it covers is not."""
    for path in files(warm):
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
    assert counts() == (1, 0)
    assert len(warnings(caplog)) == 1
    assert counts() == (0, 1)


def nowhere(kind: str, tmp_path: Path) -> Path:
    """A setting that can hold no cache, also for root."""
    file = tmp_path / "file"
    file.write_text("not a folder")
    if kind == "proc" and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    return {"file": file, "below a file": file / "deeper" / "still", "proc": Path("/proc/gumba")}[kind]


@pytest.mark.parametrize("kind", ["file", "below a file", "proc"])
def test_nowhere_to_write(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(caplog, nowhere(kind, tmp_path), monkeypatch)
    assert counts() == (1, 0) and counts() == (1, 0)
    assert len(warnings(caplog)) == 1 and "compiled in memory" in warnings(caplog)[0]


def test_a_folder_that_fills_up(cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails after the folder was found good: one warning, results, nothing left behind; it is known what is lost."""
    cache_folder()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert counts() == (1, 0) and counts() == (1, 0)
    assert list(kernel_cache.lost.values()) == ["No space left on device"]
    assert len(warnings(caplog)) == 1 and all("No space left" in text for text in warnings(caplog))
    assert not files(cache)


def test_an_empty_setting_is_no_cache(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    use(caplog, "", monkeypatch)
    assert cache_folder() is None
    assert counts() == (1, 0) and counts() == (1, 0)
    assert not warnings(caplog) and not files(tmp_path)


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GUMBA_CACHE_DIR")
    monkeypatch.setattr(kernel_cache.platformdirs, "user_cache_dir", lambda *args, **kwargs: str(tmp_path / "usual"))
    cache_folder.cache_clear()
    assert cache_folder() == tmp_path / "usual" / "kernels" / sources_hash()


# Folders that others could write to ------------------------------------------------------------------------------------


def refused(where: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No cache, and one warning. What a kernel does then: see ``test_nowhere_to_write``."""
    caplog.clear()
    cache_folder.cache_clear()
    assert cache_folder() is None and cache_folder() is None
    assert len(warnings(caplog)) == 1 and f"{where} is not private" in warnings(caplog)[0]


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_folders_that_others_can_write_are_refused(mode: int, warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = warm / "kernels" / sources_hash()
    for folder in (own, own.parent):
        folder.chmod(mode)
        refused(folder, caplog)
        folder.chmod(0o700)
    cache_folder.cache_clear()
    assert counts() == (0, 1)


@posix
def test_a_cache_root_that_others_can_write_is_refused(warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A user who can rename ``kernels`` can put another folder in its place; in /tmp (sticky) only its owner can."""
    warm.chmod(0o777)
    refused(warm, caplog)
    warm.chmod(0o1777)
    cache_folder.cache_clear()
    assert counts() == (0, 1)


@root
def test_folders_of_someone_else_are_refused(warm: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = warm / "kernels" / sources_hash()
    for folder in (own, own.parent, warm):
        os.chown(folder, 65534, 65534)
        refused(folder, caplog)
        os.chown(folder, 0, 0)


@posix
def test_symbolic_links(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link in the place of our own folders is refused; a link to the whole cache is followed, and checked there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    cache.mkdir(mode=0o700)
    (cache / "kernels").symlink_to(elsewhere, target_is_directory=True)
    refused(cache / "kernels", caplog)
    link = tmp_path / "link"
    link.symlink_to(elsewhere, target_is_directory=True)
    use(caplog, link, monkeypatch)
    assert counts() == (1, 0) and counts() == (0, 1) and not warnings(caplog)
    elsewhere.chmod(0o777)
    refused(elsewhere, caplog)


# Old folders -----------------------------------------------------------------------------------------------------------


def old_folders(warm: Path, n: int) -> list[Path]:
    """Cache folders of other versions, the oldest first."""
    made = []
    for i in range(n):
        old = warm / "kernels" / f"{i:020x}"
        old.mkdir()
        (old / f"kernels.x-{i:016x}").write_bytes(b"x")
        (old / ".new-x").write_bytes(b"x")
        os.utime(old, (1000 + i, 1000 + i))
        made.append(old)
    return made


def test_prune_keeps_the_newest(warm: Path) -> None:
    made = old_folders(warm, 5)
    (warm / "kernels" / "a file").write_bytes(b"")
    prune_cache(keep=3)
    left = sorted(path.name for path in (warm / "kernels").iterdir())
    assert left == sorted([made[3].name, made[4].name, "a file", sources_hash()])
    assert counts() == (0, 1)


def test_prune_touches_nothing_of_others(warm: Path, tmp_path: Path) -> None:
    """A folder of this name may well be the user's own."""
    made = old_folders(warm, 3)
    kept = [warm / "kernels" / name / "matmul.cu" for name in ("matmul", "norm", "conv", "x" * 20)]
    for path in kept:
        path.parent.mkdir()
    kept += [made[0] / "notes.txt", made[1] / "kernels.x-0123", made[2] / f"sub-{0:016x}" / "file"]
    kept[-1].parent.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    kept.append(outside / f"kernels.x-{0:016x}")
    (warm / "kernels" / f"{9:020x}").symlink_to(outside, target_is_directory=True)
    for path in kept:
        path.write_text("mine")
    prune_cache(keep=1)
    assert all(path.read_text() == "mine" for path in kept)
    assert not (made[0] / f"kernels.x-{0:016x}").exists() and not (made[0] / ".new-x").exists()


def test_a_folder_in_use_counts_as_new(warm: Path) -> None:
    own = warm / "kernels" / sources_hash()
    os.utime(own, (1000, 1000))
    cache_folder.cache_clear()
    assert counts() == (0, 1) and own.stat().st_mtime > 2000


def test_a_folder_whose_time_cannot_be_set_is_used(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", no)
    assert counts() == (0, 1)


def test_a_cache_that_can_only_be_read_is_read(
    warm: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of an image, made ahead of time; what it lacks is compiled in memory."""

    def no(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(kernel_cache.tempfile, "TemporaryFile", no)
    monkeypatch.setattr(kernel_cache, "write_file", no)
    monkeypatch.setattr(Path, "mkdir", no)
    assert counts() == (0, 1) and not warnings(caplog)
    for path in (warm / "kernels" / sources_hash()).iterdir():
        path.unlink()
    assert counts() == (1, 0) and counts() == (1, 0)
    assert len(warnings(caplog)) == 1 and "cannot be written" in warnings(caplog)[0]


def test_code_of_sources_that_have_changed_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that imported before an edit and compiles after it: no other process may get that code."""
    monkeypatch.setattr(kernel_cache, "_imported", kernel_cache._imported[:-1])
    assert counts() == (1, 0) and counts() == (1, 0)
    monkeypatch.undo()
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(cache))
    cache_folder.cache_clear()
    assert counts() == (1, 0) and counts() == (0, 1)


# Several processes -----------------------------------------------------------------------------------------------------

#: gated calls ``exp`` of another file (simd/maths.py), scale nothing of the kind.
CHILD = """
import json
import numpy as np
from support import kernel_harness as harness, kernel_setups as setups
from gumba.jit import jit
gate = np.linspace(-4, 4, 64, dtype=np.float32)[None, :]
gated, scale = setups.setup_gated(harness.GENERIC, "silu", gate), setups.setup_scale(harness.GENERIC)
gated.run(), scale.run()
right = bool(np.abs(gated.run() - gated.expected).max() < 1e-5 and (scale.run() == scale.expected).all())
print(json.dumps({"right": right, "gated": gated.run()[0].tolist(), "compiled": jit.stats.compiled,
                  "loaded": jit.stats.loaded, "package": jit.__file__}))
"""


def start(cache: Path, package: Path) -> subprocess.Popen[str]:
    """A child that runs two kernels of the gumba in ``package``."""
    path = os.pathsep.join([str(package), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "GUMBA_CACHE_DIR": str(cache), "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> dict:  # type: ignore[type-arg]
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    return json.loads(out)  # type: ignore[no-any-return]


def test_two_processes_at_once_an_edit_elsewhere(cache: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    source = Path(gumba.__file__).parent
    shutil.copytree(source, package / "gumba", ignore=shutil.ignore_patterns("__pycache__"))

    both = [start(cache, package) for _ in range(2)]
    first = [result(process) for process in both]
    for one in first:
        assert one["right"] and one["compiled"] + one["loaded"] == 2
        assert Path(one["package"]).is_relative_to(package)
    assert len(files(cache)) == 2 and all(not path.name.startswith(".") for path in files(cache))

    again = result(start(cache, package))
    assert again["right"] and (again["compiled"], again["loaded"]) == (0, 2)
    assert again["gated"] == first[0]["gated"]

    maths = package / "gumba" / "simd" / "maths.py"
    text = maths.read_text(encoding="utf-8")
    edited = text.replace("result, x)  # NaN", "result * 2.0, x)  # NaN")
    assert edited != text
    maths.write_text(edited, encoding="utf-8")
    after = result(start(cache, package))
    assert (after["compiled"], after["loaded"]) == (2, 0) and not after["right"]
    gate = np.linspace(-4, 4, 64)
    factor = (1 + np.exp(-gate)) / (1 + 2 * np.exp(-gate))
    np.testing.assert_allclose(after["gated"], first[0]["gated"] * factor, rtol=1e-5)


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of directory the same path must not lead to another user's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUMBA_CACHE_DIR", "here")
    cache_folder.cache_clear()
    try:
        folder = cache_folder()
        assert folder is not None and folder.is_absolute() and folder.is_relative_to(tmp_path.resolve() / "here")
    finally:
        cache_folder.cache_clear()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
def test_files_that_others_can_write_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"code")
    file.chmod(0o600)
    assert read_own(file) == b"code"
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(OSError):
        read_own(link)
    file.chmod(0o622)
    with pytest.raises(PermissionError):
        read_own(file)
