"""qwen35: metadata that its files may have, may lack and must not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba.errors import ModelError
from support.arch_models import EXACT, rewritten
from support.tiny_models import DATA, distance, load, logits_of, stored

DENSE, SPARSE = DATA / "arch_qwen35.gguf", DATA / "arch_qwen35moe.gguf"


def written(source: Path, out: Path, own: dict[str, Any], more: dict[str, np.ndarray] | None = None) -> Path:
    return rewritten(source, out, "F32", dequantized=True, own=own, more=more or {})


def error_of(path: Path, source: Path) -> float:
    """The distance of a model's logits from those of the golden ``source``."""
    tokens, expected = stored(source)
    model = load(path, kv_type="f32", n_threads=1)
    difference = distance(logits_of(model, tokens, 40), expected)
    model.close()
    return difference


def test_layers_of_a_period(tmp_path: Path) -> None:
    """A file without flags per layer: every second layer is attention, as in the sparse model."""
    path = written(SPARSE, tmp_path / "a.gguf", {"attention.recurrent_layers": None, "full_attention_interval": 2})
    assert error_of(path, SPARSE) < EXACT


def test_experts_without_a_width_of_dense_layers(tmp_path: Path) -> None:
    assert error_of(written(SPARSE, tmp_path / "a.gguf", {"feed_forward_length": None}), SPARSE) < EXACT


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    own = {"block_count": 4, "nextn_predict_layers": 1, "attention.recurrent_layers": [True, False, True, False]}
    assert error_of(further(tmp_path, own), DENSE) < EXACT
    with pytest.raises(ModelError, match=r"unexpected: blk\.3\.nextn\.eh_proj\.weight"):
        load(further(tmp_path, {}))


def further(folder: Path, own: dict[str, Any]) -> Path:
    more = {
        "blk.3.nextn.eh_proj.weight": np.ones((32, 64), np.float32),
        "blk.3.attn_norm.weight": np.ones(32, np.float32),
    }
    return written(DENSE, folder / "further.gguf", own, more)


@pytest.mark.parametrize(
    "own, message",
    [
        ({"ssm.state_size": 48}, "state_size is 48, expected a multiple of 32"),
        ({"ssm.state_size": 0}, "state_size"),
        ({"ssm.state_size": 1 << 31}, "state_size"),
        ({"ssm.group_count": 3}, "time_step_rank 4 is not a multiple of ssm.group_count 3"),
        ({"ssm.inner_size": 96}, "inner_size: expected 4 heads of 32"),
        ({"ssm.inner_size": None}, "inner_size"),
        ({"ssm.conv_kernel": 17}, "conv_kernel"),
        ({"attention.recurrent_layers": [True, True, True]}, "all layers are of one kind"),
        ({"attention.recurrent_layers": [False, False, False]}, "all layers are of one kind"),
        ({"nextn_predict_layers": 2}, "all layers are of one kind"),
        ({"nextn_predict_layers": 3}, "nextn_predict_layers is 3"),
        ({"attention.recurrent_layers": [True, False]}, "expected 3 bools"),
        ({"ssm.time_step_rank": 2, "ssm.inner_size": 64}, "wrong shape"),
        ({"ssm.conv_kernel": 3}, "wrong shape"),
        ({"feed_forward_length": None}, "feed_forward_length"),
    ],
)
def test_impossible_metadata(own: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load(written(DENSE, tmp_path / "wrong.gguf", own))


def test_experts_are_required(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expert_count is 0"):
        load(written(SPARSE, tmp_path / "wrong.gguf", {"expert_count": 0}))
