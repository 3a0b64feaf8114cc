"""The error budgets of ggml's own tests: of what is quantized, and of the kernels' products with it.

The vector is ggml's: 0.1 + 2 cos(i + offset), 4096 numbers. Total error: the root of the sum of squares, over their number;
dot product error: the difference to the product of the float vectors, over their number. Formats that gumba only reads are
measured on blocks by ggml's quantizer (tools/make_quant_goldens.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba.quants import FORMATS, BlockFormat
from support.kernel_harness import ISAS, Batch, same_bits
from support.kernel_setups_matmul import product_of

GOLDENS = Path(__file__).parent.parent / "data" / "quant_goldens.npz"
#: (total error, dot product error) where they are not those of most formats. ggml's tests leave out the formats that it
#: quantizes only with an importance matrix: theirs are what its blocks have, rounded up.
BUDGETS = {
    "q2_k": (0.0075, 0.04), "q3_k": (0.004, 0.02), "iq2_s": (0.0075, 0.04), "iq3_s": (0.004, 0.04),
    "iq3_xxs": (0.005, 0.04), "tq1_0": (0.01, 0.15), "tq2_0": (0.01, 0.15), "q2_0": (0.01, 0.15), "q1_0": (0.025, 0.4),
    "mxfp4": (0.003, 0.03), "nvfp4": (0.003, 0.03),
    "iq2_xs": (0.0075, 0.04), "iq2_xxs": (0.0075, 0.05), "iq1_s": (0.01, 0.04), "iq1_m": (0.0125, 0.17),
}  # fmt: skip
MOST = (0.002, 0.02)
#: What activations of 8 bits and the order of sums add to a product of these very weights. Q8_0's have 0.0002.
PRODUCT = 0.0005


def vector(offset: float) -> np.ndarray:
    """float32 [1, 4096]."""
    return (0.1 + 2 * np.cos(np.arange(4096, dtype=np.float32) + np.float32(offset))).astype(np.float32)[None]


def blocks_of(format: BlockFormat) -> np.ndarray:
    """The vector in a format: gumba's blocks, or ggml's where gumba writes none."""
    if format.loops()[0] is not None:
        return format.quantize(vector(0))
    with np.load(GOLDENS) as goldens:
        if format.name not in goldens:
            pytest.skip(f"ggml does not quantize to {format.name}")
        return np.asarray(goldens[format.name])[None]


def error_of(format: BlockFormat, blocks: np.ndarray) -> float:
    off = np.asarray(format.dequantize(blocks)).astype(np.float64) - vector(0)
    return float(np.sqrt((off * off).sum()) / off.size)


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_total_error(format: BlockFormat) -> None:
    assert error_of(format, blocks_of(format)) < BUDGETS.get(format.name, MOST)[0]


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_dot_product_error(format: BlockFormat) -> None:
    """With few tokens and with many, with the same bits."""
    blocks, x = blocks_of(format), vector(1)
    setup = product_of(ISAS[0], format, np.repeat(blocks, 3, axis=0), np.repeat(x, 20, axis=0))
    many = setup.run()
    np.testing.assert_array_equal(same_bits(setup.run(batch=Batch(1))[0]), same_bits(many[0]))
    assert (many == many[0, 0]).all()
    whole = float(vector(0).astype(np.float64)[0] @ x.astype(np.float64)[0])
    assert abs(many[0, 0] - whole) / x.size < BUDGETS.get(format.name, MOST)[1]
    weights = np.asarray(format.dequantize(blocks)).astype(np.float64)
    assert abs(many[0, 0] - weights[0] @ x.astype(np.float64)[0]) / x.size < PRODUCT
