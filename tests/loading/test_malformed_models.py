"""Valid GGUF files that are not valid models: each raises one ModelError that names the fault, before any kernel runs."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import GGUFFile
from gumba.errors import EngineError, ModelError, RequestError, ResourceError, UnsupportedError
from gumba.loading.weight_loader import block_format
from gumba.runner.load import Chunk, LoadConfig, load_model
from support.changed_models import SOURCE, rewrite
from support.gguf_bytes import GGUFBytes
from support.tiny_models import load


def test_the_rewritten_source_still_loads(tmp_path: Path) -> None:
    load(rewrite(tmp_path / "same.gguf"), n_threads=1).close()


@pytest.mark.parametrize(
    "key, value",
    [
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 5),
        ("llama.attention.head_count", 2**32 - 1),
        ("llama.attention.head_count", None),
        ("llama.attention.head_count_kv", 0),
        ("llama.attention.head_count_kv", 1000),
        ("llama.attention.key_length", 0),
        ("llama.attention.key_length", 2**31),
        ("llama.attention.value_length", 7),
        ("llama.block_count", 0),
        ("llama.block_count", 2**32 - 1),
        ("llama.block_count", 513),
        ("llama.embedding_length", 0),
        ("llama.embedding_length", 2**32 - 1),
        ("llama.embedding_length", "many"),
        ("llama.embedding_length", 96.0),
        ("llama.feed_forward_length", 0),
        ("llama.feed_forward_length", 2**31),
        ("llama.context_length", 0),
        ("llama.context_length", 2**32 - 1),
        ("llama.rope.dimension_count", 0),
        ("llama.rope.dimension_count", 3),
        ("llama.rope.dimension_count", 1 << 20),
        ("llama.rope.freq_base", 0.0),
        ("llama.rope.freq_base", math.inf),
        ("llama.rope.freq_base", math.nan),
        ("llama.rope.freq_base", 10000),
        ("llama.attention.layer_norm_rms_epsilon", 0.0),
        ("llama.attention.layer_norm_rms_epsilon", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", math.nan),
        ("llama.attention.layer_norm_rms_epsilon", None),
        ("llama.rope.scaling.type", "stretchy"),
        ("llama.rope.scaling.factor", -2.0),
        ("llama.expert_count", 1 << 20),
        ("llama.expert_used_count", 1000),
        ("llama.attention.sliding_window", (1 << 31)),
        ("llama.some_new_thing", 1),
        ("llama.tensor_data_layout", "Meta AI original pth"),
        ("llama.rope.scaling.yarn_log_multiplier", 0.5),
        ("general.architecture", None),
    ],
)
def test_impossible_hyperparameters(tmp_path: Path, key: str, value: Any) -> None:
    path = rewrite(tmp_path / "bad.gguf", {key: value})
    with pytest.raises(ModelError) as caught:
        load(path, n_threads=1)
    last = key.rpartition(".")[2]
    # what a wrong size breaks may be a tensor's shape: then that is what the message names
    assert last in str(caught.value) or "tensor" in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'lama'.*llama"):
        load(rewrite(tmp_path / "bad.gguf", {"general.architecture": "lama"}))


def test_tensor_faults_are_reported_together(tmp_path: Path) -> None:
    path = rewrite(
        tmp_path / "bad.gguf",
        tensors={
            "blk.0.attn_q.weight": None,
            "blk.1.ffn_norm.weight": np.zeros(7, np.float32),
            "blk.0.surprise.weight": np.zeros(7, np.float32),
        },
    )
    with pytest.raises(ModelError) as caught:
        load(path)
    for part in (
        "missing: blk.0.attn_q.weight",
        "unexpected: blk.0.surprise",
        "blk.1.ffn_norm.weight is [7], expected",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    with GGUFFile(SOURCE) as source:
        shape = source.tensors["blk.0.ffn_down.weight"].shape
        norm = np.ones(source.tensors["output_norm.weight"].shape, np.float32)
    weights = np.ones(shape, np.float32)
    weights[5, 7] = norm[0] = bad
    with pytest.raises(ModelError, match="output_norm"):
        load(rewrite(tmp_path / "norm.gguf", tensors={"output_norm.weight": norm}))
    with pytest.raises(
        ModelError, match=r"tensor blk\.0\.ffn_down\.weight, row 5: column 7 is NaN or infinite: the file is"
    ):
        load(rewrite(tmp_path / "matrix.gguf", tensors={"blk.0.ffn_down.weight": weights}), n_threads=1)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (26, "is i32, which holds integers, not weights: take a file of the same model in another type"),
        (28, "is f64, which holds 64-bit floats"),
        (9, "is q8_1, which holds activations at run time, not weights: take"),
        (15, "is q8_k, which holds activations at run time, not weights: take"),
    ],
)
def test_types_that_are_no_weights_are_refused(tmp_path: Path, kind: int, why: str) -> None:
    path = tmp_path / "types.gguf"
    path.write_bytes(bytes(GGUFBytes(1, 0).tensor("a.weight", [256], kind).payload(bytes(2048))))
    with GGUFFile(path) as file, pytest.raises(UnsupportedError, match=f"tensor a.weight {why}"):
        block_format(file, file.tensors["a.weight"])


def test_a_number_that_is_not_finite_is_refused_in_an_expert(tmp_path: Path) -> None:
    model, name = SOURCE.with_name("arch_llama_mixtral.gguf"), "blk.1.ffn_down_exps.weight"
    with GGUFFile(model) as source:
        weights = np.ones(source.tensors[name].shape, np.float32)
    weights[2, 4, 3] = math.nan
    with pytest.raises(ModelError, match=r"tensor blk\.1\.ffn_down_exps\.weight, row 4 of expert 2: column 3 is NaN"):
        load(rewrite(tmp_path / "experts.gguf", tensors={name: weights}, model=model))


def test_arguments_out_of_range() -> None:
    with GGUFFile(SOURCE) as file:
        for arguments in (
            {"n_ctx": 0},
            {"n_ctx": 10**9},
            {"n_threads": 0},
            {"n_threads": True},
            {"max_batch_tokens": -1},
        ):
            with pytest.raises(RequestError, match=next(iter(arguments))):
                load_model(file, LoadConfig(**arguments))
        with pytest.raises(RequestError, match="kv_type"):
            load_model(file, LoadConfig(kv_type="q1"))


def test_bad_chunks_change_nothing() -> None:
    """Each is refused before anything is computed; a good step right after has the bits it had before."""
    model = load(SOURCE, n_threads=1, kv_tokens=256)
    pages = model.kv.allocate(2)
    n_vocab = model.config.n_vocab
    good = model.forward([Chunk([5, 6, 7], 0, pages, "all")]).copy()
    for chunk in (
        Chunk([n_vocab], 0, pages),
        Chunk([-1], 0, pages),
        Chunk([2**31], 0, pages),
        Chunk([2**63], 0, pages),
        Chunk([True], 0, pages),
        Chunk([1.5], 0, pages),  # type: ignore[list-item]
        Chunk(np.array([1.0]), 0, pages),
        Chunk(np.array([-1]), 0, pages),
        Chunk([1], -1, pages),
        Chunk([1], model.n_ctx, pages),
        Chunk([1], 128, pages),
        Chunk([1], 0, []),
        Chunk([1], 0, [model.kv.n_pages]),
        Chunk([1], 0, [-1]),
        Chunk([1], 0, np.array(pages, np.int64) + 2**32),
        Chunk([1], 0, [[p] for p in pages]),  # type: ignore[list-item]
        Chunk([1], 0, np.array(pages, np.float32)),
        Chunk([1], 0, np.array([2**63 + pages[0]], np.uint64)),
        Chunk([1], np.int64(2**63 - 1), pages),  # type: ignore[arg-type]
        Chunk([1], 1.5, pages),  # type: ignore[arg-type]
        Chunk([1], 0, [p for p in range(model.kv.n_pages) if p not in pages][:1]),
        Chunk([1] * (model.max_batch_tokens + 1), 0, pages),
    ):
        with pytest.raises(RequestError):
            model.forward([chunk])
        with pytest.raises(RequestError):
            model.forward([Chunk([5, 6], 0, pages), chunk])
    assert (model.forward([Chunk([5, 6, 7], 0, pages, "all")]) == good).all()
    with pytest.raises(ResourceError, match="pages"):
        model.kv.allocate(model.kv.n_pages)
    model.close()


def test_a_closed_model_frees_its_memory() -> None:
    model = load(SOURCE, n_threads=2)
    owners = (model.kv.memory._memory.base, model._runner._program._arena.base)  # type: ignore[attr-defined]
    memory = [weakref.ref(array) for array in owners]
    del owners
    rows = model.forward([Chunk([1, 2], 0, model.kv.allocate(1), "all")])
    kept = rows.copy()
    model.close()
    model.close()
    assert memory[0]() is None and (rows == kept).all()  # rows already given out stay readable
    del rows
    assert memory[1]() is None
    for use in (lambda: model.kv.allocate(1), lambda: model.forward([Chunk([1], 0, [])])):
        with pytest.raises(EngineError, match="closed"):
            use()


#: A factor that makes the values of some tokens, not of all, too large for float16.
LARGE = 14000


def test_a_later_token_changes_nothing_before_it(tmp_path: Path) -> None:
    """Even if its values are too large for a float16 cache: an infinity must not be multiplied by a weight of 0."""
    with GGUFFile(SOURCE) as source:
        weights = source.tensors["blk.0.attn_v.weight"]
        values = weights.data.view(np.float32).reshape(weights.shape) * np.float32(LARGE)
    path = rewrite(tmp_path / "large.gguf", tensors={"blk.0.attn_v.weight": values})
    tokens = [(7 * i) % 40 for i in range(100)]
    seen = []
    for size in (1, 100):
        model = load(path, kv_type="f16", n_threads=1)
        pages = model.kv.allocate(2)
        rows = [model.forward([Chunk(tokens[i : i + size], i, pages, "all")]).copy() for i in range(0, 100, size)]
        seen.append(np.concatenate(rows))
        model.close()
    finite = np.isfinite(seen[0]).all(axis=1)
    assert finite.any() and not finite.all()
    assert (seen[0].view(np.uint32)[finite] == seen[1].view(np.uint32)[finite]).all()
    assert (np.isfinite(seen[1]).all(axis=1) == finite).all()
