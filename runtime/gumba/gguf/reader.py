"""Opening GGUF models: one file, or all shards of a model as `llama-gguf-split` writes them.

Every shard is a complete GGUF file. Its metadata say which one it is: ``split.no`` from 0, ``split.count``, and
``split.tensors.count`` of all shards together. The model's own metadata are in the first shard.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TypeVar, overload

from gumba.errors import GGUFError, ModelError
from gumba.gguf.array import GGUFArray
from gumba.gguf.mapped import identity, printable
from gumba.gguf.parser import MAX_ENTRIES, GGUFTensor, Shard

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_KIND_NAMES = {int: "an integer", float: "a float", bool: "a bool", str: "a string", GGUFArray: "an array"}

#: Samples of a file's contents in its fingerprint, and their size.
SAMPLES, SAMPLE_BYTES = 64, 1 << 15

T = TypeVar("T", int, float, bool, str, GGUFArray)
D = TypeVar("D")


class GGUFFile:
    """A GGUF model file, or all shards of one, open for reading.

    Arguments: ``path`` of the file, or of the first shard, ``NAME-00001-of-0000N.gguf``, with the others beside it.

    Attributes: ``path``; ``version`` (2 or 3); ``byte_order`` ("little"); ``alignment`` of tensor data in bytes;
    ``metadata`` of the first shard; ``tensors`` of all shards, by name in file order; ``shards``, the paths;
    ``file_size`` of all shards in bytes.

    Raises GGUFError when the file cannot be read or anything in it is malformed. Use as a context manager, or call
    `close`. Views of tensor data stay valid after that.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        first = Shard(path)
        shards = [first]
        try:
            n_shards = _shard_count(first, 0)
            if n_shards > 1:
                for shard_path in _shard_paths(first, n_shards)[1:]:
                    shards.append(Shard(shard_path))
                    _check_shard(shards, n_shards)
            self.tensors: Mapping[str, GGUFTensor] = MappingProxyType(_merge(shards))
        except BaseException:
            for shard in shards:
                shard.file.close()
            raise
        self.path = first.file.path
        self.version = first.version
        self.byte_order = "little"
        self.alignment = first.alignment
        self.metadata = first.metadata
        self.shards = tuple(shard.file.path for shard in shards)
        self.file_size = sum(shard.file.size for shard in shards)
        self._files = [shard.file for shard in shards]

    @property
    def identity(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Identifies the model's files and their versions: real path, inode, size and times of each."""
        return tuple((os.path.realpath(file.path), (*file.identity, file.touched)) for file in self._files)

    def changed(self, path: Path, status: os.stat_result) -> bool:
        """Whether the file at ``path``, with ``status``, differs from the one that was opened."""
        return any(file.path == path and file.identity != identity(status) for file in self._files)

    def fingerprint(self) -> str:
        """Hexadecimal digest that identifies the model's contents, wherever the file lies.

        Hashes the size and SAMPLES samples of each shard, read now. Raises GGUFError when a file cannot be read.
        """
        digest = hashlib.sha256()
        for path, mapped in zip(self.shards, self._files):
            digest.update(mapped.size.to_bytes(8, "little"))
            try:
                with path.open("rb") as file:
                    for i in range(SAMPLES):
                        file.seek(max(0, mapped.size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                        digest.update(file.read(SAMPLE_BYTES))
            except OSError as error:
                raise GGUFError(f"cannot be read: {error.strerror or error}", path=path) from None
        return digest.hexdigest()

    @overload
    def get(self, key: str, kind: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get(self, key: str, kind: type, default: object = None) -> object:
        """The value of ``key``, or ``default`` without such a key; ModelError when it is not of ``kind``.

        ``kind`` is int (any of GGUF's integers), float, bool, str or GGUFArray.
        """
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        if type(value) is not kind:
            actual = self.metadata.value_type(key).name.lower()
            where = f"{self.path}, metadata {key}, byte {self.metadata.offset(key)}"
            raise ModelError(f"{where}: expected {_KIND_NAMES[kind]}, found {actual}")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """The value of ``key``. Raises ModelError when it is absent or not of ``kind`` (see `get`)."""
        value = self.get(key, kind)
        if value is None:
            raise ModelError(f"{self.path}: metadata {key} is missing, {_KIND_NAMES[kind]}")
        return value

    def close(self) -> None:
        """Unmap the file: arrays and tensors can no longer be read through it. Closing twice is harmless."""
        for file in self._files:
            file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {len(self.metadata)} metadata keys, {len(self.tensors)} tensors)"


def _split_value(shard: Shard, key: str) -> int | None:
    """A ``split.`` key's value, None without it; GGUFError when it is no integer from 0."""
    value = shard.metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        _fail_split(shard, key, f"is {shard.metadata.value_type(key).name}, expected an integer")
    if value < 0:
        _fail_split(shard, key, f"is {value}, expected 0 or more")
    return value


def _fail_split(shard: Shard, key: str, message: str) -> NoReturn:
    offset = shard.metadata.offset(key) if key in shard.metadata else None
    raise GGUFError(message, path=shard.file.path, field=f"metadata {key}", offset=offset)


def _shard_count(shard: Shard, number: int) -> int:
    """The number of shards that ``shard`` names, 0 for a whole model; GGUFError when it is not shard ``number``."""
    count = _split_value(shard, "split.count")
    if not count:  # merging shards into one file leaves split.count 0 and the other two keys behind
        return 0
    index = _split_value(shard, "split.no")
    if index is None:
        _fail_split(shard, "split.no", "is missing beside split.count")
    if index >= count:
        _fail_split(shard, "split.no", f"is {index}, expected less than split.count, {count}")
    if index != number:
        hint = f"; open the first one, NAME-00001-of-{count:05d}.gguf" if number == 0 else ""
        _fail_split(shard, "split.no", f"this is shard {index + 1} of {count}, expected shard {number + 1}{hint}")
    return count


def _shard_paths(first: Shard, n_shards: int) -> list[Path]:
    """Paths of all shards, made from the first one's name alone: nothing inside a file can choose what is opened."""
    path = first.file.path
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or int(name["number"]) != 1 or int(name["count"]) != n_shards:
        expected = f"NAME-00001-of-{n_shards:05d}.gguf"
        _fail_split(first, "split.count", f"is {n_shards}: the first shard's file must be named {expected}")
    stem = name["stem"] if name else ""
    return [path.with_name(f"{stem}-{number:05d}-of-{n_shards:05d}.gguf") for number in range(1, n_shards + 1)]


def _check_shard(shards: list[Shard], n_shards: int) -> None:
    """GGUFError unless the last of ``shards`` is the one that follows those before it."""
    shard = shards[-1]
    count = _shard_count(shard, len(shards) - 1)
    if count != n_shards:
        _fail_split(shard, "split.count", f"says {count} shards, but the first shard says {n_shards}")
    if sum(len(p.tensors) + len(p.metadata) for p in shards) > MAX_ENTRIES:
        message = f"metadata keys and tensors of all shards so far are more than {MAX_ENTRIES}"
        raise GGUFError(message, path=shard.file.path, field="n_tensors", offset=8)


def _merge(shards: list[Shard]) -> dict[str, GGUFTensor]:
    """The tensors of all shards; GGUFError when one appears twice or their number is not split.tensors.count."""
    tensors: dict[str, GGUFTensor] = {}
    for shard in shards:
        for name, tensor in shard.tensors.items():
            if name in tensors:
                message = f"is also in {tensors[name].path.name}"
                raise GGUFError(message, path=shard.file.path, field=f"tensor {printable(name)}", offset=tensor.offset)
            tensors[name] = tensor
    for shard in shards:
        count = _split_value(shard, "split.tensors.count")
        if count is not None and count != len(tensors) and _split_value(shard, "split.count"):
            _fail_split(shard, "split.tensors.count", f"is {count}, but there are {len(tensors)} tensors")
    return tensors
