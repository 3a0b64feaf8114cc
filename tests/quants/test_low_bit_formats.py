"""Formats of three bits and less, and NVFP4: blocks written by hand, and how their encoders choose."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import quants as reference

from gumba import quants
from gumba.errors import ModelError

q1_0, q2_0, q2_k, q3_k = map(quants.get, ("q1_0", "q2_0", "q2_k", "q3_k"))
tq1_0, tq2_0, nvfp4 = map(quants.get, ("tq1_0", "tq2_0", "nvfp4"))
#: Those with scales of 16 weights in a few bits.
GROUPED = [q2_k, q3_k]


def name_of(value: object) -> str:
    return getattr(value, "name", "")


def half(x: float) -> list[int]:
    return list(np.array(x, "<f2").tobytes())


def two_bits(codes: list[int]) -> list[int]:
    """Codes 0..3 of 256 weights, as Q2_K, Q3_K and TQ2_0 lay them in 64 bytes."""
    out = [0] * 64
    for i, code in enumerate(codes):
        half_of_block, within = divmod(i, 128)
        out[half_of_block * 32 + within % 32] |= code << within // 32 * 2
    return out


def q2_k_block() -> tuple[list[int], list[float]]:
    scales, minimums = [(5 * g + 3) % 16 for g in range(16)], [(7 * g + 2) % 16 for g in range(16)]
    codes = [(i + i // 16) % 4 for i in range(256)]
    weights = [0.5 * scales[i // 16] * code - 0.25 * minimums[i // 16] for i, code in enumerate(codes)]
    packed = [s | m << 4 for s, m in zip(scales, minimums)]
    return packed + two_bits(codes) + half(0.5) + half(0.25), weights


def q3_k_block() -> tuple[list[int], list[float]]:
    scales = [-32, 31, 1, 0, -1, 17, -20, 8, 2, -2, 15, -16, 30, -31, 3, 5]
    codes = [(3 * i + i // 16) % 8 for i in range(256)]
    high, stored = [0] * 32, [0] * 12
    for i, code in enumerate(codes):
        high[i % 32] |= (code >> 2) << i // 32
    for g, scale in enumerate(scales):
        stored[g % 8] |= (scale + 32 & 15) << g // 8 * 4
        stored[8 + g % 4] |= (scale + 32 >> 4) << g // 4 * 2
    weights = [0.25 * scales[i // 16] * (code - 4) for i, code in enumerate(codes)]
    return high + two_bits([code & 3 for code in codes]) + stored + half(0.25), weights


TERNARY_CODES = [(i + i // 7) % 3 for i in range(256)]
TERNARY_WEIGHTS = [0.5 * (code - 1) for code in TERNARY_CODES]


def tq1_0_block() -> list[int]:
    """Each byte's digits, first digit first, as the fraction that they are in base 3, in 256ths and rounded up."""
    columns = [[32 * n + i for n in range(5)] for i in range(32)]
    columns += [[160 + 16 * n + i for n in range(5)] for i in range(16)]
    columns += [[240 + 4 * n + i for n in range(4)] for i in range(4)]
    fractions = [sum(TERNARY_CODES[c] / 3 ** (n + 1) for n, c in enumerate(of_byte)) for of_byte in columns]
    return [int(np.ceil(fraction * 256 - 1e-9)) for fraction in fractions] + half(0.5)


NIBBLE_VALUES = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
#: Scales of NVFP4, and half of the number that each is: 1, 2.5, a subnormal one, the largest.
NVFP4_SCALES = [(0x38, 0.5), (0x42, 1.25), (0x03, 1.5 * 2.0**-9), (0x7E, 224.0)]


def nvfp4_block() -> tuple[list[int], list[float]]:
    codes = [
        7,
        1,
        2,
        3,
        4,
        5,
        6,
        0,
        15,
        14,
        13,
        12,
        11,
        10,
        9,
        7,
    ]  # with the largest value, so that it is also written so
    packed = [codes[i] | codes[i + 8] << 4 for i in range(8)]
    weights = [d * NIBBLE_VALUES[code] for _, d in NVFP4_SCALES for code in codes]
    return [code for code, _ in NVFP4_SCALES] + packed * 4, weights


