"""Writes GGUF version 3, little-endian: builds the header; tensor data follows it in order.

    magic "GGUF" | version u32 | n_tensors u64 | n_metadata u64
    metadata:  key string | value type u32 | value              (arrays: element type u32 | length u64 | elements)
    tensors:   name string | n_dims u32 | dims u64 x n_dims (innermost first) | type u32 | offset u64
    padding to ALIGNMENT, then the data; every tensor starts at a multiple of ALIGNMENT

A string is its length in bytes (u64) and the bytes. `gguf.GGUFWriter` writes the same, but packs every array element separately:
0.2 s for a vocabulary of 49k tokens, compared to 0.02 s here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gumba.errors import ConvertError

ALIGNMENT = 32
VERSION = 3

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_SCALARS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", U64: "<Q", I64: "<q", F64: "<d"}


class Value(NamedTuple):
    """A metadata value with its GGUF type; `element` is the type of an array's elements."""

    type: int
    value: Any
    element: int = STRING


def u32(value: int) -> Value:
    return Value(U32, value)


def f32(value: float) -> Value:
    return Value(F32, value)


def boolean(value: bool) -> Value:
    return Value(BOOL, value)


def string(value: str) -> Value:
    return Value(STRING, value)


def strings(value: Iterable[str | bytes]) -> Value:
    return Value(ARRAY, list(value), STRING)


def u8_array(value: bytes) -> Value:
    return Value(ARRAY, np.frombuffer(value, np.uint8), U8)


def i32_array(value: Sequence[int] | np.ndarray) -> Value:
    return Value(ARRAY, np.asarray(value, np.int32), I32)


def f32_array(value: Sequence[float] | np.ndarray) -> Value:
    return Value(ARRAY, np.asarray(value, np.float32), F32)


def f64_array(value: Sequence[float] | np.ndarray) -> Value:
    return Value(ARRAY, np.asarray(value, np.float64), F64)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the header; `shape` in NumPy order (rows first), `n_bytes` in its stored type."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    n_bytes: int


def padding(n_bytes: int) -> int:
    """Bytes from `n_bytes` to the next multiple of ALIGNMENT."""
    return -n_bytes % ALIGNMENT


def data_size(tensors: Iterable[TensorInfo]) -> int:
    """Bytes of the data section, padding included."""
    return sum(tensor.n_bytes + padding(tensor.n_bytes) for tensor in tensors)


def header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the tensor data, padded to ALIGNMENT. Tensors are stored in the order given."""
    parts = [struct.pack("<4sIQQ", b"GGUF", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key, key), struct.pack("<I", value.type), _value(key, value)]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name, tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type_id, offset))
        offset += tensor.n_bytes + padding(tensor.n_bytes)
    body = b"".join(parts)
    return body + bytes(padding(len(body)))


def _string(key: str, text: str | bytes) -> bytes:
    try:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConvertError(f"{key}: {text!r} is not valid Unicode: {error.reason}") from None
    return len(data).to_bytes(8, "little") + data


def _value(key: str, value: Value) -> bytes:
    if value.type == STRING:
        return _string(key, value.value)
    if value.type == BOOL:
        return b"\x01" if value.value else b"\x00"
    if value.type == ARRAY:
        items = value.value
        head = struct.pack("<IQ", value.element, len(items))
        if value.element == STRING:
            return head + b"".join([_string(key, item) for item in items])
        if isinstance(items, np.ndarray):
            return head + items.astype(items.dtype.newbyteorder("<")).tobytes()
        return head + b"".join([_value(key, Value(value.element, item)) for item in items])
    try:
        return struct.pack(_SCALARS[value.type], value.value)
    except (struct.error, OverflowError):
        raise ConvertError(f"{key}: {value.value!r} does not fit its GGUF type") from None
