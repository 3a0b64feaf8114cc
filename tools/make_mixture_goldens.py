"""Make tests/data/mixture_goldens.json: the block format that llama.cpp's quantizer gives each tensor, by model and file type.

    python tools/make_mixture_goldens.py --llama PYTHON

`--llama`: an interpreter with llama-cpp-python and numpy. The models are the tiny ones of tests/data (``arch_*``), of all
architectures, and some of these with the layers, heads and experts of published ones. Only headers are written, of float32 files
whose matrices have rows that fit all formats or those that STRETCHED says; llama.cpp's quantizer then says in a dry run what it
would do. A string has a letter (LETTERS) for each tensor, in the file's order.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from gumba_convert.gguf_writer import TensorInfo, Value, data_size, header, padding
from gumba_convert.quantize.recipe import FILE_TYPES, FLOATS

DATA = Path(__file__).parent.parent / "tests" / "data"
GOLDENS = DATA / "mixture_goldens.json"
#: "-": what llama.cpp copies as it is.
LETTERS = {
    "-": "-", "f16": "f", "q8_0": "8", "q6_k": "6", "q5_k": "5", "q4_k": "4", "q3_k": "3", "q2_k": "2", "q4_0": "a", "q4_1": "b",
    "q5_0": "c", "q5_1": "d", "iq4_nl": "n", "iq4_xs": "x", "mxfp4": "m", "q2_0": "z", "tq2_0": "u", "tq1_0": "t", "q1_0": "1",
}  # fmt: skip
TYPES = tuple(name for name in FILE_TYPES if name not in FLOATS)
COLUMNS = 256
_LAYER = re.compile(r"((?:enc\.|dec\.)?blk\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Stretched:
    """A tiny model with more layers: ``columns`` of every matrix, and ``changes`` of the architecture's metadata."""

    base: str
    layers: int
    columns: int = COLUMNS
    changes: Mapping[str, int] = field(default_factory=dict)


def _heads(heads: int, kv_heads: int, **more: int) -> dict[str, int]:
    return {"attention.head_count": heads, "attention.head_count_kv": kv_heads, **more}


STRETCHED = {
    "llama 3.2 1b": Stretched("llama_mistral", 16, changes=_heads(32, 8)),
    "llama 2 7b": Stretched("llama_mistral", 32, changes=_heads(32, 32)),
    "llama 65b": Stretched("llama_mistral", 80, changes=_heads(64, 64)),
    "llama 70b": Stretched("llama_mistral", 80, changes=_heads(64, 8)),
    "smollm2 135m": Stretched("llama_mistral", 30, 576, _heads(9, 3)),
    "rows of 1000": Stretched("llama_mistral", 8, 1000),
    "qwen2 0.5b": Stretched("qwen2", 24, 896, _heads(14, 2)),
    "qwen2 72b": Stretched("qwen2", 80, changes=_heads(64, 8)),
    "mixtral 8x7b": Stretched("llama_mixtral", 32, changes=_heads(4, 1, expert_count=8, expert_used_count=2)),
    "qwen3 moe": Stretched("qwen3moe", 48, changes=_heads(32, 4, expert_count=128, expert_used_count=8)),
    "falcon 7b": Stretched("falcon", 32),
    "falcon 40b": Stretched("falcon_groups", 60),
    "gemma 2 2b": Stretched("gemma2", 26),
    "deepseek 2 lite": Stretched("deepseek2", 27),
    "phi 3": Stretched("phi3", 40),
    "gpt2": Stretched("gpt2", 12),
    "t5": Stretched("t5", 12, changes={"decoder_block_count": 12}),
    "qwen 3.5": Stretched("qwen35", 24),
}


@dataclass(frozen=True)
class Model:
    """A model's metadata without the tokenizer's, and name and shape (rows first) of each tensor."""

    architecture: str
    metadata: dict[str, Value]
    tensors: list[tuple[str, tuple[int, ...]]]


