"""Write a real model once in each block format, with llama.cpp's quantizer: what tools/quality.py compares the engines on.

    python tools/make_type_files.py smollm2-f16.gguf types --peer-python ../llama/bin/python --types q4_k q2_k iq4_xs

Formats of 256 weights need rows of a multiple of 256, which small models seldom have. So the model is widened first, without
a change of what it computes: features, heads (the same number for each KV head) and feed-forward neurons of zeros are added
up to the next multiple, and the norms' weights and epsilon make up for the zeros in their means. Every matrix of the file is
then of one type. Formats that need an importance matrix get one of ones. Knows the architectures llama and qwen2, from files
in f16. Run it with a Python that has gguf.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engines import peer

#: By block format: llama.cpp's name of the file type in which every matrix has this format.
FILE_TYPES = {
    "q4_0": "q4_0", "q4_1": "q4_1", "q5_0": "q5_0", "q5_1": "q5_1", "q8_0": "q8_0", "q2_k": "q2_k", "q3_k": "q3_k_s",
    "q4_k": "q4_k_s", "q5_k": "q5_k_s", "q6_k": "q6_k", "iq4_nl": "iq4_nl", "iq4_xs": "iq4_xs", "iq3_s": "iq3_s",
    "iq3_xxs": "iq3_xxs", "iq2_s": "iq2_m", "iq2_xs": "iq2_xs", "iq2_xxs": "iq2_xxs", "iq1_m": "iq1_m", "iq1_s": "iq1_s",
    "tq1_0": "tq1_0", "tq2_0": "tq2_0", "mxfp4": "mxfp4_moe", "q1_0": "q1_0",
}  # fmt: skip
MULTIPLE = 256


@dataclass(frozen=True)
class Sizes:
    """Features, query heads of each KV head, neurons; KV heads and the size of a head, which stay."""

    width: int
    group: int
    ffn: int
    kv_heads: int
    head_dim: int

    def widened(self) -> Sizes:
        """The next multiples."""
        group = self.group
        while group * self.kv_heads * self.head_dim % MULTIPLE:
            group += 1
        up = lambda size: -(-size // MULTIPLE) * MULTIPLE  # noqa: E731
        return Sizes(up(self.width), group, up(self.ffn), self.kv_heads, self.head_dim)


def widen(name: str, values: np.ndarray, old: Sizes, new: Sizes) -> np.ndarray:
    """A tensor in its new shape; what is added is 0."""
    part = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    heads, more_heads = ((s.kv_heads, s.group, s.head_dim) for s in (old, new))
    axes: dict[str, tuple[Any, ...]] = {  # of each axis, outermost first: sizes before and after
        "token_embd": (None, (old.width, new.width)), "output": (None, (old.width, new.width)),
        "attn_q": ((heads, more_heads), (old.width, new.width)), "attn_output": ((old.width, new.width), (heads, more_heads)),
        "attn_k": (None, (old.width, new.width)), "attn_v": (None, (old.width, new.width)),
        "ffn_gate": ((old.ffn, new.ffn), (old.width, new.width)), "ffn_up": ((old.ffn, new.ffn), (old.width, new.width)),
        "ffn_down": ((old.width, new.width), (old.ffn, new.ffn)), "attn_norm": ((old.width, new.width),),
        "ffn_norm": ((old.width, new.width),), "output_norm": ((old.width, new.width),),
    }  # fmt: skip
    if part not in axes:
        sys.exit(f"do not know how to widen {name}")
    for axis, change in enumerate(axes[part][: values.ndim]):
        if change is None:
            continue
        before, after = (np.atleast_1d(size) for size in change)
        shape = values.shape
        parts = values.reshape(*shape[:axis], *before, *shape[axis + 1 :])
        added = [(0, 0)] * axis + [(0, int(b - a)) for a, b in zip(before, after)] + [(0, 0)] * (len(shape) - axis - 1)
        values = np.pad(parts, added).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return values * np.float32(np.sqrt(old.width / new.width)) if part.endswith("norm") else values


def write_widened(path: Path, out: Path) -> dict[str, int]:
    """Write the widened model in f16; the number of columns of each of its matrices."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    if architecture not in ("llama", "qwen2"):
        sys.exit(f"{path}: {architecture} is neither llama nor qwen2")
    width, n_heads, ffn = (
        fields[f"{architecture}.{key}"] for key in ("embedding_length", "attention.head_count", "feed_forward_length")
    )
    kv_heads = fields.get(f"{architecture}.attention.head_count_kv", n_heads)
    head_dim = fields.get(f"{architecture}.attention.key_length", width // n_heads)
    old = Sizes(width, n_heads // kv_heads, ffn, kv_heads, head_dim)
    new = old.widened()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(
                name, fields[name], kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
            )
    eps = f"{architecture}.attention.layer_norm_rms_epsilon"
    changed: Mapping[str, Any] = {
        "embedding_length": new.width, "feed_forward_length": new.ffn, "attention.key_length": head_dim,
        "attention.head_count": new.group * kv_heads, "attention.value_length": head_dim,
    }  # fmt: skip
    for key, value in changed.items():
        writer.kv_data[0].pop(f"{architecture}.{key}", None)
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.kv_data[0].pop(eps)
    writer.add_float32(eps, fields[eps] * old.width / new.width)
    columns = {}
    for tensor in reader.tensors:
        values = np.array(tensor.data, np.float32)
        wide = widen(tensor.name, values, old, new)
        if wide.ndim > 1:
            columns[tensor.name] = wide.shape[-1]
        writer.add_tensor(tensor.name, wide.astype(np.float16) if wide.ndim > 1 else wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return columns


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file in f16")
    parser.add_argument(
        "folder", type=Path, help="where the files go: f16.gguf, which is the widened model, and TYPE.gguf"
    )
    parser.add_argument("--peer-python", required=True, help="PYTHON that has llama-cpp-python, or PYTHON,FOLDER")
    parser.add_argument("--types", nargs="+", choices=FILE_TYPES, default=list(FILE_TYPES), metavar="TYPE")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    wide = options.folder / "f16.gguf"
    columns = write_widened(options.model, wide)
    for name in options.types:
        order = {"model": str(wide), "out": str(options.folder / f"{name}.gguf"), "type": FILE_TYPES[name]}
        ended = peer(
            options.peer_python, "llama_peer.py", "quantize",
            **order, threads=options.threads, pure=True, importance=columns,
        )  # fmt: skip
        print(f"{name}: {ended.json()['quantize_s']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
