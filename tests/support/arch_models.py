"""The golden models of the architectures, and models made from them by changes to metadata and tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from gumba import GGUFFile
from gumba.models.registry import ARCHITECTURES
from support.tiny_models import DATA, stored


def architecture(path: Path) -> str:
    with GGUFFile(path) as file:
        return file.require("general.architecture", str)


def has_logits(path: Path) -> bool:
    """Whether the golden is logits: for embedders it is hidden states, for classifiers scores."""
    with GGUFFile(path) as file:
        tokens, results = stored(path)
        return results.shape == (len(tokens), file.tensors["token_embd.weight"].shape[0])


FILES = [path for path in sorted(DATA.glob("arch_*.gguf")) if architecture(path) in ARCHITECTURES and has_logits(path)]
NAMES = [path.stem.removeprefix("arch_") for path in FILES]
KEPT = ("gate_inp", "position", "token_types")
#: All numbers are float32: the rest is rounding and another order of sums.
EXACT = 1e-4
#: Of the same weights in blocks and as float32, where activations are rounded to 8 bits: the usual error of a token's logits,
#: relative to them. (Of the usual token: where two experts are chosen with nearly the same score, rounding chooses another.)
ROUNDED = 6e-2


def where(got: np.ndarray, want: np.ndarray) -> str:
    """For a failed comparison with EXACT: which of the rows, one for each position, differ."""
    wrong = np.abs(got - want).max(axis=-1) >= EXACT * np.abs(want).max()
    return f"{wrong.sum()} of {len(wrong)} positions are wrong, the first is position {wrong.argmax()}"


def rewritten(
    source: Path,
    out: Path,
    kind: str,
    *,
    dequantized: bool,
    change: Callable[[str, np.ndarray], np.ndarray | None] = lambda name, values: values,
    own: Mapping[str, Any] = MappingProxyType({}),
    more: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Path:
    """The model with its matrices in block format ``kind``, or ``dequantized``: with the values of the blocks as float32.

    ``change``: returns a tensor's new values, or None to leave it out. ``own``: other values of the architecture's keys, None to
    leave one out; ``more``: further tensors, float32.
    """
    format = gguf.GGMLQuantizationType[kind]
    with GGUFFile(source) as file:
        writer = gguf.GGUFWriter(out, architecture(source))
        writer.kv_data[0].clear()
        for name in set(own) - {key.removeprefix(architecture(source) + ".") for key in file.metadata}:
            writer.add_key_value(f"{architecture(source)}.{name}", own[name], gguf.GGUFValueType.UINT32)
        for key, value in file.metadata.items():
            many: Any = hasattr(value, "to_list")
            sub = gguf.GGUFValueType(int(value.element_type)) if many else None
            name = key.removeprefix(architecture(source) + ".")
            value = own.get(name, value)
            if value is None:
                continue
            kept = gguf.GGUFValueType.ARRAY if many else gguf.GGUFValueType(int(file.metadata.value_type(key)))
            writer.add_key_value(key, value.to_list() if hasattr(value, "to_list") else value, kept, sub_type=sub)
        for name, tensor in file.tensors.items():
            values = change(name, np.frombuffer(bytes(tensor.data), np.float32).reshape(tensor.shape))
            if values is None:
                continue
            # Routers and learned positions stay float32 in real files.
            if values.ndim < 2 or values.shape[-1] % 32 or any(word in name for word in KEPT):
                writer.add_tensor(name, values.copy())
                continue
            blocks = quantize(values, format)
            if dequantized:
                writer.add_tensor(name, dequantize(blocks, format).astype(np.float32).reshape(values.shape))
            else:
                writer.add_tensor(name, blocks.view(np.uint8), raw_dtype=format)
        for name, values in more.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out
