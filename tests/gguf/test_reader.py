"""What well-formed files give. Oracles: files built byte by byte, and the `gguf` package's writer and reader."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gumba.errors import GGUFError, ModelError
from gumba.gguf import GGML_TYPES, NAMES, GGUFArray, GGUFFile, ValueType
from gumba.gguf import array as array_module
from gumba.gguf import reader as reader_module
from support.gguf_bytes import ARRAY as ARRAY_ID
from support.gguf_bytes import (
    F32_TENSOR,
    SCALARS,
    STRING,
    TOKENS,
    U8,
    U32,
    GGUFBytes,
    array,
    complete_file,
    string,
    u32,
)


def write(path: Path, data: GGUFBytes | bytes) -> Path:
    path.write_bytes(bytes(data))
    return path


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    return write(tmp_path / "complete.gguf", complete_file())


def test_every_metadata_type(complete: Path) -> None:
    with GGUFFile(complete) as file:
        for key, (kind, _, value) in SCALARS.items():
            assert file.metadata[key] == value
            assert type(file.metadata[key]) is type(value)
            assert file.metadata.value_type(key) == kind
            many = file.metadata[key + ".array"]
            assert isinstance(many, GGUFArray)
            assert many.element_type == kind
            assert len(many) == 3
            assert many.to_list() == [value] * 3 == list(many)
            assert type(many[-1]) is type(value)
            numbers = many.to_numpy()
            assert numbers.tolist() == [value] * 3
            assert numbers.dtype.isnative and numbers.flags.aligned and not numbers.flags.writeable
        assert file.metadata["test.string"] == "grü☃n"
        assert file.metadata["test.last"] == 7
        assert len(file.metadata) == len(list(file.metadata)) == 2 * len(SCALARS) + 5
        assert file.metadata.get("nothing") is None and "nothing" not in file.metadata


def test_string_array(complete: Path) -> None:
    with GGUFFile(complete) as file:
        tokens = file.metadata["test.tokens"]
        assert isinstance(tokens, GGUFArray)
        assert tokens.element_type is ValueType.STRING
        assert tokens.to_list() == TOKENS == list(tokens)
        assert tokens.to_bytes_list() == [token.encode() for token in TOKENS]
        assert [tokens[i] for i in range(-len(TOKENS), len(TOKENS))] == TOKENS * 2
        assert tokens[3:40:7] == TOKENS[3:40:7]
        for index in (len(TOKENS), -len(TOKENS) - 1):
            with pytest.raises(IndexError):
                tokens[index]
        empty = file.metadata["test.empty"]
        assert isinstance(empty, GGUFArray)
        assert empty.to_list() == empty.to_bytes_list() == []
        with pytest.raises(GGUFError, match=r"test\.tokens.*array of strings"):
            tokens.to_numpy()
        with pytest.raises(GGUFError, match=r"test\.u8\.array.*UINT8"):
            file.require("test.u8.array", GGUFArray).to_bytes_list()


def test_tensors(complete: Path) -> None:
    made = complete_file()
    with GGUFFile(complete) as file:
        assert (file.version, file.byte_order, file.alignment) == (3, "little", 64)
        assert file.file_size == len(bytes(made))
        assert list(file.tensors) == ["token_embd.weight", "blk.0.norm", "blk.0.weight", "scale"]
        assert [t.shape for t in file.tensors.values()] == [(3, 32), (5,), (1, 2, 1, 64), ()]
        assert [t.type.name for t in file.tensors.values()] == ["q8_0", "f32", "q4_0", "f32"]
        assert [t.n_bytes for t in file.tensors.values()] == [102, 20, 72, 4]
        for name, tensor in file.tensors.items():
            assert tensor.name == name and tensor.path == complete
            assert tensor.offset == made.at[name]
            assert tensor.data.dtype == np.uint8 and tensor.data.shape == (tensor.n_bytes,)
            assert tensor.data.tobytes() == bytes(made)[tensor.offset : tensor.offset + tensor.n_bytes]
            assert not tensor.data.flags.writeable and not tensor.data.flags.owndata
        assert np.array_equal(file.tensors["blk.0.norm"].data.view("<f4"), [1, 2, 3, 4, 5])


@pytest.mark.parametrize("version", [2, 3])
def test_versions(tmp_path: Path, version: int) -> None:
    data = GGUFBytes(0, 1, version=version).kv("a.b", U8, b"\x05")
    with GGUFFile(write(tmp_path / "a.gguf", data)) as file:
        assert file.version == version and file.metadata["a.b"] == 5


ACCEPTED = {
    "empty": GGUFBytes(),
    "trailing-bytes": GGUFBytes(1, 0).tensor("a", [1]).payload(bytes(4)).put("more", b"anything"),
    "last-tensor-padded": GGUFBytes(1, 0).tensor("a", [1]).payload(bytes(32)),
    "zero-dim": GGUFBytes(1, 0).tensor("a", [0, 4]).payload(b""),
    "zero-dim-no-padding": GGUFBytes(1, 0).tensor("a", [0, 4]),
    "zero-dim-then-another": GGUFBytes(2, 0).tensor("a", [8, 0]).tensor("b", [1]).payload(bytes(4)),
    "zero-dim-of-blocks": GGUFBytes(1, 0).tensor("a", [0], 14),
    "scalar": GGUFBytes(1, 0).tensor("a", []).payload(bytes(4)),
    "name-of-63": GGUFBytes(1, 0).tensor("n" * 63, [1]).payload(bytes(4)),
    "alignment-1": GGUFBytes(2, 1)
    .kv("general.alignment", U32, u32(1))
    .tensor("a", [3], 24)
    .tensor("b", [1], 24, 3)
    .payload(bytes(4), 1),
    "alignment-2-to-31-without-tensors": GGUFBytes(0, 1).kv("general.alignment", U32, u32(2**31)),
    "empty-array": GGUFBytes(0, 1).kv("a", ARRAY_ID, array(U8, 0, b"")),
    "merged-from-shards": GGUFBytes(0, 2).kv("split.count", 2, b"\0\0").kv("split.tensors.count", 5, u32(5)),
    "one-shard": GGUFBytes(0, 2).kv("split.count", 2, b"\1\0").kv("split.no", 2, b"\0\0"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_but_well_formed(tmp_path: Path, name: str) -> None:
    with GGUFFile(write(tmp_path / "a.gguf", ACCEPTED[name])) as file:
        for tensor in file.tensors.values():
            assert tensor.data.size == tensor.n_bytes


def test_typed_getters(complete: Path) -> None:
    with GGUFFile(complete) as file:
        assert file.require("test.u64", int) == 2**64 - 1
        assert file.require("test.f32", float) == 1.5
        assert file.require("test.bool", bool) is True
        assert file.require("test.string", str) == "grü☃n"
        assert len(file.require("test.tokens", GGUFArray)) == len(TOKENS)
        assert file.get("missing", int) is None
        assert file.get("missing", int, 7) == 7
        with pytest.raises(ModelError, match=r"missing\.key is missing"):
            file.require("missing.key", int)
        wrong: list[tuple[str, type]] = [
            ("test.bool", int),
            ("test.u8", bool),
            ("test.u8", float),
            ("test.f64", int),
            ("test.string", int),
            ("test.u8", str),
            ("test.tokens", str),
        ]
        for key, kind in wrong:
            with pytest.raises(ModelError, match=rf"{key}.*expected"):
                file.get(key, kind, None)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    data = GGUFBytes(0, 3).kv("a.name", STRING, string(b"caf\xe9"))
    name_at = data.at["value"] + 8 + 3
    data.kv("a.tokens", ARRAY_ID, array(STRING, 3, string("ok") + string(b"\xff") + string(b"\xed\xa0\x80")))
    token_at = data.at["value"] + 12 + 10 + 8
    data.kv("a.good", U8, b"\1")
    with GGUFFile(write(tmp_path / "a.gguf", data)) as file:
        assert file.metadata["a.good"] == 1
        with pytest.raises(GGUFError, match=r"a\.name") as caught:
            file.metadata["a.name"]
        assert caught.value.offset == name_at
        tokens = file.require("a.tokens", GGUFArray)
        assert tokens.to_bytes_list() == [b"ok", b"\xff", b"\xed\xa0\x80"]
        assert tokens[0] == "ok"
        for read in (tokens.to_list, lambda: tokens[1]):
            with pytest.raises(GGUFError, match=r"a\.tokens.*string 1 is not UTF-8") as caught:
                read()
            assert caught.value.offset == token_at
        with pytest.raises(GGUFError, match="string 2 is not UTF-8"):
            tokens[2]


def test_bools_in_arrays_are_checked(tmp_path: Path) -> None:
    data = GGUFBytes(0, 1).kv("a", ARRAY_ID, array(7, 3, b"\0\1\2"))
    with GGUFFile(write(tmp_path / "a.gguf", data)) as file:
        for read in (file.require("a", GGUFArray).to_numpy, file.require("a", GGUFArray).to_list):
            with pytest.raises(GGUFError, match=r"element 2 is 2"):
                read()


def test_numbers_are_views_where_the_file_aligns_them(tmp_path: Path) -> None:
    shared = {}
    for key in ("k", "kk", "kkk", "kkkk"):
        numbers = np.arange(10, dtype="<f4")
        data = GGUFBytes(0, 1).kv(key, ARRAY_ID, array(6, 10, numbers.tobytes()))
        with GGUFFile(write(tmp_path / f"{key}.gguf", data)) as file:
            found = file.require(key, GGUFArray)
            one, other = found.to_numpy(), found.to_numpy()
            assert np.array_equal(one, numbers) and one.flags.aligned
            shared[found.offset % 4] = np.shares_memory(one, other)
    assert shared == {0: True, 1: False, 2: False, 3: False}


def test_views_outlive_the_file_and_nothing_else_does(complete: Path) -> None:
    with GGUFFile(complete) as file:
        data = file.tensors["blk.0.norm"].data
        tokens = file.require("test.tokens", GGUFArray)
        numbers = file.require("test.f64.array", GGUFArray)
    file.close()
    assert np.array_equal(data.view("<f4"), [1, 2, 3, 4, 5])
    assert file.metadata["test.u8"] == 200 and file.metadata["test.string"] == "grü☃n"
    for read in (tokens.to_list, tokens.to_bytes_list, numbers.to_numpy, lambda: tokens[0]):
        with pytest.raises(GGUFError, match="closed"):
            read()
    with pytest.raises(GGUFError, match="closed"):
        _ = file.tensors["scale"].data


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let a mapped file shrink")
def test_file_that_changes_while_open(complete: Path, tmp_path: Path) -> None:
    original = complete.read_bytes()
    with GGUFFile(complete) as file:
        tokens = file.require("test.tokens", GGUFArray)
        with complete.open("ab") as grown:
            grown.write(bytes(10000))
        assert tokens.to_list() == TOKENS
        os.truncate(complete, 30)
        for read in (tokens.to_list, lambda: tokens[0], lambda: file.tensors["scale"].data):
            with pytest.raises(GGUFError, match="shrunk") as caught:
                read()
            assert caught.value.offset == 30
    complete.write_bytes(original)
    with GGUFFile(complete) as file:
        write(tmp_path / "new", b"replaced").replace(complete)
        assert file.require("test.tokens", GGUFArray).to_list() == TOKENS
        assert file.tensors["scale"].data.tobytes() == struct.pack("<f", 0.5)


def test_file_descriptors_do_not_leak(complete: Path) -> None:
    listing = Path("/proc/self/fd")
    if not listing.is_dir():
        pytest.skip("no /proc here")
    before = len(list(listing.iterdir()))
    for _ in range(20):
        with GGUFFile(complete):
            pass
    assert len(list(listing.iterdir())) == before


def naive_bounds(data: bytes, count: int) -> list[int]:
    position, bounds = 0, []
    for _ in range(count):
        bounds.append(position + 8)
        position += 8 + int.from_bytes(data[position : position + 8], "little")
    return [*bounds, position + 8]


TRICKY_TEXT = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"", b"\0", b"\0" * 7, b"\0" * 8, b"\0" * 9, b"\1" + bytes(7), b"\1" + bytes(15)]),
    st.sampled_from([0, 1, 7, 8, 127, 254, 255, 256, 257, 511, 512, 70000]).map(lambda n: b"t" * n),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TRICKY_TEXT, max_size=40), st.integers(0, 3), st.sampled_from([1, 9, 64, 1000, 1 << 18]))
def test_bounds_of_strings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[bytes], many: int, window: int
) -> None:
    """Empty, long and NUL-ridden strings, and any window's edge, leave the walk exact."""
    monkeypatch.setattr(array_module, "_WINDOW", window)
    monkeypatch.setattr(array_module, "_BURST", 2)
    monkeypatch.setattr(array_module, "_PORTION", 7)
    texts = texts + [b"some word"] * (many * 20) + texts
    raw = b"".join(map(string, texts))
    data = GGUFBytes(0, 2).kv("a", ARRAY_ID, array(STRING, len(texts), raw))
    start = data.at["value"] + 12
    data.kv("b", U8, b"\7")
    with GGUFFile(write(tmp_path / "a.gguf", data)) as file:
        found = file.require("a", GGUFArray)
        assert found._bounds is not None
        assert (found._bounds - start).tolist() == naive_bounds(raw, len(texts))
        assert found.to_bytes_list() == texts
        assert file.metadata["b"] == 7


