"""Conversions of checkpoints that are run directly, cached until the checkpoint, the type or gumba's version changes."""

from __future__ import annotations

import glob
import hashlib
import tempfile
from pathlib import Path

from gumba._version import __version__
from gumba.errors import RequestError
from gumba.hub.reference import Reference
from gumba.store.folders import converted_folder, unusable
from gumba.store.wheel import Progress


def conversion_of_folder(folder: Path, progress: Progress | None) -> Path:
    """The GGUF file of the Hugging Face folder ``folder``, converted unless an up-to-date conversion is cached."""
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder}: a folder without config.json; expected a GGUF file or a Hugging Face folder")
    return _convert(str(folder.resolve()), folder.resolve().name, None, folder, progress, None)


def converted_type(reference: Reference) -> str | None:
    """The file type that a hub's checkpoint is converted to: the reference's; None: the best for this model.

    Raises ConvertError for one that conversion does not know.
    """
    from gumba_convert.quantize.recipe import canonical

    return None if reference.type is None else canonical(reference.type)


def conversion_of_checkpoint(reference: Reference, folder: Path, progress: Progress | None, type: str | None) -> Path:
    """The GGUF file of a hub's checkpoint in the local folder ``folder``, converted unless the conversion is cached."""
    identity = f"{reference}@{reference.revision}" if reference.revision else str(reference)
    if type is not None:  # beside the conversion to the default type
        identity += f":{type}"
    title = str(reference).replace("/", "--").replace(":", "--")
    return _convert(identity, title, reference.repository.rpartition("/")[2], folder, progress, type)


def _convert(
    identity: str, title: str, name: str | None, folder: Path, progress: Progress | None, type: str | None
) -> Path:
    """Convert ``folder`` into the cache; the file name contains hashes of ``identity`` and of the folder's state.

    ``name`` becomes ``general.name``; None: the checkpoint determines it.
    """
    from gumba_convert import convert

    stem = f"{title}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    target = converted_folder() / f"{stem}-{_state(folder, type)}.gguf"
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise unusable(target.parent, "converted checkpoints", error) from error
        convert(folder, target, type=type, name=name, progress=progress)
        for old in target.parent.glob(f"{glob.escape(stem)}-*.gguf"):
            if old != target:
                old.unlink(missing_ok=True)
    return target


def _state(folder: Path, type: str | None) -> str:
    """A hash that changes when a file of the checkpoint, the type or gumba's version changes.

    It includes the subfolders of sentence-transformers' modules, such as ``1_Pooling``, and no others.
    """
    digest = hashlib.sha256(f"{__version__} {type}".encode())
    for file in [*sorted(folder.iterdir()), *sorted(folder.glob("[0-9]_*/*"))]:
        if file.is_file():
            info = file.stat()
            name = file.relative_to(folder).as_posix()
            digest.update(f"{name} {info.st_size} {info.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]
