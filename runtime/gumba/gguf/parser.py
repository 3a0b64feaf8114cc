"""Parses and checks one GGUF file, version 2 or 3, little-endian.

    header   magic "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv     x metadata   key string | value type u32 | value
    n_tensors x tensor    name string | n_dims u32 | dims u64[n_dims], fastest first | type u32 | offset u64
    padding to a multiple of general.alignment (32 where the key is absent)
    data     each tensor at its offset from here, each padded to the alignment

A string is a length (u64) and its bytes; an array is an element type (u32), a count (u64) and its elements.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A file is not trusted. After `Shard` has read one, every string, array and tensor lies inside it, tensors neither
overlap nor repeat, and their sizes follow from shape and type. Counts are checked against the bytes that remain
before anything is allocated for them. Every error is a `GGUFError` with the field and its byte offset. The parser
refuses what llama.cpp refuses (tensor data must follow in order, without gaps), and also what is certainly damage (NUL or
bad UTF-8 in names, bools other than 0 and 1). It accepts what llama.cpp accepts: no metadata, no tensors, dimensions of
zero, scalars, a last tensor without its padding, bytes after the last tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gumba.errors import GGUFError
from gumba.gguf.array import GGUFArray, string_bounds
from gumba.gguf.mapped import Cursor, InMemoryFile, MappedFile, printable
from gumba.gguf.types import GGML_TYPES, NUMPY_DTYPES, BlockType, ValueType, explain_unknown

# Far above any real file; they bound what a hostile one can cost: a sparse file may be terabytes of zeros.
MAX_ENTRIES = 1 << 16  # metadata keys of a file; tensors of a file; both together of a model in shards
_MAX_KEY_BYTES = (1 << 16) - 1  # the specification's
_MAX_ALL_KEY_BYTES = 1 << 22
_MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME, less the NUL
_MAX_STRINGS = 1 << 22  # in all arrays of one file
_MAX_METADATA_BYTES = 1 << 30
_MAX_DIMS = 4
_MAX_INT64 = (1 << 63) - 1

_HEADER_BYTES = 24
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: ``shape`` in numpy's order (rows first), ``n_bytes`` its size in the file."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    n_bytes: int
    _relative_offset: int = field(repr=False)
    _file: MappedFile = field(repr=False)

    @property
    def path(self) -> Path:
        """The file that holds the data (a shard, if the model has several)."""
        return self._file.path

    @property
    def offset(self) -> int:
        """Byte offset of the data in the file ``path``."""
        return self._file.data_start + self._relative_offset

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8[n_bytes], read-only: a view of the mapped file, in the blocks that ``type`` describes.

        It stays valid after the file is closed. Raises GGUFError when the file is closed already or has shrunk.
        """
        start = self.offset
        return self._file.bytes[start : start + self.n_bytes]


class Metadata(Mapping[str, object]):
    """Metadata by key: int, float, bool and str values, and `GGUFArray` for arrays.

    Strings are decoded on access: one that is not UTF-8 raises GGUFError then.
    """

    __slots__ = ("_file", "_values")

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._values: dict[str, tuple[ValueType, int, object]] = {}  # type, byte offset, value (str as bytes)

    def _add(self, key: str, kind: ValueType, offset: int, value: object) -> None:
        self._values[key] = (kind, offset, value)

    def __getitem__(self, key: str) -> object:
        _, offset, value = self._values[key]
        if not isinstance(value, bytes):
            return value
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            message = f"not UTF-8: {value[:80]!r}"
            name = f"metadata {printable(key)}"
            raise GGUFError(message, path=self._file.path, field=name, offset=offset + 8 + error.start) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def value_type(self, key: str) -> ValueType:
        """The type that the file gives ``key``. Raises KeyError without such a key."""
        return self._values[key][0]

    def offset(self, key: str) -> int:
        """Byte offset of ``key``'s value in the file. Raises KeyError without such a key."""
        return self._values[key][1]


