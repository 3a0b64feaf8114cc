"""A Hugging Face checkpoint folder: its JSON files and its tensors, never anything outside the folder."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from gumba.errors import ConvertError
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.checkpoint.safetensors import SafeTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
MAX_JSON = 1 << 28


def _repository(folder: Path) -> Path:
    """The resolved folder with all files of a model: the folder itself, or its repository in a hub's cache.

    A cache has models--OWNER--NAME/snapshots/REVISION/... (Hugging Face) or OWNER--NAME/snapshots/... (ModelScope).
    """
    real = folder.resolve()
    for snapshots in real.parents:
        if snapshots.name == "snapshots" and "--" in snapshots.parent.name:
            return snapshots.parent
    return real


def name_in_cache(folder: Path) -> str | None:
    """The model's name from its repository in a hub's cache; None outside of one, where the folder's name is used."""
    repository = _repository(folder)
    return None if repository == folder.resolve() else repository.name.rpartition("--")[2] or None


class Folder:
    """A folder of a checkpoint, whose files are read by their plain names.

    Args:
        folder: the folder. Its files may be links as long as they stay inside it; in a hub's cache, inside the
            repository (a snapshot there is links to `blobs`).
        root: the resolved folder that links may lead into, if it is a larger one.

    Raises:
        ConvertError: there is no such folder.
    """

    def __init__(self, folder: Path, *, root: Path | None = None) -> None:
        if not folder.is_dir():
            raise ConvertError(f"{folder}: no such folder")
        self.folder = folder
        self.root = root or _repository(folder)

    def path(self, name: object, origin: str = "") -> Path:
        """The file of that name in the folder.

        Raises:
            ConvertError: the name is not a plain file name, or leads out of the folder (message: named by `origin`).
        """
        where = f"{self.folder}{f', {origin}' if origin else ''}"
        if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\\0:]", name):
            raise ConvertError(f"{where}: {name!r} is not a plain file name")
        path = self.folder / name
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise ConvertError(f"{where}: {name!r} cannot be followed: {error}") from None
        if not real.is_relative_to(self.root):
            raise ConvertError(
                f"{where}: {name!r} is a link that leads out of the folder, to {real}; "
                "if that is meant, put a copy of it in the link's place"
            )
        return path

    def below(self, folder: object, origin: str = "") -> Checkpoint | None:
        """A part of the model in a subfolder, which must have a config.json; None if the subfolder does not exist.

        Raises:
            ConvertError: the name is not a plain one, or leads out of the checkpoint.
        """
        path = self.path(folder, origin)
        if not path.is_dir():
            return None
        return Checkpoint(path, root=self.root)

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def bytes(self, name: str) -> bytes | None:
        """Contents of a file of at most MAX_JSON bytes; None if it does not exist."""
        path = self.path(name)
        if not path.exists():
            return None
        if not path.is_file():
            raise ConvertError(f"{path}: not a regular file")
        try:
            if path.stat().st_size > MAX_JSON:
                raise ConvertError(f"{path}: {path.stat().st_size} bytes; at most {MAX_JSON} are read")
            return path.read_bytes()
        except OSError as error:
            raise ConvertError(f"{path}: cannot be read: {error.strerror}") from error

    def text(self, name: str) -> str | None:
        """Contents of a UTF-8 file; None if it does not exist."""
        data = self.bytes(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConvertError(f"{self.folder / name}: not UTF-8 (byte {error.start})") from None

    def json(self, name: str) -> JsonObject | None:
        """Contents of a JSON file with an object; None if it does not exist."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConvertError(f"{self.folder / name}: not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConvertError(f"{self.folder / name}: expected a JSON object")
        return value


class Checkpoint(Folder):
    """A folder with config.json, safetensors and tokenizer files.

    Args:
        outer: the folder with modules.json, if it is another one (see `open_checkpoint`).

    Raises:
        ConvertError: there is no such folder, or no usable config.json in it.
    """

    def __init__(self, folder: Path, *, root: Path | None = None, outer: Folder | None = None) -> None:
        super().__init__(folder, root=root)
        self.outer: Folder = outer or self
        config = self.json("config.json")
        if config is None:
            mistral = (
                " (params.json is Mistral's own format, which is not supported)" if self.has("params.json") else ""
            )
            raise ConvertError(f"{folder}: no config.json; is this a Hugging Face model folder?{mistral}")
        self.config: JsonObject = config
        #: Messages for the user about files that were not read.
        self.warnings: list[str] = []

    @cached_property
    def tensors(self) -> Mapping[str, SafeTensor]:
        """All tensors of the checkpoint by name, from the first of: the file that config.json names (`transformers_weights`),
        model.safetensors, the files that an index names, a complete set of shards (as in transformers).

        Raises:
            ConvertError: no safetensors, a damaged one, or an index that does not agree with its files.
        """
        self._warn_of_adapter()
        named = self.config.get("transformers_weights")
        if named is not None:
            index = isinstance(named, str) and named.endswith(".index.json")
            return self._indexed(named) if index else self._header(named, "config.json")
        if self.has(SINGLE):
            self._warn_of_other_files()
            return self._header(SINGLE, "")
        if self.has(INDEX):
            return self._indexed(INDEX)
        return self._shards()

    def _warn_of_adapter(self) -> None:
        if self.has("adapter_config.json"):
            self.warnings.append(
                "adapter_config.json and its adapter are omitted; transformers would apply them: merge them into the model first"
            )

    def _warn_of_other_files(self) -> None:
        if self.has(INDEX):
            weight_map = (self.json(INDEX) or {}).get("weight_map")
            if not isinstance(weight_map, dict) or any(name != SINGLE for name in weight_map.values()):
                self.warnings.append(f"{SINGLE} is converted; {INDEX} and the files that it names are not read")

    def _shards(self) -> dict[str, SafeTensor]:
        """The tensors of a complete set of shards without an index."""
        names = sorted(path.name for path in self.folder.iterdir())
        shards = {match[0]: int(match[2]) for name in names if (match := SHARD.fullmatch(name))}
        if not shards:
            raise self._no_weights(names)
        counts = sorted(set(shards.values()))
        expected = [f"model-{i:05}-of-{counts[0]:05}.safetensors" for i in range(1, counts[0] + 1)]
        if len(counts) > 1 or list(shards) != expected:
            raise ConvertError(
                f"{self.folder}: no {INDEX}, and {', '.join(list(shards)[:4])}{' ...' * (len(shards) > 4)} "
                f"are not all shards of one model: expected {counts[0]} named {expected[0]} to {expected[-1]}"
            )
        return self._union({name: self._header(name, "") for name in expected})

    def _no_weights(self, names: list[str]) -> ConvertError:
        for name in (SINGLE, INDEX):
            if name in names:
                what = (
                    "not a regular file" if self.path(name).exists() else "a link to nothing: is the download complete?"
                )
                return ConvertError(f"{self.folder / name}: {what}")
        if "adapter_config.json" in names:
            return ConvertError(
                f"{self.folder}: an adapter (adapter_config.json), not a model: merge it into its base model "
                "(merge_and_unload() of peft), and save_pretrained() that"
            )
        if any(name.startswith("consolidated") and name.endswith(".safetensors") for name in names):
            return ConvertError(
                f"{self.folder}: consolidated.safetensors has Mistral's own names of tensors, which are not read; "
                f"take the checkpoint with {SINGLE}, or {INDEX} and its shards, which transformers loads"
            )
        if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
            return ConvertError(
                f"{self.folder}: PyTorch weights (pickles, which can run code) are not read; load the model with "
                "transformers and save_pretrained() it, which writes safetensors"
            )
        others = [name for name in names if name.endswith((".safetensors", ".index.json", ".gguf"))]
        but = f" (but {', '.join(others[:4])})" if others else ""
        return ConvertError(f"{self.folder}: no {SINGLE} and no {INDEX}{but}")

    def _header(self, name: object, origin: str) -> dict[str, SafeTensor]:
        path = self.path(name, origin)
        if not path.is_file():
            raise ConvertError(f"{path}: no such file, though {origin} names it")
        return read_header(path)

    def _indexed(self, index: str) -> dict[str, SafeTensor]:
        """All tensors of the files that an index names: transformers reads complete files, not the listed tensors."""
        weight_map = (self.json(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ConvertError(f"{self.folder / index}: no weight_map")
        files: dict[str, dict[str, SafeTensor]] = {}
        for tensor, name in weight_map.items():
            key = str(name)
            if key not in files:
                files[key] = self._header(name, index)
            if tensor not in files[key]:
                raise ConvertError(f"{self.folder / index}: tensor {tensor!r} is not in {name}")
        return self._union(dict(sorted(files.items())))

    def _union(self, files: dict[str, dict[str, SafeTensor]]) -> dict[str, SafeTensor]:
        """The tensors of several files; the last of those with the same name, as in transformers."""
        tensors: dict[str, SafeTensor] = {}
        twice: list[str] = []
        for file in files.values():
            twice += [name for name in file if name in tensors]
            tensors |= file
        if twice:
            self.warnings.append(
                f"tensor {twice[0]!r}{f' (and {len(twice) - 1} more)' if len(twice) > 1 else ''} is in several files; "
                f"that of {tensors[twice[0]].path.name} is converted"
            )
        return tensors


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in a folder, or, in old layouts of sentence-transformers, in the first folder of modules.json.

    Raises:
        ConvertError: there is no checkpoint, or that folder is not there.
    """
    outer = Folder(folder)
    text = outer.text("modules.json")
    with contextlib.suppress(ValueError, RecursionError):  # errors are reported when the whole file is read
        listed = json.loads(text or "[]")
        first = listed[0] if isinstance(listed, list) and listed else None
        name = first.get("path") if isinstance(first, dict) else None
        if isinstance(first, dict) and str(first.get("type", "")).endswith(".Transformer") and name:
            inner = outer.path(name, "modules.json")
            if not inner.is_dir():
                raise ConvertError(f"{folder}: no folder {name!r}, though modules.json names it")
            return Checkpoint(inner, root=outer.root, outer=outer)
    return Checkpoint(folder)