def test_large_vocabulary_is_not_decoded_at_open(tmp_path: Path) -> None:
    n = 262_144
    texts = [f"token {i:x}" for i in range(n)]
    data = GGUFBytes(0, 2).kv("t.tokens", ARRAY_ID, array(STRING, n, b"".join(map(string, texts))))
    path = write(tmp_path / "a.gguf", data.kv("t.after", U8, b"\7"))
    tracemalloc.start()
    try:
        file = GGUFFile(path)
        at_open = tracemalloc.get_traced_memory()[1]
        tokens = file.require("t.tokens", GGUFArray)
        assert tokens[n - 1] == texts[-1]
    finally:
        tracemalloc.stop()
    with file:
        assert at_open < n * 8 + 4_000_000  # one position each and working room; as Python strings 15 MB more
        assert file.metadata["t.after"] == 7
        assert tokens.to_list() == texts


def test_importing_and_opening_needs_no_compiler(complete: Path) -> None:
    program = (
        "import sys; from gumba.gguf import GGUFFile; f = GGUFFile(sys.argv[1]); f.require('test.u8', int); "
        "print([m for m in ('numba', 'llvmlite', 'gguf', 'jinja2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program, complete], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_types_agree_with_the_gguf_package() -> None:
    for kind, (block_size, type_size) in gguf.GGML_QUANT_SIZES.items():
        block = GGML_TYPES[int(kind)]
        assert block.id == int(kind) and block.name == kind.name.lower() and NAMES[block.name] == block.id
        assert block.block_size == block_size
        if block.name != "q8_1":  # ggml keeps its scale and sum in float16, the package counts float32; never in files
            assert block.type_size == type_size
    assert {kind.value: kind.name for kind in gguf.GGUFValueType} == {kind.value: kind.name for kind in ValueType}


def random_value(rng: random.Random) -> tuple[gguf.GGUFValueType, object]:
    kinds = gguf.GGUFValueType
    kind = rng.choice([k for k in kinds if k is not kinds.ARRAY])
    if kind is kinds.STRING:
        return kind, "".join(rng.choices("ab \N{GREEK SMALL LETTER ALPHA}\N{HIRAGANA LETTER A}\0", k=rng.randrange(20)))
    if kind is kinds.BOOL:
        return kind, rng.random() < 0.5
    if kind in (kinds.FLOAT32, kinds.FLOAT64):
        return kind, float(np.float32(rng.gauss(0, 1e3)))
    info = np.iinfo(kind.name.lower())
    return kind, rng.randint(int(info.min), int(info.max))


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_through_the_gguf_package(tmp_path: Path, seed: int) -> None:
    """256 random keys and 256 random tensors, as llama.cpp's own test makes; gguf.GGUFReader must agree."""
    rng = random.Random(seed)
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "test")
    if seed:
        writer.add_custom_alignment(8 << seed)
    expected: dict[str, object] = {}
    for index in range(256):
        kind, value = random_value(rng)
        key = f"random.{index}"
        if rng.random() < 0.3:
            value = [value] * rng.randrange(1, 5)
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, kind)
        else:
            writer.add_key_value(key, value, kind)
        expected[key] = value
    numbers = np.random.default_rng(seed)
    for index in range(256):
        shape = tuple(rng.randrange(1, 6) for _ in range(rng.randrange(1, 5)))
        if rng.random() < 0.5:
            writer.add_tensor(f"tensor.{index}", numbers.standard_normal(shape).astype(rng.choice(["f2", "f4", "f8"])))
        else:
            kind = rng.choice([k for k in gguf.GGMLQuantizationType if k.name[0] in "QIT" and k.name != "Q8_1"])
            row = gguf.GGML_QUANT_SIZES[kind][1]
            blocks = numbers.integers(0, 256, (*shape[:-1], shape[-1] * row), dtype=np.uint8)
            writer.add_tensor(f"tensor.{index}", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    oracle = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        assert file.alignment == oracle.alignment and file.version == 3
        for key, value in expected.items():
            found = file.metadata[key]
            assert (found.to_list() if isinstance(found, GGUFArray) else found) == value
            assert value == oracle.fields[key].contents()
        assert [f"GGUF.{n}" for n in ("version", "tensor_count", "kv_count")] + list(file.metadata) == [*oracle.fields]
        assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
        for tensor in oracle.tensors:
            mine = file.tensors[tensor.name]
            assert mine.type.id == tensor.tensor_type
            assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (mine.offset, mine.n_bytes) == (tensor.data_offset, tensor.n_bytes)
            assert mine.data.tobytes() == tensor.data.tobytes()


def write_shards(folder: Path, n_tensors: int, per_shard: int) -> list[Path]:
    """A model in shards, written by the gguf package."""
    writer = gguf.GGUFWriter(folder / "some.model.gguf", "test", split_max_tensors=per_shard)
    writer.add_string("general.name", "sharded")
    for index in range(n_tensors):
        writer.add_tensor(f"tensor.{index}", np.full((2, 3), index, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_shards(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 5, 2)
    assert [path.name for path in paths] == [f"some.model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with GGUFFile(paths[0]) as file:
        assert list(file.shards) == paths
        assert file.path == paths[0]
        assert file.file_size == sum(path.stat().st_size for path in paths)
        assert file.metadata["general.name"] == "sharded"
        assert list(file.tensors) == [f"tensor.{i}" for i in range(5)]
        for index, tensor in enumerate(file.tensors.values()):
            assert tensor.path == paths[index // 2]
            assert np.array_equal(tensor.data.view("<f4"), np.full(6, index))


def shard(number: int, count: int, names: str, total: int | None = None, kind: int = 2) -> GGUFBytes:
    """Shard ``number`` (from 0) of ``count`` with one-element tensors of these one-letter names."""
    size = {2: "<H", 5: "<i", 6: "<f"}[kind]
    data = GGUFBytes(len(names), 2 + (total is not None))
    data.kv("split.no", kind, struct.pack(size, number)).kv("split.count", kind, struct.pack(size, count))
    if total is not None:
        data.kv("split.tensors.count", 5, struct.pack("<i", total))
    for index, name in enumerate(names):
        data.tensor(name, [1], F32_TENSOR, 32 * index)
    return data.payload(bytes(32 * len(names)))


BAD_SHARDS: dict[str, tuple[dict[str, GGUFBytes | None], str]] = {
    "second-missing": ({"m-00001-of-00002": shard(0, 2, "a"), "m-00002-of-00002": None}, "00002-of-00002.*opened"),
    "opened-second": ({"m-00002-of-00002": shard(1, 2, "a")}, r"split\.no.*shard 2 of 2.*open the first"),
    "same-twice": ({"m-00001-of-00002": shard(0, 2, "a"), "m-00002-of-00002": shard(0, 2, "b")}, r"split\.no.*shard 1"),
    "tensor-twice": ({"m-00001-of-00002": shard(0, 2, "a"), "m-00002-of-00002": shard(1, 2, "a")}, "tensor a.*also in"),
    "counts-differ": ({"m-00001-of-00002": shard(0, 2, "a"), "m-00002-of-00002": shard(1, 3, "b")}, r"split\.count.*3"),
    "not-a-shard": ({"m-00001-of-00002": shard(0, 2, "a"), "m-00002-of-00002": GGUFBytes()}, r"split\.count"),
    "no-beyond-count": ({"m-00001-of-00002": shard(2, 2, "a")}, r"split\.no.*is 2"),
    "total-wrong": ({"m-00001-of-00002": shard(0, 2, "a", 3), "m-00002-of-00002": shard(1, 2, "b")}, r"tensors\.count"),
    "name-not-numbered": ({"m": shard(0, 2, "a")}, r"split\.count.*must be named"),
    "name-of-another-count": ({"m-00001-of-00003": shard(0, 2, "a")}, r"split\.count.*must be named"),
    "count-65535": ({"m-00001-of-65535": shard(0, 65535, "a")}, "00002-of-65535.*opened"),
    "negative": ({"m-00001-of-00002": shard(-1, 2, "a", kind=5)}, r"split\.no.*is -1"),
    "floats": ({"m-00001-of-00002": shard(0, 2, "a", kind=6)}, r"split\.count.*FLOAT32"),
    "number-missing": ({"m-00001-of-00002": GGUFBytes(0, 1).kv("split.count", 2, b"\2\0")}, r"split\.no.*missing"),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards(tmp_path: Path, name: str) -> None:
    shards, message = BAD_SHARDS[name]
    for stem, data in shards.items():
        if data is not None:
            write(tmp_path / f"{stem}.gguf", data)
    with pytest.raises(GGUFError, match=message):
        GGUFFile(tmp_path / f"{next(iter(shards))}.gguf")


def test_damaged_second_shard_is_named(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 4, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    with pytest.raises(GGUFError, match=r"00002-of-00002\.gguf, tensor tensor\.3 data"):
        GGUFFile(paths[0])


def test_entries_of_all_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m-00001-of-00002.gguf", shard(0, 2, "ab"))
    write(tmp_path / "m-00002-of-00002.gguf", shard(1, 2, "cd"))
    monkeypatch.setattr(reader_module, "MAX_ENTRIES", 8)
    GGUFFile(tmp_path / "m-00001-of-00002.gguf").close()
    monkeypatch.setattr(reader_module, "MAX_ENTRIES", 7)
    with pytest.raises(GGUFError, match=r"00002-of-00002.*more than 7"):
        GGUFFile(tmp_path / "m-00001-of-00002.gguf")
