"""lfm2: metadata of its files, and the state of its convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gumba import GGUFFile
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.errors import ModelError
from support.tiny_models import DATA, distance, load, logits_of, stored

PATH = DATA / "arch_lfm2.gguf"


def test_sizes_of_the_state_and_of_a_page() -> None:
    """Two layers with a state of 2 times 32 float32, whatever the type of keys and values; pages hold attention only."""
    for kv_type, size in {"f32": 4, "f16": 2}.items():
        model = load(PATH, kv_type=kv_type)
        assert model.states is not None and model.states.slot_bytes == 2 * 2 * 32 * 4
        assert model.kv.page_bytes == PAGE_TOKENS * 2 * (8 + 16) * size  # 2 heads of 8, values padded
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
