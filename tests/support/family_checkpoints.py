"""Checkpoints of the families of tiny_families.py, and what is in the files made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from support.tiny_checkpoints import write_checkpoint
from support.tiny_families import Family


def checkpoint_tensors(family: Family, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for every name of the checkpoint."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = dict(family.spare)
    for theirs, shape, _ in family.tensors().values():
        shapes |= dict.fromkeys([theirs] if isinstance(theirs, str) else theirs, shape)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, family: Family, tensors: dict[str, np.ndarray], **changes: Any) -> None:
    """A checkpoint of a family; `changes` to its configuration (None leaves a key out)."""
    config = family.full_config() | changes
    write_checkpoint(folder, tensors=tensors, files={"config.json": {k: v for k, v in config.items() if v is not None}})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return {name: part.contents() for name, part in reader.fields.items()}, {t.name: t for t in reader.tensors}
