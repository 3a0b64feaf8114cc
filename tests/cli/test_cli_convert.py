"""convert and export, and checkpoints as MODEL of other commands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gumba import GGUFFile, store
from support import tiny_chat


@pytest.fixture
def checkpoint(gumba: Callable, tiny: Path, tmp_path: Path) -> Path:
    """The tiny model as a Hugging Face folder."""
    folder = tmp_path / "tiny-hf"
    result = gumba("export", tiny, "-o", folder, "--dtype", "float32")
    assert (result.code, result.out) == (0, "")
    return folder


def test_export_and_convert_there_and_back(gumba: Callable, tiny: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert json.loads((checkpoint / "config.json").read_text())["hidden_size"] == tiny_chat.WIDTH
    out = tmp_path / "back.gguf"
    result = gumba("convert", checkpoint, "-o", out, "--type", "f32", "--pre-tokenizer", "gpt-2")
    assert (result.code, result.out) == (0, "")
    assert re.fullmatch(rf"gumba: {out}: llama, [\d,]+ parameters, [\d.]+ kB in [\d.]+ s\n", result.err)
    with GGUFFile(tiny) as first, GGUFFile(out) as second:
        assert set(second.tensors) == set(first.tensors)
        for name, tensor in first.tensors.items():
            assert np.array_equal(tensor.data, second.tensors[name].data), name


def test_convert_types(gumba: Callable, checkpoint: Path, tmp_path: Path) -> None:
    for kind in ("f16", "bf16", "q8_0", "q4_0"):
        out = tmp_path / f"{kind}.gguf"
        assert gumba("convert", checkpoint, "-o", out, "--type", kind, "--pure", "--threads", 1).code == 0
        with GGUFFile(out) as file:
            assert file.tensors["blk.0.attn_q.weight"].type.name == kind
            assert file.tensors["token_embd.weight"].type.name == kind


def test_convert_to_stdout_is_refused(
    gumba: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = gumba("convert", checkpoint, "-o", "-")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"gumba: error: -o -: [^\n]+ stdout; name a file\n", result.err)
    assert not Path("-").exists()


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_convert_of_other_files(gumba: Callable, tiny: Path, tmp_path: Path, make: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out.gguf"
    if make == "empty":
        source.mkdir()
    elif make == "file":
        source = tiny
    result = gumba("convert", source, "-o", out)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"gumba: error: [^\n]+\n", result.err) and str(source) in result.err
    assert not out.exists()


def test_an_empty_source_is_not_the_current_folder(
    gumba: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    result = gumba("convert", "", "-o", tmp_path / "out.gguf")
    assert result.code == 2 and "the source is empty" in result.err and not (tmp_path / "out.gguf").exists()


def test_a_folder_is_converted_once_and_again_when_it_changes(
    gumba: Callable, checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gumba("inspect", checkpoint, "--json")
    assert first.code == 0
    [file] = (home / "converted").iterdir()
    assert Path(json.loads(first.out)["path"]) == file
    with GGUFFile(file) as converted:
        assert converted.tensors["blk.0.attn_q.weight"].type.name == "q8_0"

    with monkeypatch.context() as patch:
        patch.setattr("gumba_convert.convert", None)  # not called again
        assert store.resolve(checkpoint) == file
        patch.chdir(checkpoint.parent)
        assert store.resolve(checkpoint.name) == file

    os.utime(checkpoint / "config.json", (1, 1))
    changed = store.resolve(checkpoint)
    assert changed != file
    assert list((home / "converted").iterdir()) == [changed]


def test_a_hub_id_is_fetched_and_converted(
    gumba: Callable, checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gumba.hub.fetch import Listing

    fetched: list[str] = []
    monkeypatch.setattr("gumba.hub.fetch.list_files", lambda reference: Listing(()))
    monkeypatch.setattr(
        "gumba.hub.fetch.fetch_checkpoint", lambda each, cached: fetched.append(str(each)) or checkpoint
    )
    path = store.resolve("someone/Tiny-Chat")
    assert fetched == ["someone/Tiny-Chat"]
    assert path.parent == home / "converted" and path.name.startswith("someone--Tiny-Chat-")
    with GGUFFile(path) as file:
        assert file.metadata["general.architecture"] == "llama"


def test_a_hub_that_is_not_reached(gumba: Callable, home: Path) -> None:
    result = gumba("run", "someone/else", "-p", "x")
    assert result.code == 2
    assert result.err == (
        "gumba: error: someone/else: HF_HUB_OFFLINE is set, and the model is not in the cache (and there is no local "
        "file or folder someone/else)\n"
    )
    assert not (home / "converted").exists()
