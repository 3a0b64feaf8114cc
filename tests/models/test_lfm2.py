"""lfm2's convolutions keep what they need in the KV pages: what is done with pages is done with their state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import DATA, distance, load, logits_of, stored

from gumba import GGUFFile
from gumba.errors import ModelError
from gumba.kernels.pages import PAGE_TOKENS
from gumba.models import Chunk, Model

PATH = DATA / "arch_lfm2.gguf"


def step(model: Model, tokens: list[int], position: int, pages: list[int]) -> np.ndarray:
    return model.forward([Chunk(tokens, position, pages, "all")]).copy()


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16", "q8_0"])
def test_sequences_share_pages_and_go_on_from_copies(kv_type: str) -> None:
    """A fork in the middle of a page, and one at its end: the first token after it looks back into the other's page."""
    tokens, _ = stored(PATH)
    model = load(PATH, kv_type=kv_type, n_threads=2, kv_tokens=8 * PAGE_TOKENS)
    whole = logits_of(model, tokens, len(tokens))
    first, rest = model.kv.allocate(2)
    cut = PAGE_TOKENS + 3
    assert np.array_equal(step(model, tokens[:cut], 0, [first, rest]), whole[:cut])
    copied, fresh = model.kv.allocate(2)
    model.kv.copy(rest, copied)
    step(model, [5, 6, 7], cut, [first, rest])  # the original goes on differently
    assert np.array_equal(step(model, tokens[cut:], cut, [first, copied]), whole[cut:])
    assert np.array_equal(step(model, tokens[PAGE_TOKENS:], PAGE_TOKENS, [first, fresh]), whole[PAGE_TOKENS:])
    model.close()


def test_going_back_and_on_with_other_tokens() -> None:
    """As after guesses that were wrong."""
    tokens, _ = stored(PATH)
    model = load(PATH, n_threads=1)
    whole = logits_of(model, tokens, len(tokens))
    pages = model.kv.allocate(2)
    step(model, tokens[:20] + [9, 9, 9, 9, 9], 0, pages)
    assert np.array_equal(step(model, tokens[20:], 20, pages), whole[20:])
    model.close()


def test_pages_written_elsewhere() -> None:
    """As a saved session's are."""
    tokens, _ = stored(PATH)
    model = load(PATH, n_threads=1, kv_tokens=4 * PAGE_TOKENS)
    whole = logits_of(model, tokens, len(tokens))
    pages = model.kv.allocate(2)
    step(model, tokens[:70], 0, pages)
    saved = [model.kv.read(page) for page in pages]
    assert all(len(data) == model.kv.page_bytes for data in saved)
    others = model.kv.allocate(2)
    for page, data in zip(others, saved):
        model.kv.write(page, data)
    assert np.array_equal(step(model, tokens[70:], 70, others), whole[70:])
    model.close()


def test_what_convolutions_take_in_is_kept_as_float32() -> None:
    """Two layers of 32 float32 a token, whatever the type of keys and values; one of 2 heads of 8, keys and values (padded)."""
    sizes = {"f32": 2 * (8 + 16) * 4, "f16": 2 * (8 + 16) * 2}
    for kv_type, of_attention in sizes.items():
        model = load(PATH, kv_type=kv_type)
        assert model.kv.page_bytes == PAGE_TOKENS * (2 * 32 * 4 + of_attention)
        model.close()


def written(out: Path, heads: Any) -> Path:
    with GGUFFile(PATH) as file:
        writer = gguf.GGUFWriter(out, "lfm2")
        for key, value in file.metadata.items():
            if key.startswith("lfm2.") and not key.endswith("head_count_kv"):
                kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
                writer.add_key_value(key, value, kind)
        writer.add_head_count_kv(heads)
        for name, tensor in file.tensors.items():
            writer.add_tensor(name, np.frombuffer(bytes(tensor.data), np.float32).reshape(tensor.shape).copy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out


def test_the_rewritten_file_is_the_same_model(tmp_path: Path) -> None:
    tokens, expected = stored(PATH)
    model = load(written(tmp_path / "same.gguf", [0, 2, 0]), kv_type="f32")
    assert distance(logits_of(model, tokens, 9), expected) < 1e-4
    model.close()


@pytest.mark.parametrize("heads", [[0, 0, 0], [0, 2, 4], [0, 2], [0, -2, 0], 0])
def test_heads_that_do_not_fit(heads: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="head_count_kv"):
        load(written(tmp_path / "wrong.gguf", heads))


def test_layers_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing: blk\.0\.attn_q\.weight"):
        load(written(tmp_path / "wrong.gguf", 2))
