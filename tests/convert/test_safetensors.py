"""Untrusted checkpoint files: every fault is a ConvertError that names the file and the tensor."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import GGUFFile
from gumba.errors import ConvertError
from gumba_convert import convert
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.safetensors import FileReader, read_header
from support.tiny_checkpoints import CONFIG, raw_safetensors, weights, write_checkpoint, write_safetensors


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


HOSTILE = {
    "empty": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "length past the end": ((100).to_bytes(8, "little") + b"{}", "header of 100 bytes"),
    "length 2**64 - 1": (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes"),
    "empty header": (raw_safetensors(b"", b""), "start with"),
    "a list": (raw_safetensors(b"[]", b""), "start with"),
    "a leading space": (raw_safetensors(b" {}", b""), "start with"),
    "half a header": (raw_safetensors(b'{"a":', b""), "not valid JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff":1}', b""), "not valid JSON"),
    "deep nesting": (raw_safetensors(b'{"a":' * 100_000, b""), "not valid JSON"),
    "a number of 10,000 digits": (raw_safetensors(b'{"a":' + b"9" * 10_000 + b"}", b""), "not valid JSON"),
    "same name twice": (raw_safetensors(b'{"a":{},"a":{}}', b""), "'a' appears twice"),
    "same field twice": (raw_safetensors(b'{"a":{"dtype":"F32","dtype":"F16"}}', b""), "'dtype' appears twice"),
    "metadata of numbers": (raw_safetensors({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    "metadata a list": (raw_safetensors({"__metadata__": []}, b""), "__metadata__"),
    "entry a number": (raw_safetensors({"a": 1}, b""), "'a'.*exactly"),
    "field missing": (raw_safetensors({"a": {"dtype": "F32", "shape": [1]}}, b"1234"), "'a'.*exactly"),
    "field too many": (raw_safetensors({"a": entry(extra=1)}, bytes(8)), "'a'.*exactly"),
    "unknown dtype": (raw_safetensors({"a": entry("F33")}, bytes(8)), "'a'.*unknown dtype 'F33'"),
    "dtype a list": (raw_safetensors({"a": entry(["F32"])}, bytes(8)), "'a'.*unknown dtype"),
    "negative size": (raw_safetensors({"a": entry(shape=[-2])}, bytes(8)), "'a'.*shape"),
    "fractional size": (raw_safetensors({"a": entry(shape=[2.0])}, bytes(8)), "'a'.*shape"),
    "boolean size": (raw_safetensors({"a": entry(shape=[True, 2])}, bytes(8)), "'a'.*shape"),
    "shape a number": (raw_safetensors({"a": entry(shape=2)}, bytes(8)), "'a'.*shape"),
    "shape of 100,000 dimensions": (raw_safetensors({"a": entry(shape=[2**62] * 100_000)}, bytes(8)), "'a'.*shape"),
    "product past 64 bits": (raw_safetensors({"a": entry(shape=[2**32, 2**32, 2])}, bytes(8)), "'a'.*takes"),
    "three offsets": (raw_safetensors({"a": entry(offsets=[0, 4, 8])}, bytes(8)), "'a'.*data_offsets"),
    "offsets of text": (raw_safetensors({"a": entry(offsets=["0", "8"])}, bytes(8)), "'a'.*data_offsets"),
    "negative offset": (raw_safetensors({"a": entry(offsets=[-8, 0])}, bytes(8)), "'a'.*outside"),
    "end before begin": (raw_safetensors({"a": entry(offsets=[8, 0])}, bytes(8)), "'a'.*outside"),
    "end past the file": (raw_safetensors({"a": entry()}, bytes(7)), "'a'.*outside"),
    "size against shape": (raw_safetensors({"a": entry(shape=[3])}, bytes(8)), "'a'.*takes 12"),
    "size against dtype": (raw_safetensors({"a": entry("F16")}, bytes(8)), "'a'.*takes 4"),
    "gap at the start": (raw_safetensors({"a": entry(offsets=[4, 12])}, bytes(12)), "'a'.*gap"),
    "gap between": (raw_safetensors({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "'b'.*gap"),
    "overlap": (raw_safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b'.*overlaps"),
    "shared bytes": (raw_safetensors({"a": entry(), "b": entry()}, bytes(8)), "'b'.*overlaps"),
    "trailing bytes": (raw_safetensors({"a": entry()}, bytes(9)), "1 bytes after"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConvertError, match=rf"bad\.safetensors.*{message}"):
        read_header(path)


def test_every_prefix_and_random_damage(tmp_path: Path) -> None:
    good = raw_safetensors({"a": entry(), "__metadata__": {"x": "y"}, "b": entry("BF16", [2, 2], [8, 16])}, bytes(16))
    path = tmp_path / "x.safetensors"
    path.write_bytes(good)
    assert {name: t.shape for name, t in read_header(path).items()} == {"a": (2,), "b": (2, 2)}
    rng = random.Random(1)
    damaged = [good[:n] for n in range(len(good))]
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) - 16)] = rng.choice(b'\x00\xff{}[]",:0189-eE')
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        try:
            read_header(path)
        except ConvertError:
            continue
        assert len(data) == len(good)


def test_100k_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    n = 100_000
    path.write_bytes(raw_safetensors({str(i): entry("U8", [1], [i, i + 1]) for i in range(n)}, bytes(n)))
    started = time.perf_counter()
    assert len(read_header(path)) == n
    assert time.perf_counter() - started < 20


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": entry()}, bytes(8)))
    tensor = read_header(path)["a"]
    with FileReader() as reader:
        reader.open([tensor])
        np.testing.assert_array_equal(reader.read(tensor, 1, 1), np.zeros(1, np.float32))
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(ConvertError, match=r"x\.safetensors: tensor 'a': the file ended early"):
            reader.read(tensor, 0, 2)


ESCAPES = [
    "../secret.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b.safetensors",
    "a\\b.safetensors",
    "x\0.safetensors",
    "C:x.safetensors",
    "link.safetensors",
    None,
    5,
    ["model.safetensors"],
]


@pytest.mark.parametrize("name", ESCAPES)
def test_index_cannot_leave_the_folder(tmp_path: Path, name: Any) -> None:
    write_checkpoint(tmp_path / "hf")
    model = tmp_path / "hf" / "model.safetensors"
    model.rename(tmp_path / "secret.safetensors")
    (tmp_path / "hf" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(weights(CONFIG), name)}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConvertError, match=r"plain file name|leads out of the folder"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "README.md", "tokenizer.model"])
def test_links_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "hf", files={"README.md": "hello"})
    path = tmp_path / "hf" / name
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes() if path.exists() else b"x")
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    with pytest.raises(ConvertError, match="leads out of the folder"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def moved_to_blobs(folder: Path, blobs: Path) -> None:
    """Replace all files of a folder by links to `blobs`, as in the hub's cache."""
    blobs.mkdir(parents=True, exist_ok=True)
    for path in list(folder.rglob("*")):
        if path.is_file():
            blob = blobs / path.relative_to(folder).as_posix().replace("/", "-")
            path.rename(blob)
            path.symlink_to(os.path.relpath(blob, path.parent))


