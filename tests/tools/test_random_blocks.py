"""Random weights spread as a trained model's do, in every format that gguf-py dequantizes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from random_blocks import FORMATS, random_rows


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("q1_0", "q2_0")])
def test_weights_spread_about_1_over_the_square_root_of_the_columns(kind: str) -> None:
    data = np.concatenate(list(random_rows(kind, 16, 1024, np.random.default_rng(1))))
    if kind in ("f32", "f16"):
        weights = data.view(kind.replace("f32", "f4").replace("f16", "f2"))
    else:
        weights = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
    assert weights.size == 16 * 1024
    assert weights.std() == pytest.approx(
        1 / 32, rel=0.45 if kind == "mxfp4" else 0.1
    )  # whose scales are powers of two