class Shard:
    """One file, parsed and checked: a shard of a model, or the whole model."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.file = MappedFile(path, least=_HEADER_BYTES)
        try:
            cursor = Cursor(self.file, _MAX_METADATA_BYTES, "metadata may take 1 GiB at most")
            self.version, n_tensors, n_kv = _read_header(cursor)
            self.metadata = _read_metadata(cursor, n_kv)
            self.alignment = _alignment(self.metadata, self.file)
            self.tensors = _read_tensors(cursor, n_tensors, self.alignment)
            self.file.data_start = _align(cursor.position, self.alignment)
            _check_data(self.tensors, self.file)
        except BaseException:
            self.file.close()
            raise


class Header:
    """The header of a file of ``size`` bytes about to be written to ``path``, parsed and checked.

    Attributes: ``path``, ``metadata``, ``tensors`` by name (without their data).

    Raises GGUFError for what `Shard` would refuse.
    """

    def __init__(self, path: str | PathLike[str], data: bytes, size: int) -> None:
        file = InMemoryFile(path, data, size)
        self.path = file.path
        cursor = Cursor(file, min(len(data), _MAX_METADATA_BYTES), "metadata may take 1 GiB at most")
        _, n_tensors, n_kv = _read_header(cursor)
        self.metadata = _read_metadata(cursor, n_kv)
        self.tensors = _read_tensors(cursor, n_tensors, _alignment(self.metadata, file))


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    """Version, n_tensors and n_kv."""
    magic = cursor.raw(4, "magic")
    if magic != b"GGUF":
        cursor.fail(f"not a GGUF file: begins with {magic!r}, expected b'GGUF'", "magic", 0)
    version = cursor.u32("version")
    if version and version & 0xFFFF == 0:
        cursor.fail("big-endian GGUF file: only little-endian files can be read", "version", 4)
    if version not in (2, 3):
        hint = "; convert the model again with a current tool" if version == 1 else ""
        cursor.fail(f"version {version}, expected 2 or 3{hint}", "version", 4)
    n_tensors, n_kv = cursor.u64("n_tensors"), cursor.u64("n_kv")
    remaining = cursor.limit - cursor.position
    for field_name, count, least, offset in (
        ("n_tensors", n_tensors, _LEAST_TENSOR_BYTES, 8),
        ("n_kv", n_kv, _LEAST_KEY_BYTES, 16),
    ):
        if count > MAX_ENTRIES:
            cursor.fail(f"{count}, allowed are at most {MAX_ENTRIES}", field_name, offset)
        if count * least > remaining:
            message = f"{count} entries take at least {count * least} bytes but only {remaining} remain"
            cursor.fail(message, field_name, offset)
    return version, n_tensors, n_kv


def _read_metadata(cursor: Cursor, n_kv: int) -> Metadata:
    metadata = Metadata(cursor.file)
    key_bytes = n_strings = 0
    for index in range(n_kv):
        start = cursor.position
        key = cursor.name(f"metadata key {index}", _MAX_KEY_BYTES)
        shown = printable(key)
        key_bytes += cursor.position - start
        if key_bytes > _MAX_ALL_KEY_BYTES:
            cursor.fail(f"keys take more than {_MAX_ALL_KEY_BYTES} bytes together", f"metadata key {index}", start)
        if key in metadata:
            cursor.fail(f"the key {shown} appears twice", f"metadata key {index}", start)
        field_name = f"metadata {shown}"
        kind = _value_type(cursor, f"{field_name} type")
        offset = cursor.position
        value: object
        if kind is ValueType.STRING:
            length = cursor.u64(f"{field_name} length")
            value = cursor.raw(length, field_name)
        elif kind is ValueType.ARRAY:
            array = _read_array(cursor, key, _MAX_STRINGS - n_strings)
            n_strings += len(array) if array.element_type is ValueType.STRING else 0
            value = array
        else:
            value = _read_scalar(cursor, kind, field_name)
        metadata._add(key, kind, offset, value)
    return metadata


def _value_type(cursor: Cursor, field_name: str) -> ValueType:
    start = cursor.position
    number = cursor.u32(field_name)
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"{number} is not a metadata type", field_name, start)


def _read_scalar(cursor: Cursor, kind: ValueType, field_name: str) -> object:
    dtype = NUMPY_DTYPES[kind]
    start = cursor.need(dtype.itemsize, field_name)
    if kind is ValueType.BOOL and cursor.data[start] > 1:
        cursor.fail(f"{cursor.data[start]} is not a bool, expected 0 or 1", field_name, start)
    value: object = np.ndarray((), dtype, cursor.data, start).item()
    return value


def _read_array(cursor: Cursor, key: str, max_strings: int) -> GGUFArray:
    field_name = f"metadata {printable(key)}"
    start = cursor.position
    kind = _value_type(cursor, f"{field_name} element type")
    if kind is ValueType.ARRAY:
        cursor.fail("an array of arrays, which GGUF readers do not support", f"{field_name} element type", start)
    count = cursor.u64(f"{field_name} count")
    remaining = cursor.limit - cursor.position
    least = 8 if kind is ValueType.STRING else NUMPY_DTYPES[kind].itemsize
    if count * least > remaining:
        message = f"{count} elements take at least {count * least} bytes but only {remaining} remain ({cursor.why})"
        cursor.fail(message, f"{field_name} count", start + 4)
    if kind is not ValueType.STRING:
        return GGUFArray(key, kind, cursor.file, cursor.need(count * least, field_name), count, None)
    if count > max_strings:
        cursor.fail(f"more than {_MAX_STRINGS} strings in all arrays together", f"{field_name} count", start + 4)
    offset = cursor.position
    return GGUFArray(key, kind, cursor.file, offset, count, string_bounds(cursor, count, field_name))


def _alignment(metadata: Metadata, file: MappedFile) -> int:
    key = "general.alignment"
    if key not in metadata:
        return _DEFAULT_ALIGNMENT
    value, kind, offset = metadata[key], metadata.value_type(key), metadata.offset(key)
    if kind is not ValueType.UINT32:
        raise GGUFError(f"is {kind.name}, expected UINT32", path=file.path, field=f"metadata {key}", offset=offset)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise GGUFError(f"{value} is not a power of two", path=file.path, field=f"metadata {key}", offset=offset)
    return value


def _read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> dict[str, GGUFTensor]:
    """Tensor descriptions by name; their data must follow one another in order, each padded to ``alignment``."""
    tensors: dict[str, GGUFTensor] = {}
    expected = 0
    for index in range(n_tensors):
        start = cursor.position
        name = cursor.name(f"tensor {index} name", _MAX_NAME_BYTES)
        label = f"tensor {printable(name)}"
        if name in tensors:
            cursor.fail(f"the name {printable(name)} appears twice", f"tensor {index} name", start)
        shape, block, n_bytes = _read_layout(cursor, label)
        start = cursor.position
        offset = cursor.u64(f"{label} offset")
        if offset != expected:
            before = next(reversed(tensors.values()), None)
            if before is not None and 0 in before.shape:  # the offset is right; the dimension is wrong
                cursor.fail(
                    f"a dimension is 0 in {list(before.shape)}, but there is data between its offset and the next tensor's",
                    f"tensor {printable(before.name)} dims",
                    start,
                )
            message = (
                f"{offset}, expected {expected}: data must follow the tensor before it, padded to {alignment} bytes"
            )
            cursor.fail(message, f"{label} offset", start)
        expected = _align(expected + n_bytes, alignment)
        tensors[name] = GGUFTensor(name, block, shape, n_bytes, offset, cursor.file)
    return tensors


def _read_layout(cursor: Cursor, label: str) -> tuple[tuple[int, ...], BlockType, int]:
    """Shape, type and size in bytes of the tensor ``label``, which fits into int64."""
    start = cursor.position
    n_dims = cursor.u32(f"{label} n_dims")
    if n_dims > _MAX_DIMS:
        cursor.fail(f"{n_dims} dimensions, allowed are at most {_MAX_DIMS}", f"{label} n_dims", start)
    start = cursor.need(8 * n_dims, f"{label} dims")
    dims: tuple[int, ...] = struct.unpack_from(f"<{n_dims}Q", cursor.data, start)
    n_elements = n_positive = 1
    for dim in dims:
        n_elements *= dim
        n_positive *= dim or 1
    if n_positive > _MAX_INT64:
        cursor.fail(f"{dims} has more elements than fit into 63 bits", f"{label} dims", start)
    type_start = cursor.position
    type_id = cursor.u32(f"{label} type")
    block = GGML_TYPES.get(type_id)
    if block is None:
        cursor.fail(explain_unknown(type_id), f"{label} type", type_start)
    row = dims[0] if dims else 1
    if row % block.block_size:
        message = (
            f"rows of {row} elements, but {block.name} has blocks of {block.block_size}: the file is damaged, or written by a "
            "faulty program; convert the original checkpoint with gumba convert"
        )
        cursor.fail(message, f"{label} dims", start)
    n_bytes = n_elements // block.block_size * block.type_size
    if n_bytes > cursor.file.size:
        message = f"{dims} of type {block.name} takes {n_bytes} bytes, more than the file's {cursor.file.size}"
        cursor.fail(message, f"{label} dims", start)
    return dims[::-1], block, n_bytes


def _check_data(tensors: dict[str, GGUFTensor], file: MappedFile) -> None:
    """Raises GGUFError at the first tensor whose data the file does not hold."""
    for tensor in tensors.values():
        missing = tensor.offset + tensor.n_bytes - file.size
        if missing > 0 and tensor.n_bytes > 0:
            message = f"data of {tensor.n_bytes} bytes begins here, but the file ends {missing} bytes too early"
            raise GGUFError(
                message, path=file.path, field=f"tensor {printable(tensor.name)} data", offset=tensor.offset
            )
