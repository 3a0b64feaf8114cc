"""Streams side by side, and functions of whole rows: shapes and values beyond the common case."""

from __future__ import annotations

import numpy as np
import pytest

from support import kernel_setups_altup as setups
from support.kernel_harness import ISAS

ISA = ISAS[0]


@pytest.mark.parametrize("n_streams", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 33, 64])
def test_any_number_of_streams_of_any_width(n_streams: int, width: int) -> None:
    setups.setup_mix_streams(ISA, n_streams, width).check()
    setups.setup_add_to_streams(ISA, n_streams, width).check()
    setups.setup_add_to_streams(ISA, n_streams, width, row=True).check()


@pytest.mark.parametrize("width", [1, 7, 16, 31, 33, 64, 575])
def test_magnitudes_and_greatest_of_any_width(width: int) -> None:
    setups.setup_match_magnitude(ISA, width).check()
    setups.setup_keep_greatest(ISA, width).check()


def test_a_magnitude_has_a_least() -> None:
    for scale in (0.0, 1e-4, 1e-3):  # squares below, and about, 1e-5
        setups.setup_match_magnitude(ISA, scale=scale).check()
    assert (setups.setup_match_magnitude(ISA, scale=0.0).run() == 0).all()


def test_the_greatest_of_numbers_far_from_zero() -> None:
    """The mean is subtracted before anything is squared."""
    setups.setup_keep_greatest(ISA, 575, around=1000.0).check()
    share = (setups.setup_keep_greatest(ISA, 4096, factor=1.6448536).run() > 0).mean()
    assert 0.04 < share < 0.06
    assert (setups.setup_keep_greatest(ISA, factor=np.inf).run() == 0).all()
