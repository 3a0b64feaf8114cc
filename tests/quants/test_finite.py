"""Blocks whose scales are NaN or infinite are found, in every format."""

from __future__ import annotations

import numpy as np
import pytest

from gumba import quants
from gumba.quants import BlockFormat, Finite

FORMATS = list(quants.FORMATS.values())
#: Formats whose invalid scales are decoded to numbers, as by gguf-py: their byte of all ones is NaN in their standard.
BYTE_SCALES = {"mxfp4": 0xFD, "nvfp4": 0x7F}


def finite_rows(format: BlockFormat, n_rows: int, n_blocks: int) -> np.ndarray:
    """Random blocks whose scales are finite; uint8 [n_rows, n_blocks, bytes of a block]."""
    rows = np.random.default_rng(0).integers(0, 256, (n_rows, n_blocks, format.type_size), np.uint8)
    for number in format.finite:  # clear the highest bit of the mask
        rows[:, :, number.offset + (number.mask.bit_length() - 1) // 8] &= (
            0xFF ^ 1 << (number.mask.bit_length() - 1) % 8
        )
    return rows


def find(format: BlockFormat, rows: np.ndarray) -> tuple[int, int] | None:
    return quants.find_not_finite(format, rows.reshape(len(rows), -1))


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_the_first_block_that_does_not_decode_to_numbers_is_found(format: BlockFormat) -> None:
    """Random bytes: a scale in 32 of float16, one in 256 of float32, is not finite. More blocks than are looked at in one run."""
    rows = finite_rows(format, 5, 1000)
    assert find(format, rows) is None
    if format.name in BYTE_SCALES:
        return
    assert np.isfinite(quants.dequantize(format.name, rows.reshape(5, -1))).all()
    bad = np.random.default_rng(1).integers(0, 256, (5000, format.type_size), np.uint8)
    values = quants.dequantize(format.name, bad).reshape(len(bad), -1)
    of_blocks = bad[~np.isfinite(values).all(axis=1)][:3]
    assert len(of_blocks) == 3
    for block, at in zip(of_blocks, (0, 4321, 4999), strict=True):
        damaged = rows.copy()
        damaged[at // 1000, at % 1000] = block
        damaged[4, 999] = block
        assert find(format, damaged) == divmod(at, 1000)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_each_scale_of_a_block_counts(format: BlockFormat) -> None:
    rows = finite_rows(format, 2, 3)
    for number in format.finite:
        damaged = rows.copy()
        field = damaged[1, 2, number.offset : number.offset + number.width]
        field |= np.frombuffer(number.mask.to_bytes(number.width, "little"), np.uint8)
        assert find(format, damaged) == (1, 2)


@pytest.mark.parametrize("format", [f for f in FORMATS if f.name in BYTE_SCALES], ids=lambda f: f.name)
def test_scales_of_a_byte(format: BlockFormat) -> None:
    byte = BYTE_SCALES[format.name]
    for number in format.finite:
        rows = finite_rows(format, 1, 2)
        rows[0, 1, number.offset] = byte - 1
        assert find(format, rows) is None
        rows[0, 1, number.offset] = byte
        assert find(format, rows) == (0, 1)


def test_mxfp4_scales_whose_largest_weight_is_infinite() -> None:
    mxfp4 = quants.get("mxfp4")
    rows = np.full((256, mxfp4.type_size), 0x77, np.uint8)  # every weight is the largest
    rows[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        finite = np.isfinite(mxfp4.dequantize(rows)).all(axis=1)
    assert [find(mxfp4, row[None]) is None for row in rows] == finite.tolist()


def test_scales_are_the_floats_of_a_block() -> None:
    assert quants.get("q4_1").finite == (Finite(0, 2, 0x7C00), Finite(2, 2, 0x7C00))
    assert quants.get("q6_k").finite == (Finite(208, 2, 0x7C00),)
    assert quants.get("f32").finite == (Finite(0, 4, 0x7F800000),)