@pytest.mark.parametrize("repository", ["models--a--b", "a--b"])  # Hugging Face's cache, ModelScope's
def test_links_inside_a_repository_in_the_hub_cache_are_followed(tmp_path: Path, repository: str) -> None:
    """Files of the snapshot and of a folder below it, a link to a link, and the snapshot reached over a link."""
    snapshot = tmp_path / repository / "snapshots" / "0123"
    write_checkpoint(snapshot)
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    moved_to_blobs(snapshot, tmp_path / repository / "blobs")
    (snapshot.parent / "4567").mkdir()
    (snapshot / "README.md").symlink_to("../4567/README.md")
    (snapshot.parent / "4567" / "README.md").symlink_to("../../blobs/config.json")
    convert(snapshot, tmp_path / "out.gguf")
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert file.metadata["general.name"] == "b"  # not the revision's
    part = Checkpoint(snapshot).below("1_Pooling")
    assert part is not None and part.config == {"pooling_mode_mean_tokens": True}
    (tmp_path / "link").symlink_to(snapshot)
    assert Checkpoint(tmp_path / "link").has("README.md")


@pytest.mark.parametrize("within", ["", "1_Pooling"])
def test_links_to_another_repository_of_the_cache_are_refused(tmp_path: Path, within: str) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    other = tmp_path / "models--a--c" / "blobs"
    write_checkpoint(snapshot)
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text("{}")
    moved_to_blobs(snapshot / within if within else snapshot, other)
    with pytest.raises(ConvertError, match=r"a link that leads out of the folder, to .*blobs.*; .* put a copy"):
        Checkpoint(snapshot).below("1_Pooling")


def test_links_between_folders_of_a_checkpoint_are_followed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", files={"pooling.json": {"word_embedding_dimension": 8}})
    (tmp_path / "hf" / "1_Pooling").mkdir()
    (tmp_path / "hf" / "1_Pooling" / "config.json").symlink_to("../pooling.json")
    part = Checkpoint(tmp_path / "hf").below("1_Pooling")
    assert part is not None and part.config == {"word_embedding_dimension": 8}


