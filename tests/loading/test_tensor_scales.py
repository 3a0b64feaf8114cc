"""Scales beside matrices: ``NAME.scale`` multiplies what a matrix's blocks stand for; ``NAME.input_scale`` is checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import GGUFFile
from gumba.errors import ModelError
from support.changed_models import SOURCE, rewrite
from support.tiny_models import DATA, load, logits_of

#: With experts; with fused matrices; with a matrix for each head.
MODELS = [SOURCE, *(DATA / f"arch_{name}.gguf" for name in ("llama_mixtral", "phi3", "deepseek2", "gemma4_experts"))]


def scaled(path: Path) -> dict[str, Any]:
    """The layers' matrices, each divided by powers of two of its own, and the scales that make up for it."""
    changes: dict[str, Any] = {}
    with GGUFFile(path) as file:
        for i, (name, tensor) in enumerate(sorted(file.tensors.items())):
            scale_name = name.removesuffix("weight") + "scale"
            matrix = len(tensor.shape) > 1 and name.endswith(".weight") and "conv" not in name
            if not matrix or scale_name in file.tensors or not (name.startswith("blk.") or name == "output.weight"):
                continue
            count = tensor.shape[0] if len(tensor.shape) == 3 else 1
            scales = (2.0 ** ((i + np.arange(count)) % 5 - 2)).astype(np.float32)
            weights = tensor.data.view(np.float32).reshape(count, -1) / scales[:, None]
            changes[name] = weights.reshape(tensor.shape)
            changes[scale_name] = scales
            changes[name.removesuffix("weight") + "input_scale"] = np.full(count, 0.01, np.float32)
    return changes


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_logits_are_those_of_the_scaled_weights(path: Path, tmp_path: Path) -> None:
    changes = scaled(path)
    assert any(name.endswith("_exps.scale") for name in changes) == (path.stem not in ("model_llama3", "arch_phi3"))
    tokens, logits = [5, 9, 3, 3, 12, 7, 1], []
    for model in (path, rewrite(tmp_path / "scaled.gguf", None, changes, model=path)):
        loaded = load(model, n_threads=2)
        logits.append([logits_of(loaded, tokens, size) for size in (1, 7)])
        loaded.close()
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    "name, values, problem",
    [
        ("blk.0.attn_q.scale", [math.nan], r"attn_q\.scale holds numbers that are not finite"),
        ("blk.0.attn_q.input_scale", [math.inf], r"attn_q\.input_scale holds numbers that are not finite"),
        ("blk.0.attn_q.scale", [1, 1], r"wrong shape: blk\.0\.attn_q\.scale is \[2\], expected \[1\]"),
        ("blk.0.attn_norm.scale", [1], r"1 tensor unexpected: blk\.0\.attn_norm\.scale"),
        ("output.scale", [1], r"1 tensor unexpected: output\.scale"),
    ],
)
def test_scales_are_checked(name: str, values: list[float], problem: str, tmp_path: Path) -> None:
    own = {name: np.array(values, np.float32), **({"output.weight": None} if name.startswith("output") else {})}
    with pytest.raises(ModelError, match=problem):
        load(rewrite(tmp_path / "wrong.gguf", None, own), n_threads=1)
