"""``gumba inspect``: show the metadata and tensors of a GGUF file."""

from __future__ import annotations

import argparse
import math
import struct
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from gumba.cli.open_model import find_model
from gumba.cli.options import Commands, add_revision, command
from gumba.cli.terminal import print_json, printable, table
from gumba.progress import size

if TYPE_CHECKING:
    from gumba.gguf import GGUFArray, GGUFFile

_EXAMPLES = """
gumba inspect model.gguf
gumba inspect model.gguf --tensors
gumba inspect model.gguf --json
"""

#: Items of an array, and characters of a string, that are shown.
_ITEMS, _CHARACTERS = 6, 100


def add_parser(commands: Commands) -> None:
    """Add ``inspect`` to the command line."""
    parser = command(commands, "inspect", inspect, "show the metadata and tensors of a GGUF file", _EXAMPLES)
    parser.add_argument(
        "file", metavar="FILE", help="a GGUF file (the first shard of a sharded model), or another MODEL"
    )
    add_revision(parser)
    parser.add_argument("--tensors", action="store_true", help="print the table of tensors only")
    parser.add_argument("--json", action="store_true", help="print one JSON object (long arrays truncated)")


def inspect(args: argparse.Namespace) -> int:
    """Run ``gumba inspect``."""
    path = find_model(args.file, args.revision)
    from gumba.gguf import GGUFFile

    with GGUFFile(path) as file:
        if args.json:
            print_json(_description(file, path.stat().st_size))
        else:
            if not args.tensors:
                print(_heading(file, path.stat().st_size))
                print()
            print(_tensor_table(file))
    return 0


def _description(file: GGUFFile, n_bytes: int) -> dict[str, object]:
    return {
        "path": str(file.path),
        "version": file.version,
        "byte_order": file.byte_order,
        "alignment": file.alignment,
        "file_bytes": n_bytes,
        "parameters": _parameters(file),
        "metadata": {key: _plain(value) for key, value in file.metadata.items()},
        "tensors": [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "offset": t.offset, "bytes": t.n_bytes}
            for t in file.tensors.values()
        ],
    }


def _plain(value: object) -> object:
    """Convert a metadata value for JSON: an array becomes its element type, length and first items."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        first = [_plain(value[i]) for i in range(min(_ITEMS, len(value)))]
        return {"element_type": _element_type(value), "length": len(value), "first": first}
    return value


def _parameters(file: GGUFFile) -> int:
    return sum(math.prod(t.shape) for t in file.tensors.values())


def _heading(file: GGUFFile, n_bytes: int) -> str:
    types = Counter(t.type.name for t in file.tensors.values())
    rows = [
        ["file", printable(str(file.path))],
        ["format", f"GGUF version {file.version}, {file.byte_order}-endian, aligned to {file.alignment} bytes"],
        ["size", f"{size(n_bytes)}, {_parameters(file):,} parameters"],
        ["tensors", f"{len(file.tensors)} ({', '.join(f'{n} {name}' for name, n in types.most_common())})"],
        ["", ""],
    ]
    rows += [[printable(key), _shown(value)] for key, value in file.metadata.items()]
    return table(rows)


def _shown(value: object) -> str:
    """A metadata value on one line."""
    if isinstance(value, str):
        rest = len(value) - _CHARACTERS
        return printable(value[:_CHARACTERS]) + (f" ... ({rest} more characters)" if rest > 0 else "")
    if isinstance(value, Sequence):
        items = [_shown(value[i]) for i in range(min(_ITEMS, len(value)))]
        dots = ["..."] if len(value) > _ITEMS else []
        return f"{len(value)} x {_element_type(value)}: [{', '.join(items + dots)}]"
    if isinstance(value, float):
        return _shortest(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _element_type(array: Sequence[object]) -> str:
    """The GGUF specification's name of an array's element type."""
    return str(cast("GGUFArray", array).element_type.name).lower()


def _shortest(value: float) -> str:
    """The shortest decimal number that rounds to the same float32 (nearly all floats in metadata are float32)."""
    if not math.isfinite(value) or abs(value) > 3e38:
        return str(value)
    stored = struct.pack("f", value)
    texts = (f"{value:.{digits}g}" for digits in range(6, 10))
    return next((text for text in texts if struct.pack("f", float(text)) == stored), str(value))


def _tensor_table(file: GGUFFile) -> str:
    rows = [["TENSOR", "TYPE", "SHAPE", "BYTES", "OFFSET"]]
    for t in file.tensors.values():
        rows.append([printable(t.name), t.type.name, " x ".join(map(str, t.shape)), str(t.n_bytes), str(t.offset)])
    return table(rows, right="34")