SIGNS = [(i * i + i // 5) % 3 > 0 for i in range(128)]
Q2_0_CODES = [(i + i // 5) % 3 for i in range(64)]

HAND_WRITTEN = [
    (tq1_0, tq1_0_block(), TERNARY_WEIGHTS),
    (tq2_0, two_bits(TERNARY_CODES) + half(0.5), TERNARY_WEIGHTS),
    (nvfp4, *nvfp4_block()),
    (
        q1_0,
        half(0.5) + [sum(SIGNS[8 * m + i] << i for i in range(8)) for m in range(16)],
        [0.5 if sign else -0.5 for sign in SIGNS],
    ),
    (
        q2_0,
        half(0.5) + [sum(Q2_0_CODES[4 * m + i] << 2 * i for i in range(4)) for m in range(16)],
        [0.5 * (code - 1) for code in Q2_0_CODES],
    ),
]


@pytest.mark.parametrize("format, block, weights", HAND_WRITTEN, ids=name_of)
def test_a_hand_written_block_reads_and_writes(format, block, weights):
    np.testing.assert_array_equal(format.dequantize(np.array(block, np.uint8)), np.array(weights, np.float32))
    np.testing.assert_array_equal(format.quantize(np.array(weights, np.float32)), np.array(block, np.uint8))


@pytest.mark.parametrize("format, block, weights", [(q2_k, *q2_k_block()), (q3_k, *q3_k_block())], ids=name_of)
def test_a_hand_written_block_of_groups_reads_and_is_written_without_error(format, block, weights):
    """Other numbers may stand for the same weights."""
    weights = np.array(weights, np.float32)
    np.testing.assert_array_equal(format.dequantize(np.array(block, np.uint8)), weights)
    np.testing.assert_allclose(format.dequantize(format.quantize(weights)), weights, atol=1e-3)


@pytest.mark.parametrize("format", [tq2_0, q2_0], ids=name_of)
def test_the_code_3_that_no_encoder_writes_is_twice_the_scale(format):
    block = np.zeros(1, format.dtype)
    block["d"], block["qs"] = -1.5, 0xE4  # codes 0, 1, 2, 3
    got = format.dequantize(block.view(np.uint8))
    assert sorted(set(got)) == [-3.0, -1.5, 0.0, 1.5]


# --- encoders


def spread(rng: np.random.Generator) -> np.ndarray:
    """float32 [64, 256]: rows of very different sizes, halves among them."""
    x = rng.standard_normal((64, 256)) * 10.0 ** rng.uniform(-5, 3, (64, 1))
    x[:8] = rng.integers(-4, 5, (8, 256)) / 2
    return x.astype(np.float32)


def test_nvfp4_takes_the_nearest_values_of_the_nearest_scale():
    x = spread(np.random.default_rng(1))
    got = nvfp4.quantize(x).reshape(-1).view(nvfp4.dtype)
    groups = x.reshape(-1, 4, 16)
    scales = reference.NVFP4.fp32_to_ue4m3(np.abs(groups).max(axis=2) / np.float32(6))
    np.testing.assert_array_equal(got["d"], scales)
    d = reference.NVFP4.ue4m3_to_fp32(scales).astype(np.float32)[..., None, None]
    codes = np.abs(d * np.array(NIBBLE_VALUES, np.float32) - groups[..., None]).argmin(axis=3).astype(np.uint8)
    np.testing.assert_array_equal(got["qs"].reshape(-1, 4, 8), codes[..., :8] | codes[..., 8:] << 4)


def test_nvfp4_has_no_room_above_its_largest_value():
    x = np.full(64, np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(nvfp4.dequantize(nvfp4.quantize(x)), np.full(64, 12 * 224, np.float32))


def test_q1_0_keeps_signs_and_the_mean_magnitude():
    x = spread(np.random.default_rng(2))
    got = q1_0.quantize(x).reshape(-1).view(q1_0.dtype)
    blocks = x.reshape(-1, 128)
    mean = np.add.accumulate(np.abs(blocks), axis=1)[:, -1] / np.float32(128)  # summed in order
    np.testing.assert_array_equal(got["d"], mean.astype(np.float16))
    np.testing.assert_array_equal(got["qs"], np.packbits(blocks >= 0, axis=1, bitorder="little"))


def test_q2_0_rounds_to_the_largest_magnitude():
    x = spread(np.random.default_rng(3))
    got = q2_0.quantize(x).reshape(-1).view(q2_0.dtype)
    blocks = x.reshape(-1, 64)
    d = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks * (np.float32(1) / d)
    codes = (np.sign(scaled) * (np.abs(scaled) >= 0.5) + 1).astype(np.uint8).reshape(-1, 16, 4)
    np.testing.assert_array_equal(got["d"], d[:, 0].astype(np.float16))
    np.testing.assert_array_equal(got["qs"], (codes << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2))


@pytest.mark.parametrize("format", GROUPED, ids=name_of)
def test_blocks_do_not_depend_on_their_neighbours(format):
    """Sixteen blocks are searched at a time; each must come out as it does alone."""
    x = np.random.default_rng(9).standard_normal((37, 256)).astype(np.float32)
    np.testing.assert_array_equal(format.quantize(x), np.stack([format.quantize(row) for row in x]))


@pytest.mark.parametrize("format", GROUPED, ids=name_of)
@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-45, 1e-41, 1e-35, 1e-12])
def test_weights_below_the_smallest_scale_become_zero(format, scale):
    assert not np.any(format.dequantize(format.quantize(np.full((2, 256), scale, np.float32))))


@pytest.mark.parametrize("format", GROUPED, ids=name_of)
def test_groups_of_very_different_size(format):
    x = np.random.default_rng(7).standard_normal((16, 16)).astype(np.float32)
    x[3], x[5] = 0, x[5] * 1e-20
    x[9] *= 1000
    got = format.dequantize(format.quantize(x.reshape(-1))).reshape(16, 16)
    assert not np.any(got[[3, 5]])
    assert np.abs(got[9] - x[9]).max() < np.abs(x[9]).max() / 3


@pytest.mark.parametrize("format", [q2_k, q3_k], ids=lambda format: format.name)
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.2])
def test_groups_of_numbers_that_hardly_differ(format, spread):
    """All below zero: Q2_K's minimum alone stands for the group; or above: its scale does."""
    x = (-1 - spread * np.abs(np.random.default_rng(3).standard_normal((64, 256)))).astype(np.float32)
    for values in (x, -x):
        back = format.dequantize(format.quantize(values))
        assert np.sqrt(np.square(back - values).mean()) < 0.01 + spread


def test_q2_k_stores_groups_that_are_all_positive():
    """Their minimum is 0: a minimum only lowers weights."""
    x = np.random.default_rng(11).uniform(2, 3, 256).astype(np.float32)
    block = q2_k.quantize(x).view(q2_k.dtype)
    assert not np.any(block["scales"] >> 4)
    assert np.abs(q2_k.dequantize(block.view(np.uint8)) - x).mean() < 0.3


@pytest.mark.parametrize(
    "format, largest",
    [(tq1_0, 65519.0), (tq2_0, 65519.0), (q2_0, 65519.0), (q3_k, 3e6), (q2_k, 9e5)],
    ids=name_of,
)
def test_a_weight_too_large_for_the_format_is_named(format, largest):
    x = np.random.default_rng(16).standard_normal((2, 256)).astype(np.float32)
    x[1, 77] = -largest
    assert np.all(np.isfinite(format.dequantize(format.quantize(x))))
    x[1, 77] = -largest * 10
    with pytest.raises(ModelError, match=rf"at \[1, 77\]: too large for {format.name}"):
        format.quantize(x)
