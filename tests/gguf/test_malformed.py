"""Every malformed file gives a GGUFError that names the field and the byte offset, at little cost.

The cases are those of llama.cpp's tests/test-gguf.cpp, and those that published vulnerabilities of GGUF readers
suggest: counts that multiply past 64 bits, a 4-byte file, padding that wraps, removed types, tensors past the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gumba.errors import GGUFError
from gumba.gguf import GGUFArray, GGUFFile
from support.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F32_TENSOR,
    I32,
    Q4_0_TENSOR,
    Q6_K_TENSOR,
    STRING,
    U8,
    U32,
    U64,
    GGUFBytes,
    array,
    complete_file,
    string,
    u32,
    u64,
)

Case = tuple[GGUFBytes, str, "str | int"]
"""A file; what the error's field must be; where: an offset, or the builder's name of a field."""


def header_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {
        "bad-magic": (GGUFBytes(magic=b"FUGG"), "magic", "magic"),
        "big-endian": (GGUFBytes(version=3 << 24), "version", "version"),
    }
    for version in (0, 1, 4, 2**31):
        cases[f"version-{version}"] = (GGUFBytes(version=version), "version", "version")
    for count in (1, 2**16 + 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1):
        cases[f"n-tensors-{count}"] = (GGUFBytes(count, 0), "n_tensors", "n_tensors")
        cases[f"n-kv-{count}"] = (GGUFBytes(0, count), "n_kv", "n_kv")
    return cases


def metadata_cases() -> dict[str, Case]:
    def one(key: str | bytes, kind: int, value: bytes, *, key_length: int | None = None) -> GGUFBytes:
        file = GGUFBytes(0, 1).kv(key, kind, value, key_length=key_length)
        file.at["count"] = file.at["value"] + 4
        file.at["first element"] = file.at["value"] + 12
        return file.put("room", bytes(32))

    cases: dict[str, Case] = {
        "key-size": (one("a", U8, b"\1", key_length=2**64 - 1), "metadata key 0 length", "key"),
        "key-size-past-the-end": (one("a", U8, b"\1", key_length=80), "metadata key 0", 32),
        "key-empty": (one("", U8, b"\1"), "metadata key 0 length", "key"),
        "key-too-long": (one("k" * 65536, U8, b"\1"), "metadata key 0 length", "key"),
        "key-not-utf8": (one(b"abc\xff", U8, b"\1"), "metadata key 0", 32 + 3),
        "key-with-nul": (one(b"a\0b", U8, b"\1"), "metadata key 0", 32 + 1),
        "key-type-13": (one("a", 13, b"\1"), "metadata a type", "type"),
        "key-type-minus-1": (one("a", 2**32 - 1, b"\1"), "metadata a type", "type"),
        "key-twice": (
            GGUFBytes(0, 2).kv("a", U8, b"\1").kv("a", U8, b"\1"),
            "metadata key 1",
            "key",
        ),
        "bool-2": (one("a", BOOL, b"\2"), "metadata a", "value"),
        "bool-255": (one("a", BOOL, b"\xff"), "metadata a", "value"),
        "array-of-arrays": (one("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\1"))), "metadata a element type", "value"),
        "array-of-arrays-deep": (
            one("a", ARRAY, array(ARRAY, 1, b"") * 1000 + array(U8, 1, b"\1")),
            "metadata a element type",
            "value",
        ),
        "array-type-13": (one("a", ARRAY, array(13, 1, b"\1")), "metadata a element type", "value"),
        "strings-second-too-long": (
            one("a", ARRAY, array(STRING, 2, string("abc") + string("def", 2**63))),
            "metadata a",
            24 + 8 + 1 + 4 + 12 + 11,
        ),
        "strings-one-byte-too-long": (
            GGUFBytes(0, 1).kv("a", ARRAY, array(STRING, 2, string("abc") + string("def", 4))),
            "metadata a",
            24 + 8 + 1 + 4 + 12 + 11,
        ),
        "strings-no-room-for-a-length": (
            GGUFBytes(0, 1).kv("a", ARRAY, array(STRING, 2, string("abcdefghij"))),
            "metadata a",
            24 + 8 + 1 + 4 + 12 + 18,
        ),
    }
    for length in (65, 2**30 + 1, 2**63, 2**64 - 8, 2**64 - 1):
        cases[f"string-of-{length}"] = (one("a", STRING, string("abc", length)), "metadata a", 24 + 8 + 1 + 4 + 8)
    for count in (100, 2**30 + 1, 2**61, 2**63, 2**64 - 1):
        for name, kind in (("f32", F32), ("u64", U64), ("strings", STRING)):
            cases[f"array-of-{count}-{name}"] = (one("a", ARRAY, array(kind, count, b"")), "metadata a count", "count")
    alignments = {
        "0": (U32, u32(0)),
        "13": (U32, u32(13)),
        "2-to-32-less-1": (U32, u32(-1)),
        "i32": (I32, u32(32)),
        "u64": (U64, u64(32)),
        "string": (STRING, string("32")),
        "array": (ARRAY, array(U32, 1, u32(32))),
    }
    for name, (kind, value) in alignments.items():
        cases[f"alignment-{name}"] = (one("general.alignment", kind, value), "metadata general.alignment", "value")
    return cases


def tensor_cases() -> dict[str, Case]:
    def one(*args: object, data: int = 4, **kwargs: object) -> GGUFBytes:
        return GGUFBytes(1, 0).tensor(*args, **kwargs).payload(bytes(data))  # type: ignore[arg-type]

    def two(second_offset: int, alignment: int | None = None) -> GGUFBytes:
        file = GGUFBytes(2, 0 if alignment is None else 1)
        if alignment is not None:
            file.kv("general.alignment", U32, u32(alignment))
        return file.tensor("a", [9], F32_TENSOR, 0).tensor("b", [1], F32_TENSOR, second_offset).payload(bytes(200))

    cases: dict[str, Case] = {
        "name-empty": (one("", [1]), "tensor 0 name length", "name"),
        "name-of-64": (one("n" * 64, [1]), "tensor 0 name length", "name"),
        "name-of-65": (one("n" * 65, [1]), "tensor 0 name length", "name"),
        "name-not-utf8": (one(b"\xc3(", [1]), "tensor 0 name", 32),
        "name-with-nul": (one(b"a\0b", [1]), "tensor 0 name", 33),
        "name-twice": (
            GGUFBytes(2, 0).tensor("a", [1]).tensor("a", [1], offset=32).payload(bytes(36)),
            "tensor 1 name",
            "name",
        ),
        "n-dims-5": (one("a", [1] * 5), "tensor a n_dims", "n_dims"),
        "n-dims-2-to-32-less-1": (one("a", [1], n_dims=2**32 - 1), "tensor a n_dims", "n_dims"),
        "dim-minus-1": (one("a", [-1]), "tensor a dims", "dims"),
        "dim-2-to-63": (one("a", [2**63]), "tensor a dims", "dims"),
        "dim-2-to-63-times-0": (one("a", [2**63, 0]), "tensor a dims", "dims"),
        "product-2-to-63": (one("a", [2**32, 2**31]), "tensor a dims", "dims"),
        "product-2-to-64": (one("a", [2**32, 2**32]), "tensor a dims", "dims"),
        "product-wraps-to-1": (one("a", [(2**64 + 1) // 274177, 274177]), "tensor a dims", "dims"),
        "bytes-2-to-64": (one("a", [2**62]), "tensor a dims", "dims"),
        "bytes-pad-wraps": (one("a", [2**62 - 4]), "tensor a dims", "dims"),
        "bytes-wrap-for-blocks": (one("a", [2**59], Q4_0_TENSOR), "tensor a dims", "dims"),
        "more-than-the-file": (one("a", [1000]), "tensor a dims", "dims"),
        "row-not-of-32": (one("a", [48], Q4_0_TENSOR, data=64), "tensor a dims", "dims"),
        "row-not-of-256": (one("a", [128, 2], Q6_K_TENSOR, data=256), "tensor a dims", "dims"),
        "scalar-of-blocks": (one("a", [], Q4_0_TENSOR, data=64), "tensor a dims", "dims"),
        "offset-unaligned": (one("a", [1], offset=4), "tensor a offset", "offset"),
        "offset-of-first-not-0": (one("a", [1], offset=32, data=64), "tensor a offset", "offset"),
        "offset-past-the-end": (one("a", [1], offset=2**40), "tensor a offset", "offset"),
        "offset-2-to-64-less-1": (one("a", [1], offset=-1), "tensor a offset", "offset"),
        "offset-2-to-64-less-32": (one("a", [1], offset=-32), "tensor a offset", "offset"),
        "overlap": (two(32), "tensor b offset", "offset"),
        "same-offset": (two(0), "tensor b offset", "offset"),
        "gap": (two(96), "tensor b offset", "offset"),
        "zero-with-data": (
            GGUFBytes(2, 0).tensor("a", [0, 9]).tensor("b", [1], offset=64).payload(bytes(200)),
            "tensor a dims",
            24 + 8 + 1 + 4 + 16 + 4 + 8 + 8 + 1 + 4 + 8 + 4,
        ),
        "unaligned-second": (two(36), "tensor b offset", "offset"),
        "inconsistent-alignment": (two(36, 32), "tensor b offset", "offset"),
        "laid-out-at-32-aligned-to-64": (two(64 - 32, 64), "tensor b offset", "offset"),
        "descending": (
            GGUFBytes(2, 0).tensor("a", [1], offset=32).tensor("b", [1]).payload(bytes(36)),
            "tensor a offset",
            24 + 8 + 1 + 4 + 8 + 4,
        ),
        "one-byte-short": (one("a", [8], data=31), "tensor a data", "data"),
        "second-missing": (
            GGUFBytes(2, 0).tensor("a", [8]).tensor("b", [8], offset=32).payload(bytes(33)),
            "tensor b data",
            96 + 32,
        ),
        "two-huge": (
            GGUFBytes(2, 0).tensor("a", [0x7FFFFFFFFFFFFFC0], 24).tensor("b", [0x7FFFFFFFFFFFFFC0], 24).payload(b""),
            "tensor a dims",
            24 + 8 + 1 + 4,
        ),
        "data-begins-past-the-end": (
            GGUFBytes(1, 1).kv("general.alignment", U32, u32(2**31)).tensor("a", [1]).payload(bytes(4)),
            "tensor a data",
            2**31,
        ),
    }
    for kind in (4, 5, 31, 32, 33, 36, 37, 38, 43, 2**31, 2**32 - 1):
        cases[f"type-{kind}"] = (one("a", [32], kind, data=128), "tensor a type", "tensor type")
    return cases


CASES = header_cases() | metadata_cases() | tensor_cases()


@pytest.mark.parametrize("name", CASES)
def test_malformed_file(tmp_path: Path, name: str) -> None:
    made, field, where = CASES[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(bytes(made))
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    assert caught.value.field == field
    assert caught.value.offset == (made.at[where] if isinstance(where, str) else where)
    assert str(path) in str(caught.value) and field in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "dims", "message"),
    [
        (4, [32], "unknown tensor type 4: q4_2 has been removed from GGUF; take a file of the same model in q4_0, or"),
        (33, [32], "33: q4_0_8_8 has been removed from GGUF; take a file of the same model in q4_0, or convert"),
        (
            36,
            [32],
            "36: iq4_nl_4_4 has been removed from GGUF (or i2_s of bitnet.cpp); take a file of the same model in iq4_nl",
        ),
        (
            99,
            [32],
            "99: q8_2_x4 of ik_llama.cpp, which only that program reads; take a file of the same model in another type",
        ),
        (
            137,
            [256],
            "137: iq2_k of ik_llama.cpp, which only that program reads; take a file of the same model in another",
        ),
        (142, [128], "142: iq2_tn of ik_llama.cpp or pq2_0 of Prism's llama.cpp, which only that program reads; take"),
        (
            43,
            [32],
            "43: a private type of another program, or newer than this version; take a file of the same model in",
        ),
        (
            12,
            [160],
            "tensor a dims, byte 37: rows of 160 elements, but q4_k has blocks of 256: the file is damaged, or",
        ),
        (
            2,
            [48, 2],
            "rows of 48 elements, but q4_0 has blocks of 32: the file is damaged, or written by a faulty program",
        ),
    ],
)
def test_types_that_cannot_be_read(tmp_path: Path, kind: int, dims: list[int], message: str) -> None:
    path = tmp_path / "types.gguf"
    path.write_bytes(bytes(GGUFBytes(1, 0).tensor("a", dims, kind).payload(bytes(1024))))
    with pytest.raises(GGUFError, match=r"tensor a (type|dims), byte") as caught:
        GGUFFile(path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("convert the original checkpoint with gumba convert")


def test_messages_cannot_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(bytes(GGUFBytes(0, 1).kv("\x1b[2Jx" + "y" * 5000, 13, b"\1")))
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000 + len(str(path))


def test_every_prefix(tmp_path: Path) -> None:
    """No shorter file is taken for a whole one, at whatever byte it ends."""
    made = bytes(complete_file())
    path = tmp_path / "prefix.gguf"
    path.write_bytes(made)
    GGUFFile(path).close()
    for size in reversed(range(len(made))):
        os.truncate(path, size)
        try:
            GGUFFile(path).close()
        except GGUFError as error:
            assert error.offset is not None and error.field, size
        else:
            pytest.fail(f"the first {size} of {len(made)} bytes were taken for a whole file")


def read_everything(path: Path) -> None:
    """Opens, and touches every value: each later access must be as safe as the opening."""
    with GGUFFile(path) as file:
        for key in file.metadata:
            try:
                value = file.metadata[key]
                if isinstance(value, GGUFArray):
                    assert len(value.to_list()) == len(value)
            except GGUFError:
                continue
        for tensor in file.tensors.values():
            assert tensor.data.nbytes == tensor.n_bytes
            assert int(tensor.data.astype("u8").sum()) >= 0
            assert tensor.offset + tensor.n_bytes <= file.file_size or tensor.n_bytes == 0


def test_every_flipped_byte(tmp_path: Path) -> None:
    """Whatever one byte of header, metadata or tensor descriptions is changed to: read, or a GGUFError."""
    made = complete_file()
    data = bytearray(bytes(made))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(data)
    refused = 0
    with path.open("r+b", buffering=0) as writer:
        for position in range(made.at["end of metadata"]):
            old = data[position]
            for new in {0, 0xFF, old ^ 1, old ^ 0x80} - {old}:
                writer.seek(position)
                writer.write(bytes([new]))
                try:
                    read_everything(path)
                except GGUFError as error:
                    assert error.field, position
                    refused += 1
            writer.seek(position)
            writer.write(bytes([old]))
    assert refused > 1000
    read_everything(path)


@pytest.mark.parametrize("size", range(24))
def test_file_shorter_than_the_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(bytes(GGUFBytes())[:size])
    with pytest.raises(GGUFError, match=f"{size} bytes"):
        GGUFFile(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    loop = tmp_path / "loop.gguf"
    paths: list[Path | str] = [tmp_path, tmp_path / "missing.gguf", "nul\0byte", "\ud800"]
    if os.name != "nt":
        loop.symlink_to(loop)
        os.mkfifo(tmp_path / "fifo.gguf")
        paths += [loop, tmp_path / "fifo.gguf", "/dev/zero", "/dev/null", "/dev/tty"]
    for path in paths:
        with pytest.raises(GGUFError, match="cannot be opened"):
            GGUFFile(path)


def test_symlink_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(complete_file()))
    link = tmp_path / "model.gguf"
    try:
        link.symlink_to("blob")
    except OSError:
        pytest.skip("no symbolic links here")
    with GGUFFile(link) as file:
        assert file.path == link


MEMORY_CHILD = """
import json, re, sys, time
from pathlib import Path
from gumba.errors import GGUFError
from gumba.gguf import GGUFFile

