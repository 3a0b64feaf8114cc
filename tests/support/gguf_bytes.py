"""GGUF files written byte by byte, right or wrong on purpose, each field's place remembered.

Deliberately without any GGUF library: what the bytes are must be plain to see.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
F32_TENSOR, Q4_0_TENSOR, Q8_0_TENSOR, Q6_K_TENSOR = 0, 2, 8, 14


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A length, by default the right one, and the bytes."""
    raw = text if isinstance(text, bytes) else text.encode()
    return u64(len(raw) if length is None else length) + raw


def array(kind: int, count: int, elements: bytes) -> bytes:
    """The value of an ARRAY key."""
    return u32(kind) + u64(count) + elements


class GGUFBytes:
    """A file under construction. ``at`` maps names of fields to their offsets."""

    def __init__(
        self,
        n_tensors: int = 0,
        n_kv: int = 0,
        *,
        magic: bytes = b"GGUF",
        version: int = 3,
    ) -> None:
        self.data = bytearray()
        self.at: dict[str, int] = {}
        self.put("magic", magic)
        self.put("version", u32(version))
        self.put("n_tensors", u64(n_tensors))
        self.put("n_kv", u64(n_kv))

    def put(self, name: str, raw: bytes) -> GGUFBytes:
        self.at[name] = len(self.data)
        self.data += raw
        return self

    def kv(self, key: str | bytes, kind: int, value: bytes, *, key_length: int | None = None) -> GGUFBytes:
        """``value`` as the file has it: for strings with their length, for arrays with type and count."""
        self.put("key", string(key, key_length))
        self.put("type", u32(kind))
        return self.put("value", value)

    def tensor(
        self,
        name: str | bytes,
        dims: Sequence[int],
        kind: int = F32_TENSOR,
        offset: int = 0,
        *,
        n_dims: int | None = None,
    ) -> GGUFBytes:
        self.put("name", string(name))
        self.put("n_dims", u32(len(dims) if n_dims is None else n_dims))
        self.put("dims", b"".join(u64(dim) for dim in dims))
        self.put("tensor type", u32(kind))
        return self.put("offset", u64(offset))

    def payload(self, raw: bytes, alignment: int = 32) -> GGUFBytes:
        """Pads to ``alignment`` and appends ``raw``."""
        self.data += bytes(-len(self.data) % alignment)
        return self.put("data", raw)

    def __bytes__(self) -> bytes:
        return bytes(self.data)


SCALARS: dict[str, tuple[int, str, object]] = {
    "test.u8": (U8, "<B", 200),
    "test.i8": (I8, "<b", -100),
    "test.u16": (U16, "<H", 60000),
    "test.i16": (I16, "<h", -30000),
    "test.u32": (U32, "<I", 4_000_000_000),
    "test.i32": (I32, "<i", -2_000_000_000),
    "test.f32": (F32, "<f", 1.5),
    "test.bool": (BOOL, "<B", True),
    "test.u64": (U64, "<Q", 2**64 - 1),
    "test.i64": (I64, "<q", -(2**63)),
    "test.f64": (F64, "<d", 0.1),
}
"""Key: type, how struct packs it, value."""

TOKENS = ["", "a", "\N{GRINNING FACE}", "\0", "x" * 255, "y" * 256, "z" * 300, *(f"token{i}" for i in range(60)), ""]


def complete_file() -> GGUFBytes:
    """A small well-formed file with every metadata type, alone and in arrays, and four tensors; no byte is padding
    at the end, so that no shorter file is well-formed."""
    tensors: list[tuple[str, list[int], int, bytes]] = [
        ("token_embd.weight", [32, 3], Q8_0_TENSOR, bytes(range(102))),
        ("blk.0.norm", [5], F32_TENSOR, struct.pack("<5f", 1, 2, 3, 4, 5)),
        ("blk.0.weight", [64, 1, 2, 1], Q4_0_TENSOR, bytes(range(72))),
        ("scale", [], F32_TENSOR, struct.pack("<f", 0.5)),
    ]
    kvs: list[tuple[str, int, bytes]] = [("general.alignment", U32, u32(64))]
    kvs += [(key, kind, struct.pack(code, value)) for key, (kind, code, value) in SCALARS.items()]
    kvs.append(("test.string", STRING, string("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}\N{SNOWMAN}n")))
    for key, (kind, code, value) in SCALARS.items():
        kvs.append((key + ".array", ARRAY, array(kind, 3, struct.pack(code, value) * 3)))
    kvs.append(("test.tokens", ARRAY, array(STRING, len(TOKENS), b"".join(map(string, TOKENS)))))
    kvs.append(("test.empty", ARRAY, array(STRING, 0, b"")))
    kvs.append(("test.last", U8, b"\x07"))
    file = GGUFBytes(len(tensors), len(kvs))
    for key, kind, raw in kvs:
        file.kv(key, kind, raw)
    offset = 0
    for name, dims, kind, raw in tensors:
        file.tensor(name, dims, kind, offset)
        offset += -(-len(raw) // 64) * 64
    file.at["end of metadata"] = len(file.data)
    for name, _, _, raw in tensors:
        file.payload(raw, 64)
        file.at[name] = file.at["data"]
    return file