def test_circular_link(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(ConvertError):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_special_files_do_not_hang(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "hf" / name)
    with pytest.raises(ConvertError):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


INDEXES = [
    ({}, "no weight_map"),
    ({"weight_map": []}, "no weight_map"),
    ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors"),
    ({"weight_map": {"a": "weights.safetensors"}}, "'a' is not in weights.safetensors"),
    ("{", "not valid JSON"),
    ("[" * 100_000, "not valid JSON"),
    ("[]", "expected a JSON object"),
    (b"\xff", "not UTF-8"),
]


@pytest.mark.parametrize(("index", "message"), INDEXES)
def test_bad_index(tmp_path: Path, index: Any, message: str) -> None:
    write_checkpoint(tmp_path / "hf", files={"model.safetensors.index.json": index})
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "weights.safetensors")
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def halves(folder: Path, names: tuple[str, str], seed: int) -> dict[str, str]:
    """Weights in two files, and their index's weight_map."""
    made = weights(CONFIG, seed)
    cut = len(made) // 2
    weight_map = {}
    for name, keys in zip(names, (list(made)[:cut], list(made)[cut:]), strict=True):
        write_safetensors(folder / name, {key: made[key] for key in keys})
        weight_map |= dict.fromkeys(keys, name)
    return weight_map


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_model_safetensors_takes_precedence_over_an_index(tmp_path: Path) -> None:
    """As in transformers 5.24: save_pretrained() of a smaller model keeps the old index, but removes its shards."""
    write_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "wanted.gguf")
    wanted = (tmp_path / "wanted.gguf").read_bytes()
    weight_map = halves(tmp_path / "hf", SHARDS, 7)
    for old in (weight_map, dict.fromkeys(weight_map, "model.safetensors")):
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": old}))
        report = convert(tmp_path / "hf", tmp_path / "out.gguf")
        assert (tmp_path / "out.gguf").read_bytes() == wanted
        assert [w for w in report.warnings if "not read" in w] == (
            ["model.safetensors is converted; model.safetensors.index.json and the files that it names are not read"]
            if old is weight_map
            else []
        )
        for name in SHARDS:
            (tmp_path / "hf" / name).unlink(missing_ok=True)


def test_all_tensors_of_the_files_of_an_index_are_read(tmp_path: Path) -> None:
    """transformers reads complete files, with tensors that the index omits; of duplicates it uses the last file's."""
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    weight_map = halves(tmp_path / "hf", SHARDS, 0)
    weight_map.popitem()
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert Checkpoint(tmp_path / "hf").tensors.keys() == weights(CONFIG).keys()
    first = next(iter(weights(CONFIG)))
    (tmp_path / "hf" / SHARDS[1]).write_bytes((tmp_path / "hf" / SHARDS[0]).read_bytes())
    weight_map = dict.fromkeys(weight_map, SHARDS[0])
    weight_map = {key: name for key, name in weight_map.items() if key in Checkpoint(tmp_path / "hf")._header(name, "")}
    weight_map[first] = SHARDS[1]
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint(tmp_path / "hf")
    assert {tensor.path.name for tensor in checkpoint.tensors.values()} == {SHARDS[1]}
    assert len(checkpoint.warnings) == 1 and f"that of {SHARDS[1]} is converted" in checkpoint.warnings[0]


def test_shards_without_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    halves(tmp_path / "hf", SHARDS, 0)
    assert Checkpoint(tmp_path / "hf").tensors.keys() == weights(CONFIG).keys()
    for name in ("model-00001-of-00001.safetensors", SHARDS[1]):
        (tmp_path / "hf" / SHARDS[0]).replace(tmp_path / "hf" / name)
        with pytest.raises(
            ConvertError, match=r"no model\.safetensors\.index\.json, and .* not all shards of one model"
        ):
            assert Checkpoint(tmp_path / "hf").tensors
        (tmp_path / "hf" / name).replace(tmp_path / "hf" / SHARDS[0])
        write_safetensors(tmp_path / "hf" / SHARDS[1], {})


@pytest.mark.parametrize(("name", "index"), [("weights.safetensors", False), ("my.safetensors.index.json", True)])
def test_weights_named_by_the_configuration(tmp_path: Path, name: str, index: bool) -> None:
    write_checkpoint(tmp_path / "hf", config={"transformers_weights": name})
    weight_map = halves(tmp_path / "hf", ("a.safetensors", "b.safetensors"), 3)
    wanted = "ab"
    if index:
        (tmp_path / "hf" / name).write_text(json.dumps({"weight_map": weight_map}))
    else:
        write_safetensors(tmp_path / "hf" / name, weights(CONFIG, 3))
        wanted = "w"
    assert {t.path.name[0] for t in Checkpoint(tmp_path / "hf").tensors.values()} == set(wanted)
    write_checkpoint(tmp_path / "hf", config={"transformers_weights": "../x.safetensors"})
    with pytest.raises(ConvertError, match="not a plain file name"):
        assert Checkpoint(tmp_path / "hf").tensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("consolidated.safetensors", "Mistral's own names of tensors"),
        ("pytorch_model.bin", "PyTorch weights"),
        ("model.fp16.safetensors", r"no model\.safetensors.*\(but model\.fp16\.safetensors\)"),
    ],
)
def test_other_weights(tmp_path: Path, name: str, message: str) -> None:
    """Beside model.safetensors they change nothing; alone they are refused by name."""
    write_checkpoint(tmp_path / "hf", files={name: b"x"})
    assert len(Checkpoint(tmp_path / "hf").tensors) == len(weights(CONFIG))
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ConvertError, match=message):
        assert Checkpoint(tmp_path / "hf").tensors


def test_a_folder_in_mistrals_format(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ConvertError, match=r"no config\.json.*params\.json is Mistral's own form"):
        Checkpoint(tmp_path)
