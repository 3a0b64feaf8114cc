"""deepseek2: files made before 2025, with one matrix for keys and values; and inconsistent metadata."""

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


def written(source: Path, out: Path, changes: dict[str, Any], *, one_matrix: bool = False) -> Path:
    """The model with other metadata (None: without that key); ``one_matrix``: attn_kv_b in place of attn_k_b and attn_v_b."""
    with GGUFFile(source) as file:
        writer = gguf.GGUFWriter(out, "deepseek2")
        values = {key: value for key, value in file.metadata.items() if key.startswith("deepseek2.")}
        for key, value in (values | {f"deepseek2.{key}": value for key, value in changes.items()}).items():
            kind = {bool: gguf.GGUFValueType.BOOL, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
            if value is not None:
                writer.add_key_value(key, value, kind.get(type(value), gguf.GGUFValueType.UINT32))
        tensors = {n: np.frombuffer(bytes(t.data), np.float32).reshape(t.shape) for n, t in file.tensors.items()}
    for name, tensor in tensors.items():
        if one_matrix and "attn_v_b" in name:
            continue
        if one_matrix and "attn_k_b" in name:
            keys, values_of = tensor.swapaxes(1, 2), tensors[name.replace("attn_k_b", "attn_v_b")]
            name, tensor = name.replace("attn_k_b", "attn_kv_b"), np.concatenate([keys, values_of], axis=1)
            tensor = tensor.reshape(-1, tensor.shape[2])
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


OLD = {"attention.key_length": 24, "attention.value_length": 24, "attention.head_count_kv": 2,
       "attention.key_length_mla": None, "attention.value_length_mla": None}  # fmt: skip


@pytest.mark.parametrize("name", ["deepseek2", "deepseek2_yarn", "deepseek2_v3"])
def test_keys_and_values_of_one_matrix(name: str, tmp_path: Path) -> None:
    path = DATA / f"arch_{name}.gguf"
    tokens, expected = stored(path)
    model = load(written(path, tmp_path / "old.gguf", OLD, one_matrix=True), kv_type="f32", n_threads=2)
    whole = logits_of(model, tokens, len(tokens))
    assert distance(whole, expected) < 1e-4
    assert np.array_equal(logits_of(model, tokens, 3), whole)
    model.close()


def test_the_cache_holds_latent_vectors() -> None:
    model = load(DATA / "arch_deepseek2.gguf", kv_type="f32")
    assert model.kv.page_bytes == 2 * (40 + 32) * 4 * PAGE_TOKENS  # of 2 layers, whatever the number of heads
    model.close()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention.key_length": 48}, "key_length 48"),
        ({"attention.key_length_mla": 8}, "key_length_mla 8"),
        ({"attention.kv_lora_rank": 31}, "kv_lora_rank 31"),
        ({"expert_group_count": 4}, "expert_group_count 4"),
        ({"expert_group_used_count": 4}, "expert_group_used_count is 4"),
        ({"expert_group_count": 6, "expert_group_used_count": 1}, "expert_group_used_count 1"),
        ({"expert_count": 0}, "expert_count is 0"),
        ({"expert_gating_func": 3}, "expert_gating_func is 3"),
        ({"attention.value_length_mla": None}, "value_length_mla"),
    ],
)
def test_inconsistent_sizes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(DATA / "arch_deepseek2_v3.gguf", tmp_path / "wrong.gguf", changes)
    with pytest.raises(ModelError, match=message):
        load(path)
