"""Gemma 3n and 4: shapes of the KV cache, memory of the per-layer embeddings, and files of other converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gumba import GGUFFile
from gumba.backends.cpu.kernels.record import N_OUTPUTS
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.errors import ModelError, UnsupportedError
from gumba.runner.load import Chunk
from support.arch_models import rewritten
from support.tiny_models import DATA, distance, load, logits_of, stored

Tensors = dict[str, np.ndarray]
U32, BOOL, F32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.BOOL, gguf.GGUFValueType.FLOAT32


def written(
    name: str,
    out: Path,
    changes: dict[str, Any],
    change: Callable[[Tensors], None] = lambda t: None,
    suppressed: list[Any] | None = None,
) -> Path:
    """A golden model with other metadata (None: without that key), and with its tensors changed by ``change``."""
    with GGUFFile(DATA / f"arch_{name}.gguf") as file:
        architecture = file.require("general.architecture", str)
        writer = gguf.GGUFWriter(out, architecture)
        values: dict[str, Any] = {
            key.removeprefix(f"{architecture}."): value.to_list() if hasattr(value, "to_list") else value
            for key, value in file.metadata.items()
            if key.startswith(architecture)
        }
        kinds = {bool: BOOL, float: F32, int: U32}
        for key, value in (values | changes).items():
            if isinstance(value, list):
                kind = kinds[type(value[0])]
                writer.add_key_value(f"{architecture}.{key}", value, gguf.GGUFValueType.ARRAY, kind)
            elif value is not None:
                writer.add_key_value(f"{architecture}.{key}", value, kinds[type(value)])
        if suppressed is not None:
            writer.add_array("tokenizer.ggml.suppress_tokens", suppressed)
        tensors = {n: np.frombuffer(bytes(t.data), np.float32).reshape(t.shape) for n, t in file.tensors.items()}
    change(tensors)
    for tensor, numbers in tensors.items():
        writer.add_tensor(tensor, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("gemma4", [(2, 8), (2, 16), (0, 0), (0, 0)]),
        ("gemma4_experts", [(2, 8), (1, 16)]),
        ("gemma3n", [(2, 16), (2, 16), (0, 0), (0, 0)]),
    ],
)
def test_layers_that_share_keys_take_no_memory(name: str, sizes: list[tuple[int, int]]) -> None:
    model = load(DATA / f"arch_{name}.gguf")
    layouts = model.kv.memory.layouts
    assert [(at.n_kv_heads, at.head_dim) for at in layouts] == sizes
    assert model.kv.page_bytes == sum(at.n_kv_heads * (at.k_page + at.v_page) for at in layouts)
    model.close()


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_per_layer_embeddings_stay_quantized(name: str, tmp_path: Path) -> None:
    path = rewritten(DATA / f"arch_{name}.gguf", tmp_path / "q4_0.gguf", "Q4_0", dequantized=False)
    model = load(path)
    table = model._weights.per_layer_token_embd
    assert table.format.name == "q4_0"
    assert table.data.nbytes < 0.2 * 4 * table.rows * table.columns  # of float32; groups of rows are padded
    model.close()


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_same_logits_for_the_last_token_alone(name: str, n_threads: int) -> None:
    """Layers that share keys compute only rows whose logits are wanted: all of a chunk, its last one, or none."""
    tokens, _ = stored(DATA / f"arch_{name}.gguf")
    model = load(DATA / f"arch_{name}.gguf", n_threads=n_threads, kv_tokens=8 * PAGE_TOKENS)
    whole = logits_of(model, tokens, len(tokens))
    pages = [model.kv.allocate(2) for _ in range(3)]
    model.forward([Chunk(tokens[:30], 0, pages[0], "none")])
    chunks = [
        Chunk(tokens[30:], 30, pages[0], "last"),
        Chunk(tokens[:40], 0, pages[1], "all"),
        Chunk(tokens[:50], 0, pages[2], "none"),
    ]
    got = model.forward(chunks)
    assert np.array_equal(got[0], whole[-1])
    assert np.array_equal(got[1:], whole[:40])
    assert np.array_equal(model.forward([Chunk(tokens[50:60], 50, pages[2], "last")])[0], whole[59])
    model.close()


def test_unwanted_rows_are_not_computed() -> None:
    model = load(DATA / "arch_gemma4.gguf")
    counts = [operation.writes[0].count for operation in model.operations if "matmul" in operation.kernel.name]
    of_outputs = sum(count == N_OUTPUTS for count in counts)
    assert of_outputs == 2 * 7 + 1  # of two layers with six products and one of embeddings each; and the logits
    model.close()


def two_matrices(tensors: Tensors) -> None:
    """Gate and up of the experts in two tensors, as in files of older converters."""
    for name in [name for name in tensors if "ffn_gate_up_exps" in name]:
        both = tensors.pop(name)
        for part, values in zip(("gate", "up"), np.split(both, 2, axis=1)):
            tensors[name.replace("gate_up", part)] = values


def unread_keys(tensors: Tensors) -> None:
    """Keys and values of layers that read another layer's; released checkpoints have them."""
    for name in ("attn_k", "attn_v", "attn_k_norm"):
        tensors[f"blk.3.{name}.weight"] = np.full((2, 3), np.inf, np.float32)


