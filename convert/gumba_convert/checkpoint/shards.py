"""Writes safetensors: one file, or several with an index if it would be too large."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARD_BYTES = 5_000_000_000
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: Hugging Face's name, safetensors' dtype and the shape, rows first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_shards(
    folder: Path, entries: Sequence[Entry], data: Iterable[np.ndarray], progress: Callable[[int], None]
) -> list[str]:
    """Write all tensors to `folder`; return the names of the files.

    Args:
        data: the bytes of all entries in order, in pieces; a piece never spans two tensors.
        progress: called with the bytes of data written so far.
    """
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.n_bytes for e in shards[-1]) + entry.n_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    pieces, done = iter(data), 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            left = sum(entry.n_bytes for entry in shard)
            while left:
                piece = next(pieces)
                file.write(piece.data)
                left -= piece.nbytes
                done += piece.nbytes
                progress(done)
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": done}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        names.append("model.safetensors.index.json")
    return names


def _header(entries: list[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.n_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
