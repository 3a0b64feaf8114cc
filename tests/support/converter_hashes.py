"""Hashes of the files that conversion writes, and their recording in tests/data/converter_hashes.json.

Every family's tiny checkpoint (``tiny_families``) is converted to each of TYPES. Those are too narrow for blocks, so one wide
Llama is converted to all types, pure or not, from each type of checkpoint. A hash is the SHA-256 of the whole GGUF file, in
which nothing names a version of this package; weights come from numpy's PCG64 with a fixed seed.

    cd tests && python -m support.converter_hashes --missing

records the checkpoints that have no hash yet, of a new family for example. With names of checkpoints instead of ``--missing``,
these are recorded anew; without either, all of them: only for a change that is meant to change converted files; say so in its
commit.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from gumba_convert import convert
from support.family_checkpoints import checkpoint_tensors, write
from support.tiny_checkpoints import write_checkpoint
from support.tiny_families import FAMILIES

RECORDING = Path(__file__).parent.parent / "data" / "converter_hashes.json"
TYPES = ("f32", "q8_0", "q4_0")
ALL_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
#: Wide enough for blocks of 256, as Q6_K has them.
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_hidden_layers": 1}


def _family(name: str) -> Callable[[Path], Any]:
    return lambda folder: write(folder, FAMILIES[name], checkpoint_tensors(FAMILIES[name]))


def _wide(dtype: str) -> Callable[[Path], Any]:
    return lambda folder: write_checkpoint(folder, config=WIDE, dtype=dtype)


#: What writes each checkpoint, by its name.
CHECKPOINTS: dict[str, Callable[[Path], Any]] = {name: _family(name) for name in FAMILIES}
CHECKPOINTS |= {f"wide {dtype}": _wide(dtype) for dtype in ("F32", "F16", "BF16")}


def hashes_of(name: str, folder: Path, n_threads: int | None = None) -> dict[str, str]:
    """The hash of every conversion of a checkpoint, by what was made; ``folder`` is empty."""
    CHECKPOINTS[name](folder / "hf")
    kinds = [(kind, False) for kind in TYPES]
    if name not in FAMILIES:
        kinds = [(kind, pure) for kind in ALL_TYPES for pure in (False, True)]
    hashes = {}
    for kind, pure in kinds:
        report = convert(folder / "hf", folder / "out.gguf", type=kind, pure=pure, name="tiny", n_threads=n_threads)
        hashes[f"{kind} pure" if pure else kind] = hashlib.sha256(report.path.read_bytes()).hexdigest()
    return hashes


def recorded() -> dict[str, dict[str, str]]:
    """The recorded hashes: by checkpoint and type."""
    return json.loads(RECORDING.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def record(names: Collection[str] = (), *, missing: bool = False) -> None:
    """Record the hashes of every checkpoint, or only of ``names``; ``missing``: only of those that have none."""
    unknown = set(names) - set(CHECKPOINTS)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(CHECKPOINTS)}")
    before = recorded() if RECORDING.exists() else {}
    stay = [name for name in before if name in CHECKPOINTS and (missing or (names and name not in names))]
    hashes = {name: before[name] for name in stay}
    for name in CHECKPOINTS:
        if name not in hashes:
            with tempfile.TemporaryDirectory() as folder:
                hashes[name] = hashes_of(name, Path(folder))
    n_changed = sum(before.get(name) != digests for name, digests in hashes.items())
    RECORDING.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    print(f"{len(hashes)} checkpoints, {n_changed} new or changed")


if __name__ == "__main__":
    record([name for name in sys.argv[1:] if name != "--missing"], missing="--missing" in sys.argv)