def peak():  # bytes; the largest this process has been
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

found, base = [], peak()
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        with GGUFFile(path) as file:
            outcome = "read"
            for key in file.metadata:
                file.metadata[key]
    except GGUFError as error:
        outcome = str(error.field)
    except BaseException as error:
        outcome = "bare " + repr(error)
    found.append((Path(path).name, outcome, time.process_time() - start, peak() - base))
print(json.dumps(found))
"""


def sparse(path: Path, begin: GGUFBytes, size: int) -> Path:
    """``begin`` and then zeros up to ``size``, which take no room on the disk."""
    with path.open("wb") as file:
        file.write(bytes(begin))
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("no sparse files of this size here")
    return path


def greedy_files(folder: Path) -> list[Path]:
    """Well and badly formed files that ask for as much as their size lets them."""
    tebibyte = 1 << 40
    paths = [
        sparse(folder / "sparse-nothing", GGUFBytes(), tebibyte),
        sparse(folder / "sparse-keys", GGUFBytes(0, 2**16 + 1), tebibyte),
        sparse(folder / "sparse-tensors", GGUFBytes(2**16 + 1, 0), tebibyte),
        sparse(folder / "sparse-string", GGUFBytes(0, 1).kv("a", STRING, u64(2**39)), tebibyte),
    ]
    for name, kind, count in (("f64", 12, 2**36), ("strings", STRING, 2**36), ("many-strings", STRING, 2**22 + 1)):
        begin = GGUFBytes(0, 1).kv("a", ARRAY, u32(kind) + u64(count))
        paths.append(sparse(folder / f"sparse-{name}", begin, tebibyte))
    keys = GGUFBytes(0, 2**16)
    for index in range(2**16):
        keys.kv(f"{index}", U8, b"\1")
    (folder / "keys").write_bytes(bytes(keys))
    tensors = GGUFBytes(2**16, 0)
    for index in range(2**16):
        tensors.tensor(f"{index}", [0, 1, 1, 1])
    (folder / "tensors").write_bytes(bytes(tensors))
    long_keys = GGUFBytes(0, 1200)
    for index in range(1200):
        long_keys.kv(f"\N{GRINNING FACE}{index:05}" + "k" * 8000, U8, b"\1")
    (folder / "long-keys").write_bytes(bytes(long_keys))
    empty = GGUFBytes(0, 1).kv("a", ARRAY, array(STRING, 2**22, bytes(8 * 2**22)))
    (folder / "empty-strings").write_bytes(bytes(empty))
    return [*paths, *(folder / name for name in ("keys", "tensors", "long-keys", "empty-strings"))]


def test_memory_and_time_stay_bounded(tmp_path: Path) -> None:
    """In a process of its own, each malformed file, then greedy ones: 64 MB and twice the file, five seconds each."""
    pytest.importorskip("resource")
    paths = []
    for name, (made, _, _) in CASES.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(bytes(made))
    greedy = greedy_files(tmp_path)
    sizes = {path.name: path.stat().st_size for path in paths + greedy}
    command = [sys.executable, "-c", MEMORY_CHILD, *map(str, sorted(paths + greedy, key=lambda p: sizes[p.name]))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(ran.stdout)
    assert len(found) == len(paths) + len(greedy)
    for name, outcome, seconds, grown in found:
        assert not outcome.startswith("bare"), (name, outcome)
        assert seconds < 5, (name, seconds)
        assert grown < 64_000_000 + 2 * sizes[name], (name, grown)
    outcomes = {name: outcome for name, outcome, _, _ in found}
    assert {name: outcomes[name] for name in ("keys", "tensors", "empty-strings", "sparse-nothing")} == {
        "keys": "read",
        "tensors": "read",
        "empty-strings": "read",
        "sparse-nothing": "read",
    }
    assert outcomes["sparse-strings"] == outcomes["sparse-f64"] == outcomes["sparse-many-strings"] == "metadata a count"
    assert (outcomes["sparse-keys"], outcomes["sparse-tensors"]) == ("n_kv", "n_tensors")
    assert outcomes["sparse-string"] == "metadata a" and outcomes["long-keys"].startswith("metadata key 5")
