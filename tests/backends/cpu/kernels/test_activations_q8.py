"""Activations to int8 blocks: bit for bit what NumPy makes of the documented formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support import kernel_oracles, kernel_setups
from support.kernel_harness import ISAS, same_bits

ISA = ISAS[0]


def blocks_of(x: np.ndarray) -> np.ndarray:
    return kernel_setups.setup_quantize_q8(ISA, x).run()


def fields(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(q int8, scale float32, sum float32)."""
    return blocks[..., :32].view(np.int8), blocks[..., 32:36].view(np.float32), blocks[..., 36:40].view(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32).map(lambda v: v or 0.0)),
    st.integers(-60, 20),
)
def test_exactly_as_numpy(x: np.ndarray, exponent: int) -> None:
    x = np.ldexp(x, exponent).astype(np.float32)
    largest = np.abs(x.reshape(2, 2, 32)).max(axis=2)
    x[np.repeat(largest, 32, axis=1) < 1e-30] = 0
    np.testing.assert_array_equal(blocks_of(x), kernel_oracles.quantize_q8(x))


def test_ties_go_to_even() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = (127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5)
    q, scale, total = fields(blocks_of(x))
    assert q[0, 0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 126] and not q[0, 0, 8:].any()
    assert scale[0, 0, 0] == np.float32(127) * np.float32(1 / 127) and total[0, 0, 0] == 253 * scale[0, 0, 0]


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros(value: float) -> None:
    assert not blocks_of(np.full((2, 64), value, np.float32))[..., :56].any()


@pytest.mark.parametrize("value", [1e-36, 1e-38, 1e-45, -1e-45])
def test_the_smallest_numbers(value: float) -> None:
    """127 / x is infinite: what comes out may be wrong by no more than x itself."""
    x = np.full((1, 32), value, np.float32)
    x[0, 5] = 0
    blocks = blocks_of(x)
    assert np.abs(kernel_oracles.dequantize_q8(blocks) - x).max() <= 1.01 * np.abs(x).max()
    assert np.abs(fields(blocks)[2]).max() < 1e-28


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 15, 16, 31])
def test_a_number_that_is_not_finite_spoils_its_block_only(bad: float, column: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    clean = blocks_of(x)
    x[1, 32 + column] = bad
    got = blocks_of(x)
    assert not np.isfinite(fields(got)[1][1, 1, 0])
    clean[1, 1] = got[1, 1] = 0
    np.testing.assert_array_equal(same_bits(got), same_bits(clean))


def test_extreme_values() -> None:
    x = np.full((1, 64), np.finfo(np.float32).max, np.float32)
    x[0, 1::2] *= -1
    np.testing.assert_array_equal(blocks_of(x), kernel_oracles.quantize_q8(x))
    one = np.zeros((32, 32), np.float32)
    np.fill_diagonal(one, -3.7)
    got = fields(blocks_of(one))[0][:, 0]
    np.testing.assert_array_equal(got, -127 * np.eye(32))