@pytest.mark.parametrize("name, change", [("gemma4_experts", two_matrices), ("gemma4", unread_keys)])
def test_files_of_other_converters(name: str, change: Callable[[Tensors], None], tmp_path: Path) -> None:
    tokens, wanted = stored(DATA / f"arch_{name}.gguf")
    model = load(written(name, tmp_path / "other.gguf", {}, change), kv_type="f32")
    assert distance(logits_of(model, tokens, len(tokens)), wanted) < 1e-4
    model.close()


def test_suppressed_tokens_are_never_chosen(tmp_path: Path) -> None:
    """Files of vision models name the tokens that stand for images."""
    tokens, wanted = stored(DATA / "arch_gemma4.gguf")
    model = load(written("gemma4", tmp_path / "some.gguf", {}, suppressed=[130, 7]), kv_type="f32")
    got = logits_of(model, tokens, len(tokens))
    model.close()
    assert (got[:, [7, 130]] == -np.inf).all()
    others = [token for token in range(wanted.shape[1]) if token not in (7, 130)]
    assert distance(got[:, others], wanted[:, others]) < 1e-4
    for bad in ([131], [-1], ["a"]):
        with pytest.raises(ModelError, match="suppress_tokens: expected integers from 0 to 130"):
            load(written("gemma4", tmp_path / "bad.gguf", {}, suppressed=bad))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("gemma4", {"attention.shared_kv_layers": 5}, "shared_kv_layers is 5"),
        (
            "gemma4",
            {"attention.shared_kv_layers": 3},
            "shared_kv_layers: expected a layer before layer 1 that has keys for layer 1",
        ),
        ("gemma4", {"attention.shared_kv_layers": 0}, "missing: blk.2.attn_k.weight"),
        ("gemma4", {"attention.head_count_kv": [2, 2, 0, 2]}, "head_count_kv or feed_forward_length holds 0"),
        ("gemma4", {"attention.head_count_kv": [2, 3, 2, 2]}, "not a multiple of head_count_kv 3"),
        ("gemma4", {"attention.head_count_kv": [2, 2]}, "expected 4 integers"),
        ("gemma4", {"feed_forward_length": [32, 32, 32, 32]}, r"blk.2.ffn_gate.weight is \[64, 32\]"),
        ("gemma4", {"rope.dimension_count_swa": 5}, "expected an even number"),
        ("gemma4", {"rope.dimension_count_swa": 10}, "rope.dimension_count_swa is 10"),
        ("gemma4", {"attention.value_length_swa": 16}, "attention.value_length_swa is 16"),
        ("gemma4", {"attention.sliding_window_pattern": [True, False]}, "expected 4 bools"),
        ("gemma4", {"attention.scale": 0.5}, "attention.scale is 0.5"),
        ("gemma4", {"embedding_length_per_layer_input": 0}, "unexpected"),
        ("gemma4_experts", {"expert_count": 6}, r"ffn_gate_inp.weight is \[5, 32\]"),
        ("gemma4_experts", {"expert_feed_forward_length": 16}, "ffn_gate_up_exps"),
        ("gemma4_experts", {"expert_feed_forward_length": None}, "expert_feed_forward_length: expected a positive"),
        ("gemma3n", {"altup.active_idx": 3}, "altup.active_idx is 3, expected 0 to 2"),
        ("gemma3n", {"altup.num_inputs": 4}, "altup_proj.weight is"),
        ("gemma3n", {"activation_sparsity_scale": [1.0, 2.0]}, "activation_sparsity_scale: expected 4 numbers"),
        ("gemma3n", {"activation_sparsity_scale": [1.0, np.nan, 0.0, 0.0]}, "expected 4 numbers"),
    ],
)
def test_inconsistent_metadata(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ModelError, UnsupportedError), match=message):
        load(written(name, tmp_path / "bad.gguf", changes))