def models() -> Iterator[tuple[str, Model]]:
    """Every model, with its name in the goldens."""
    for path in sorted(DATA.glob("arch_*.gguf")):
        base = path.stem.removeprefix("arch_")
        yield base, _read(base)
    for name, model in STRETCHED.items():
        yield name, _stretch(_read(model.base), model)


def _read(base: str) -> Model:
    """A tiny model of tests/data, with rows of COLUMNS."""
    reader = gguf.GGUFReader(DATA / f"arch_{base}.gguf")
    metadata = {}
    for key, part in reader.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.")):
            metadata[key] = Value(int(part.types[0]), part.contents(), int(part.types[-1]))
    tensors = [(t.name, _shape([int(n) for n in reversed(t.shape)], COLUMNS)) for t in reader.tensors]
    return Model(str(metadata["general.architecture"].value), metadata, tensors)


def _shape(shape: list[int], columns: int) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 1 else (*shape[:-1], columns)


def _stretch(base: Model, model: Stretched) -> Model:
    """The model with its layers in turn until there are enough; lists of a value for each layer likewise."""
    prefix = f"{base.architecture}."
    n_base = int(base.metadata[f"{prefix}block_count"].value)
    metadata = {}
    for key, value in base.metadata.items():
        found = value.value
        if isinstance(found, list) and len(found) == n_base:
            found = [found[i % n_base] for i in range(model.layers)]
        metadata[key] = value._replace(value=found)
    for key, number in {"block_count": model.layers, **model.changes}.items():
        metadata[prefix + key] = Value(int(gguf.GGUFValueType.UINT32), number)
    tensors = []
    for name, shape in base.tensors:
        match = _LAYER.fullmatch(name)
        n_own = (
            sum(other.startswith(f"{match[1]}") and other.endswith(match[3]) for other, _ in base.tensors)
            if match
            else 1
        )
        copies = range(int(match[2]), model.layers, n_base if n_own > 1 else 1) if match else range(1)
        for i in copies if match else range(1):
            own = f"{match[1]}{i}{match[3]}" if match else name
            tensors.append((own, _shape(list(shape), model.columns)))
    return Model(base.architecture, metadata, tensors)


def write(path: Path, model: Model) -> None:
    """Write the header of a float32 file of the model; the data is a hole in the file."""
    infos = []
    for name, shape in model.tensors:
        infos.append(TensorInfo(name, shape, FILE_TYPES["f32"].number, 4 * math.prod(shape)))
    head = header(model.metadata, infos)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data_size(infos) + padding(infos[-1].n_bytes))


def types_of(path: Path, python: str) -> dict[str, str]:
    """What llama.cpp makes of a file: a letter for each tensor, by file type. Left out: types that end with an error."""
    order = json.dumps({"model": str(path), "types": {name: FILE_TYPES[name].number for name in TYPES}})
    peer = [python, str(Path(__file__).with_name("llama_peer.py")), "tensor_types", order]
    ended = subprocess.run(peer, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, str]] = json.loads(ended.stdout.splitlines()[-1])
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    return {
        name: "".join(LETTERS[of[tensor]] for tensor in names) for name, of in found.items() if len(of) == len(names)
    }


def record(python: str) -> dict[str, Any]:
    """The goldens: by model and file type. A model that llama.cpp does not load is left out, and named."""
    goldens = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models():
            path = Path(folder) / "model.gguf"
            write(path, model)
            found = types_of(path, python)
            if found:
                goldens[name] = found
            else:
                print(f"{name}: llama.cpp does not load it")
    return goldens


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", required=True, metavar="PYTHON", help="the Python that has llama-cpp-python")
    goldens = record(parser.parse_args().llama)
    GOLDENS.write_text(json.dumps(goldens, indent=0) + "\n", encoding="utf-8", newline="\n")
    print(f"{len(goldens)} models, {len(TYPES)} types")


if __name__ == "__main__":
    main()
