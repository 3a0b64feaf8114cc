"""tools/make_type_files.py: a widened model computes what it did."""

from __future__ import annotations

import numpy as np
import pytest

from make_type_files import Sizes, widen

OLD = Sizes(width=6, group=2, ffn=5, kv_heads=2, head_dim=64)
NEW = Sizes(width=256, group=2, ffn=256, kv_heads=2, head_dim=64)


def test_the_next_multiples() -> None:
    assert OLD.widened() == NEW
    assert Sizes(576, 3, 1536, 3, 64).widened() == Sizes(768, 4, 1536, 3, 64)  # SmolLM2 135M
    assert Sizes(896, 7, 4864, 2, 64).widened() == Sizes(1024, 8, 4864, 2, 64)  # Qwen2.5 0.5B


def test_heads_are_added_to_each_group() -> None:
    """Two KV heads with one query head each get two: rows of queries and columns of the output keep their KV head."""
    old, new = (Sizes(6, group, 5, 2, 3) for group in (1, 2))
    q = widen("blk.0.attn_q.weight", np.arange(1.0, 37).reshape(6, 6), old, new)
    assert q.shape == (12, 6)
    np.testing.assert_array_equal(q.any(axis=1), [1, 1, 1, 0, 0, 0] * 2)
    out = widen("blk.0.attn_output.weight", np.ones((6, 6)), old, new)
    np.testing.assert_array_equal(out, np.tile([1, 1, 1, 0, 0, 0], (6, 2)))
    assert widen("blk.0.attn_q.bias", np.ones(6), old, new).tolist() == [1, 1, 1, 0, 0, 0] * 2
    assert widen("blk.0.attn_k.bias", np.ones(6), old, new).tolist() == [1] * 6


def test_norms_and_products_stay() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, OLD.width))
    up, down = rng.standard_normal((OLD.ffn, OLD.width)), rng.standard_normal((OLD.width, OLD.ffn))

    def layer(x: np.ndarray, weight: np.ndarray, up: np.ndarray, down: np.ndarray, eps: float) -> np.ndarray:
        normed = x / np.sqrt((x * x).mean() + eps) * weight
        return np.asarray(down @ np.tanh(up @ normed))

    wide = layer(
        np.pad(x, (0, NEW.width - OLD.width)),
        widen("blk.0.ffn_norm.weight", weight, OLD, NEW),
        widen("blk.0.ffn_up.weight", up, OLD, NEW),
        widen("blk.0.ffn_down.weight", down, OLD, NEW),
        0.5 * OLD.width / NEW.width,
    )
    np.testing.assert_allclose(wide[: OLD.width], layer(x, weight, up, down, 0.5), rtol=1e-6)
    assert not wide[OLD.width :].any()


def test_a_tensor_of_unknown_use_is_named() -> None:
    with pytest.raises(SystemExit, match=r"do not know how to widen blk\.0\.ssm_a"):
        widen("blk.0.ssm_a", np.ones(6), OLD, NEW)
