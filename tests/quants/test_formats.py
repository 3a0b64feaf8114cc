"""Block formats against hand-written blocks, gguf-py's NumPy quantizers bit for bit, and error budgets."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import quants as reference

from gumba import quants
from gumba.errors import ModelError, RequestError, UnsupportedError
from gumba.gguf import GGML_TYPES
from gumba.quants import BlockFormat, DotFormat, PackField
from support.kernel_harness import random_rows


def gguf_reads(format: BlockFormat) -> bool:
    """Whether gguf-py decodes this type; it has names of more."""
    try:
        reference.dequantize(np.zeros(format.type_size, np.uint8), GGMLQuantizationType(format.ggml_type))
    except (ValueError, NotImplementedError):
        return False
    return True


ALL = list(quants.FORMATS.values())
f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, mxfp4 = map(
    quants.get, ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4")
)
iq4_nl, iq4_xs = map(quants.get, ("iq4_nl", "iq4_xs"))
q4_k, q5_k, q6_k = map(quants.get, ("q4_k", "q5_k", "q6_k"))
#: The formats that gumba quantizes to; the others are only read.
WRITTEN = [format for format in ALL if format.loops()[0] is not None]
#: The formats that gguf-py can read.
OF_GGUF = [format for format in ALL if gguf_reads(format)]
QUANTIZED_BY_GGUF = [f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, mxfp4, *map(quants.get, ("tq1_0", "tq2_0"))]
BLOCKS = [format for format in ALL if isinstance(format, DotFormat)]
#: Those whose scale ends with float16's range.
F16_SCALED = [
    format
    for format in WRITTEN
    if isinstance(format, DotFormat) and any(format.dtype[name] == np.dtype("<f2") for name in format.dtype.names)
]


def name_of(format: BlockFormat) -> str:
    return format.name


by_name = pytest.mark.parametrize("format", ALL, ids=name_of)
written = pytest.mark.parametrize("format", WRITTEN, ids=name_of)
of_gguf = pytest.mark.parametrize("format", OF_GGUF, ids=name_of)


def gguf_type(format) -> GGMLQuantizationType:
    return GGMLQuantizationType(format.ggml_type)


def gguf_quantize(format, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        made = reference.quantize(np.ascontiguousarray(x, np.float32), gguf_type(format))
    return made.view(np.uint8).reshape(*x.shape[:-1], -1)


def gguf_dequantize(format, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return reference.dequantize(data, gguf_type(format))


def assert_same_floats(got, expected):
    """Equal bit for bit, the sign of zeros included; NaNs where NaNs are (which NaN depends on the processor)."""
    assert got.dtype == expected.dtype == np.float32
    assert got.shape == expected.shape
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def half(x: float) -> list[int]:
    return list(np.array(x, "<f2").tobytes())


# --- the registry


@by_name
def test_sizes_are_those_that_files_have(format):
    assert format.ggml_type in GGML_TYPES, f"{format.name} needs a line in gumba/gguf/types.py"
    known = GGML_TYPES[format.ggml_type]
    assert (known.name, known.block_size, known.type_size) == (format.name, format.block_size, format.type_size)
    assert format.packed_block_size in (1, *range(32, 257, 32)) and format.block_size % format.packed_block_size == 0


@of_gguf
def test_sizes_are_those_of_ggml(format):
    assert GGML_QUANT_SIZES[gguf_type(format)] == (format.block_size, format.type_size)
    assert gguf_type(format).name == format.name.upper()
    assert format.dtype.itemsize == format.type_size


@by_name
def test_get_by_name_and_by_id(format):
    assert quants.get(format.name) is quants.get(format.name.upper()) is quants.get(format.ggml_type) is format


@pytest.mark.parametrize("unknown", ["q9_9", 999, ""])
def test_an_unknown_format_lists_the_known_ones(unknown):
    with pytest.raises(UnsupportedError) as caught:
        quants.get(unknown)
    assert repr(unknown) in str(caught.value)
    assert all(f"{format.name} ({format.ggml_type})" in str(caught.value) for format in ALL)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"ggml_type": 8}, r"new \(8\) is registered twice"),
        ({"name": "q8_0"}, r"q8_0 \(77\) is registered twice"),
        ({"dtype": np.dtype("u1")}, "blocks of 34 bytes, its dtype 1"),
        ({"packed_block_size": 64}, "blocks of 32 weights, packed blocks of 64"),
        ({"packed_block_size": 16}, "blocks of 32 weights, packed blocks of 16, and no to_packed"),
        ({"pack_fields": (PackField(0, 2, 1), PackField(2, 4, 7))}, "blocks of 34 bytes, its pack fields 30"),
        ({"pack_fields": (PackField(0, 2, 1), PackField(2, 4, 9))}, "blocks of 34 bytes, its pack fields 38"),
        ({"pack_fields": (PackField(2, 4, 8),)}, "pack fields of 32 bytes, which end at byte 34"),
    ],
)
def test_a_contradictory_registration_is_refused(changed, message):
    new = replace(q8_0, name="new", ggml_type=77)
    assert list(quants.register([q8_0, new])) == [8, 77]
    with pytest.raises(ValueError, match=message):
        quants.register([q8_0, replace(new, **changed)])


def test_importing_the_formats_does_not_import_numba():
    code = "import sys, gumba.quants; gumba.quants.get('q4_0').dtype; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- one block of each, written by hand

Q6_K_CODES = [(7 * i) % 64 for i in range(256)]
Q6_K_SCALES = [3, -5, 127, -128, 0, 1, 2, 4, 8, 16, -1, -2, -4, -8, 64, 100]


def q6_k_block() -> list[int]:
    """The layout written out weight by weight, as the format's drawing says."""
    ql, qh = [0] * 128, [0] * 64
    for i, code in enumerate(Q6_K_CODES):
        part, within = divmod(i, 128)
        ql[part * 64 + within % 64] |= (code & 15) << (4 if within >= 64 else 0)
        qh[part * 32 + within % 32] |= (code >> 4) << (within // 32 * 2)
    return ql + qh + [s % 256 for s in Q6_K_SCALES] + half(0.25)


IQ4_VALUES = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
IQ4_XS_SCALES = [-32, 31, 1, 0, -1, 17, -20, 8]
#: Zeros are written as the value nearest to 0, times a scale of 0.
IQ4_XS_CODES = [(5 * i + g) % 16 if scale else 8 for g, scale in enumerate(IQ4_XS_SCALES) for i in range(32)]


def iq4_xs_block() -> list[int]:
    """The layout written out scale by scale and weight by weight, as the format's drawing says."""
    high, low, codes = 0, [0] * 4, [0] * 128
    for g, scale in enumerate(IQ4_XS_SCALES):
        high |= (scale + 32 >> 4) << 2 * g
        low[g // 2] |= (scale + 32 & 15) << g % 2 * 4
    for i, code in enumerate(IQ4_XS_CODES):
        codes[i // 32 * 16 + i % 16] |= code << i % 32 // 16 * 4
    return half(0.25) + list(high.to_bytes(2, "little")) + low + codes


K_SCALES, K_MINIMUMS = [63, 1, 0, 17, 32, 47, 5, 62], [0, 63, 33, 2, 16, 31, 48, 7]


def k_block(bits: int) -> tuple[list[int], list[float]]:
    """A block of Q4_K or Q5_K, written out part by part and weight by weight, and its weights."""
    scales, high, low = [0] * 12, [0] * 32, [0] * 128
    for part, (scale, minimum) in enumerate(zip(K_SCALES, K_MINIMUMS)):
        if part < 4:
            scales[part] |= scale
            scales[part + 4] |= minimum
        else:
            scales[part + 4] |= scale & 15 | (minimum & 15) << 4
            scales[part - 4] |= scale >> 4 << 6
            scales[part] |= minimum >> 4 << 6
    codes = [(7 * i + i // 32) % (1 << bits) for i in range(256)]
    for i, code in enumerate(codes):
        part, within = divmod(i, 32)
        low[part // 2 * 32 + within] |= (code & 15) << part % 2 * 4
        high[within] |= code >> 4 << part
    weights = [0.25 * K_SCALES[i // 32] * code - 0.5 * K_MINIMUMS[i // 32] for i, code in enumerate(codes)]
    return half(0.25) + half(0.5) + scales + (high if bits == 5 else []) + low, weights


#: Signs of 32 groups of 8 weights. Two of each are negative, so the last one's sign may be told by the others.
SIGNS = [1 << k % 7 | 0x80 for k in range(32)]
NIBBLES = [2 * i % 16 | (2 * i + 1) % 16 << 4 for i in range(8)]


def codebook_block(name: str) -> tuple[list[int], list[float]]:
    """A block of a codebook's first entry, the last of it the codebook's last, written out by hand; and its weights."""

    def words(size: int, numbers: list[int]) -> list[int]:
        return list(b"".join(number.to_bytes(size, "little") for number in numbers))

    signs_and_scales = [
        sum((SIGNS[4 * g + k] & 127) << 7 * k for k in range(4)) | (3 * g + 1) % 16 << 28 for g in range(8)
    ]
    if name == "iq2_xxs":
        block = half(0.25) + words(8, [signs_and_scales[g] << 32 | (255 << 24 if g == 7 else 0) for g in range(8)])
        scales, first, last = (
            [0.0625 * (0.5 + (3 * g + 1) % 16) for g in range(8)],
            [8] * 8,
            [8, 25, 8, 8, 25, 43, 43, 43],
        )
    elif name == "iq2_xs":
        block = half(0.25) + words(2, [(SIGNS[k] & 127) << 9 | (511 if k == 31 else 0) for k in range(32)]) + NIBBLES
        scales, first, last = [0.0625 * (0.5 + g) for g in range(16)], [8] * 8, [43] * 8
    elif name == "iq2_s":
        block = half(0.25) + [0] * 31 + [255] + SIGNS + [0] * 7 + [0xC0] + NIBBLES
        scales, first, last = [0.0625 * (0.5 + g) for g in range(16)], [8] * 8, [43] * 8
    elif name == "iq3_xxs":
        block = half(0.25) + [0] * 63 + [255] + words(4, signs_and_scales)
        scales, first, last = [0.125 * (0.5 + (3 * g + 1) % 16) for g in range(8)], [4] * 8, [4, 4, 4, 4, 4, 28, 52, 62]
    elif name == "iq3_s":
        block = half(0.25) + [0] * 63 + [255] + [0] * 7 + [0x80] + SIGNS + NIBBLES[:4]
        scales, first, last = [0.25 * (1 + 2 * g) for g in range(8)], [1] * 8, [1, 1, 1, 1, 1, 1, 15, 15]
    elif name == "iq1_s":
        of_groups = [g << 12 | (g % 2) << 15 | (7 << 9 if g == 7 else 0) for g in range(8)]
        block = half(0.25) + [0] * 31 + [255] + words(2, of_groups)
        scales, first, last = [0.25 * (1 + 2 * g) for g in range(8)], [-1] * 8, [1] * 8
    else:
        h = [k % 2 << 3 for k in range(31)] + [15]
        bits, scale_bits = 0x3400, [0o3210, 0o7654, 0o3210, 0o7654]  # 0.25; scales 0 to 7, twice
        block = [0] * 31 + [255] + [h[i] | h[i + 1] << 4 for i in range(0, 32, 2)]
        block += words(2, [of_64 | (bits >> 4 * i & 15) << 12 for i, of_64 in enumerate(scale_bits)])
        scales, first, last = [0.25 * (1 + 2 * (g % 8)) for g in range(16)], [-1] * 8, [1] * 8
    weights = []
    for i in range(256):
        k, within = divmod(i, 8)
        number = float((last if k == 31 else first)[within])
        if name == "iq1_s":
            number += -0.125 if k // 4 % 2 else 0.125
        elif name == "iq1_m":
            number += -0.125 if k % 2 else 0.125
        elif SIGNS[k] >> within & 1:
            number = -number
        weights.append(scales[i * len(scales) // 256] * number)
    return block, weights


MXFP4_VALUES = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]

HAND_WRITTEN = [
    (f32, [0x00, 0x00, 0xC0, 0x3F], [1.5]),
    (f16, [0x00, 0x3E], [1.5]),
    (bf16, [0xC0, 0xBF], [-1.5]),
    (q8_0, half(0.5) + [i * 4 for i in range(31)] + [256 - 127], [i * 2.0 for i in range(31)] + [-63.5]),
    # d = 0.5: the low nibbles are weights 0-15, and the largest, -4, is 0
    (
        q4_0,
        half(0.5) + [(15 - i) << 4 | i for i in range(16)],
        [(i - 8) * 0.5 for i in range(16)] + [(7 - i) * 0.5 for i in range(16)],
    ),
    (
        q4_1,
        half(0.25) + half(-3) + [(15 - i) << 4 | i for i in range(16)],
        [i * 0.25 - 3 for i in range(16)] + [(15 - i) * 0.25 - 3 for i in range(16)],
    ),
    # the fifth bits are those of odd weights of the first half, and of the last 8 weights
    (
        q5_0,
        half(0.5) + [0xAA, 0xAA, 0x00, 0xFF] + [(15 - i) << 4 | i for i in range(16)],
        [(i + 16 * (i % 2) - 16) * 0.5 for i in range(16)] + [(15 - i + 16 * (i >= 8) - 16) * 0.5 for i in range(16)],
    ),
    (
        q5_1,
        half(0.25) + half(-3) + [0xAA, 0xAA, 0x00, 0xFF] + [(15 - i) << 4 | i for i in range(16)],
        [(i + 16 * (i % 2)) * 0.25 - 3 for i in range(16)] + [(15 - i + 16 * (i >= 8)) * 0.25 - 3 for i in range(16)],
    ),
    # scale 2^(127 - 128): all values but -0, for which 0 stands
    (
        mxfp4,
        [127] + [(15 - i if i != 7 else 0) << 4 | (i if i != 8 else 0) for i in range(16)],
        [0.5 * v for v in (MXFP4_VALUES + MXFP4_VALUES[::-1])],
    ),
    (
        iq4_nl,
        half(0.25) + [(15 - i) << 4 | i for i in range(16)],
        [v * 0.25 for v in (IQ4_VALUES + IQ4_VALUES[::-1])],
    ),
    (
        iq4_xs,
        iq4_xs_block(),
        [0.25 * IQ4_XS_SCALES[i // 32] * IQ4_VALUES[code] for i, code in enumerate(IQ4_XS_CODES)],
    ),
]


@pytest.mark.parametrize("format, block, weights", HAND_WRITTEN, ids=lambda v: getattr(v, "name", ""))
def test_a_hand_written_block_reads_and_writes(format, block, weights):
    np.testing.assert_array_equal(format.dequantize(np.array(block, np.uint8)), np.array(weights, np.float32))
    np.testing.assert_array_equal(format.quantize(np.array(weights, np.float32)), np.array(block, np.uint8))


@pytest.mark.parametrize("format, bits", [(q4_k, 4), (q5_k, 5)], ids=["q4_k", "q5_k"])
def test_a_hand_written_block_of_parts(format, bits):
    """It reads, and its weights survive being written, also those of parts that are one number."""
    block, weights = k_block(bits)
    np.testing.assert_array_equal(format.dequantize(np.array(block, np.uint8)), np.array(weights, np.float32))
    np.testing.assert_array_equal(format.dequantize(format.quantize(np.array(weights, np.float32))), weights)


@pytest.mark.parametrize("name", ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
def test_a_hand_written_block_of_codebook_entries_reads(name):
    block, weights = codebook_block(name)
    np.testing.assert_array_equal(quants.dequantize(name, np.array(block, np.uint8)), np.array(weights, np.float32))


def test_a_hand_written_q6_k_block_reads():
    expected = [0.25 * Q6_K_SCALES[i // 16] * (code - 32) for i, code in enumerate(Q6_K_CODES)]
    np.testing.assert_array_equal(q6_k.dequantize(np.array(q6_k_block(), np.uint8)), np.array(expected, np.float32))


def test_q6_k_writes_what_fits_exactly():
    """Weights that are exact multiples of int8 scales survive: quantize finds an encoding with no error at all."""
    codes = np.array([(11 * i) % 64 for i in range(16)]) - 32
    codes[0] = -32  # the whole range is used
    scales = np.array([-128, 64, 32, -16, 8, 4, 2, 1, 127, 100, 50, 25, -10, 5, 3, 0])
    weights = (0.125 * scales[:, None] * codes[None, :]).astype(np.float32).reshape(-1)
    np.testing.assert_array_equal(q6_k.dequantize(q6_k.quantize(weights)), weights)


def test_the_largest_scale_of_a_q6_k_block_sets_d():
    rng = np.random.default_rng(1)
    blocks = q6_k.quantize(rng.standard_normal(512).astype(np.float32)).view(q6_k.dtype)
    assert blocks["scales"].shape == (2, 16)
    assert set(np.abs(blocks["scales"].astype(int)).max(axis=1)) <= {127, 128}


# --- the NumPy code in each format's docstring


def numpy_dequantize(format: BlockFormat) -> Callable[[np.ndarray], np.ndarray]:
    """The function that the docstring of the format's file defines."""
    text = sys.modules[format.loops.__module__].__doc__
    [code] = re.findall(r"^( +def dequantize\(blocks\):.*\n(?: +.*\n)+)", text, re.MULTILINE)
    lines = code.splitlines()
    assert len(lines) <= 9, "the definition, and at most eight lines"
    indent = len(lines[0]) - len(lines[0].lstrip())
    scope = {"np": np}
    exec("\n".join(line[indent:] for line in lines), scope)
    return scope["dequantize"]


@by_name
def test_the_docstring_says_what_the_compiled_loop_does(format):
    """Bit for bit, for random bytes, zero bytes, and what the format writes itself."""
    rng = np.random.default_rng(17)
    cases = [
        rng.integers(0, 256, (257, 6 * format.type_size), dtype=np.uint8),
        random_rows(format, 7, 3 * format.block_size, rng),
        np.zeros((2, 2 * format.type_size), np.uint8),
    ]
    if format in WRITTEN:
        cases.append(format.quantize(rng.standard_normal((5, 1024)).astype(np.float32)))
    for data in cases:
        blocks = np.ascontiguousarray(data).reshape(-1).view(format.dtype)
        with np.errstate(all="ignore"):
            expected = np.asarray(numpy_dequantize(format)(blocks))
        assert expected.shape == (len(blocks), format.block_size)
        assert_same_floats(format.dequantize(data).reshape(expected.shape), np.ascontiguousarray(expected))


# --- gguf-py, bit for bit


def ties(rng) -> np.ndarray:
    """Weights that fall halfway between two codes, and the floats just beside them; both signs of the largest."""
    x = np.concatenate([np.arange(-127, 128) + 0.5, np.arange(-8, 9) + 0.5, [127, -127, 8, -8, 7.5]] * 8)
    x = np.concatenate([x, np.nextafter(x, np.inf, dtype=np.float32), np.nextafter(x, -np.inf, dtype=np.float32)])
    x = rng.permutation(x)[: x.size // 32 * 32].astype(np.float32).reshape(-1, 32)
    x[:, 5], x[:, 20] = 127, -127
    x[::2, 5], x[::2, 20] = -8, 8
    x[::2] = np.clip(x[::2], -8, 8)
    return x.reshape(1, -1)


def gaussian(scale):
    return lambda rng: (rng.standard_normal((37, 96)) * scale).astype(np.float32)


INPUTS = {
    "random": gaussian(0.02),
    "wide": lambda rng: np.exp(rng.uniform(-30, 10, (64, 64))).astype(np.float32) * rng.choice([-1, 1], (64, 64)),
    "zeros": lambda rng: np.zeros((3, 64), np.float32),
    "negative zeros": lambda rng: np.full((3, 64), -0.0, np.float32),
    "constant": lambda rng: np.full((2, 64), 0.3, np.float32),
    "negative constant": lambda rng: np.full((2, 64), -7.7, np.float32),
    "one of 32": lambda rng: np.eye(32, dtype=np.float32) * -3,
    "integers": lambda rng: rng.integers(-8, 9, (64, 64)).astype(np.float32),
    "ties": ties,
    "subnormal as float16": gaussian(1e-6),
    "zero as float16": gaussian(1e-12),
    "near float32's smallest normal": gaussian(1e-36),
    "huge": lambda rng: np.clip(rng.standard_normal((64, 64)) * 20000, -65504, 65504).astype(np.float32),
    "positive only": lambda rng: rng.uniform(3, 4, (16, 64)).astype(np.float32),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("format", QUANTIZED_BY_GGUF, ids=name_of)
def test_quantize_gives_the_bytes_of_gguf(format, name):
    x = np.ascontiguousarray(INPUTS[name](np.random.default_rng(0)), np.float32)
    if x.shape[-1] % format.block_size:
        x = np.resize(x, (-(-x.size // format.block_size), format.block_size))
    np.testing.assert_array_equal(format.quantize(x), gguf_quantize(format, x))


@pytest.mark.parametrize("format", [q8_0, q4_0, q5_0], ids=name_of)
def test_scales_up_to_the_largest_float16(format):
    x = np.random.default_rng(0).uniform(-1, 1, (64, 64)).astype(np.float32)
    x *= np.float32(65519.0 * {"q8_0": 127, "q4_0": 8, "q5_0": 16}[format.name]) / np.abs(x).max()
    np.testing.assert_array_equal(format.quantize(x), gguf_quantize(format, x))


@pytest.mark.parametrize("format", [q8_0, q4_0, q4_1, q5_0, q5_1], ids=name_of)
def test_blocks_too_small_for_an_inverse_scale_decode_to_zero(format):
    """1/d is infinite here, so that gguf-py's codes depend on the processor; the scale is 0 in both."""
    x = (np.random.default_rng(0).standard_normal((4, 64)) * 1e-41).astype(np.float32)
    assert not np.any(format.dequantize(format.quantize(x)))


@of_gguf
def test_dequantize_of_random_bytes_gives_the_floats_of_gguf(format):
    """Any bytes: scales are subnormal, infinite and NaN among them."""
    data = np.random.default_rng(2).integers(0, 256, (257, 6 * format.type_size), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = format.dequantize(data)
    assert_same_floats(got, gguf_dequantize(format, data))


@of_gguf
def test_dequantize_of_zero_bytes(format):
    data = np.zeros((2, 2 * format.type_size), np.uint8)
    assert_same_floats(format.dequantize(data), gguf_dequantize(format, data))


def test_every_float16_decodes_as_in_numpy():
    every = np.arange(65536, dtype=np.uint16)
    assert_same_floats(f16.dequantize(every.view(np.uint8)), every.view(np.float16).astype(np.float32))


def test_float16_rounding_at_and_beside_every_midpoint():
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (every[1:] + every[:-1]) / 2
    x = np.concatenate([every, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(70000))])
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(f16.quantize(x).view(np.uint16), x.astype(np.float16).view(np.uint16))


def test_bfloat16_rounding_of_any_finite_bits():
    bits = np.random.default_rng(3).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    bits = np.concatenate([bits, (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)])  # ties
    bits = bits[(bits & np.uint32(0x7FFFFFFF)) < np.uint32(0x7F7F8000)]
    np.testing.assert_array_equal(bf16.quantize(bits.view(np.float32)), gguf_quantize(bf16, bits.view(np.float32)))


def test_a_tensor_of_many_pieces_gives_the_bytes_of_gguf():
    x = np.random.default_rng(4).standard_normal((301, 2048)).astype(np.float32)
    for format in (q4_0, q8_0, q4_1):
        for n_threads in (1, 2, 3, 7):
            np.testing.assert_array_equal(format.quantize(x, n_threads=n_threads), gguf_quantize(format, x))
    data = q4_0.quantize(x)
    assert_same_floats(q4_0.dequantize(data, n_threads=3), gguf_dequantize(q4_0, data))


# --- error budgets: root mean square error over that of the weights, for normal and heavy-tailed (Laplace) weights

#: Measured, rounded up. ggml's own quantizers, for q6_k: 0.01775 and 0.02169; iq4_nl: 0.0760 and 0.0878; iq4_xs: 0.0765 and
#: 0.0885; q3_k: 0.1509 and 0.1764; q2_k: 0.2970 and 0.3435. A format that is not here has 4 / 2^bits.
BUDGET = {
    "f32": (0, 0),
    "f16": (2.09e-4, 2.09e-4),
    "bf16": (1.67e-3, 1.67e-3),
    "q8_0": (5.33e-3, 6.71e-3),
    "q4_0": (0.0857, 0.1064),
    "q4_1": (0.0781, 0.0913),
    "q5_0": (0.0426, 0.0532),
    "q5_1": (0.0378, 0.0443),
    "q4_k": (0.0706, 0.0836),
    "q5_k": (0.0354, 0.0421),
    "mxfp4": (0.1151, 0.1268),
    "q6_k": (0.0176, 0.0216),
    "iq4_nl": (0.0759, 0.0886),
    "iq4_xs": (0.0765, 0.0893),
    "nvfp4": (0.1032, 0.0971),
    "q3_k": (0.1505, 0.1774),
    "q2_k": (0.2725, 0.3075),
    "tq1_0": (0.8061, 0.8292),
    "tq2_0": (0.8061, 0.8292),
    "q2_0": (0.7163, 0.7250),
    "q1_0": (0.6000, 0.7038),
}


@written
@pytest.mark.parametrize("column, draw", [(0, "standard_normal"), (1, "laplace")])
@pytest.mark.parametrize("scale", [0.02, 1.0, 300.0])
def test_error_budget(format, column, draw, scale):
    scale = min(scale, 30.0) if format.name == "nvfp4" else scale  # its largest weight is 2688
    x = (getattr(np.random.default_rng(5), draw)(size=(256, 1024)) * scale).astype(np.float32)
    error = format.dequantize(format.quantize(x)).astype(np.float64) - x
    bits = 8 * format.type_size // format.block_size
    budget = BUDGET[format.name][column] if format.name in BUDGET else 4 * 2.0**-bits
    assert np.sqrt(np.mean(error**2) / np.mean(x.astype(np.float64) ** 2)) <= budget


# --- q6_k's own quantizer


def test_q6_k_error_of_each_weight_is_bounded():
    """Never further off than a step and a bit: the group's range over 31, plus what rounding the group's scale adds."""
    x = np.random.default_rng(6).standard_normal((64, 256)).astype(np.float32)
    error = np.abs(q6_k.dequantize(q6_k.quantize(x)) - x).reshape(64, 16, 16)
    largest = np.abs(x).reshape(64, 16, 16).max(axis=2, keepdims=True)
    assert np.all(error <= largest / 31 * 2 + largest.max(axis=1, keepdims=True) / 128)


@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-45, 1e-41, 1e-35, 1e-12])
def test_q6_k_of_weights_below_its_scale_is_zero(scale):
    x = np.full((2, 256), scale, np.float32)
    assert not np.any(q6_k.dequantize(q6_k.quantize(x)))


def test_q6_k_groups_of_very_different_size():
    x = np.random.default_rng(7).standard_normal((16, 16)).astype(np.float32)
    x[3], x[5] = 0, x[5] * 1e-20
    x[9] *= 1000
    got = q6_k.dequantize(q6_k.quantize(x.reshape(-1))).reshape(16, 16)
    assert not np.any(got[[3, 5]])
    assert np.abs(got[9] - x[9]).max() < np.abs(x[9]).max() / 31


K_QUANTS = pytest.mark.parametrize("format", [q4_k, q5_k, q6_k], ids=name_of)


@K_QUANTS
def test_the_same_up_to_a_power_of_two(format):
    x = np.random.default_rng(8).standard_normal((8, 512)).astype(np.float32)
    small, large = (format.quantize(x * np.float32(f)).view(format.dtype) for f in (1, 1024))
    for field in set(format.dtype.names) - {"d", "dmin"}:
        np.testing.assert_array_equal(small[field], large[field])


@K_QUANTS
def test_blocks_do_not_depend_on_their_neighbours(format):
    """Several are searched at a time; each must come out as it does alone."""
    x = np.random.default_rng(9).standard_normal((37, 256)).astype(np.float32)
    np.testing.assert_array_equal(format.quantize(x), np.stack([format.quantize(row) for row in x]))


# --- the quantizer of q4_k and q5_k


@pytest.mark.parametrize("format, bits", [(q4_k, 4), (q5_k, 5)], ids=["q4_k", "q5_k"])
def test_parts_of_one_number_and_of_one_sign(format, bits):
    """Numbers below 0 are minimums; above 0 there is no minimum, and the largest integer stands for the number."""
    uniform = np.random.default_rng(10).uniform(3, 4, 256).astype(np.float32)
    for x, step in (
        (np.full(256, 3.3, np.float32), 1e-3),
        (np.full(256, -3.3, np.float32), 1e-3),
        (uniform, 4 / (1 << bits)),
        (-uniform, 1 / (1 << bits) + 4 / 126),
        (np.where(np.arange(256) < 32, np.float32(-1.5), np.float32(0)), 1e-3),
        (np.where(np.arange(256) == 77, np.float32(1.5), np.float32(0)), 1e-3),
    ):
        assert np.abs(format.dequantize(format.quantize(x)) - x).max() <= step


@pytest.mark.parametrize("format", [q4_k, q5_k], ids=name_of)
@pytest.mark.parametrize("scale", [0.0, -0.0, 1e-45, -1e-41, 1e-35, -1e-35, 1e-12])
def test_parts_below_the_smallest_scale_are_zero(format, scale):
    assert not np.any(format.dequantize(format.quantize(np.full((2, 256), scale, np.float32))))


# --- mxfp4's scales


def test_mxfp4_scales_from_the_smallest_to_the_largest():
    """One value per block, at each power of two that float32 has; below the smallest scale's, zeros."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 128))
    x = np.zeros((len(powers), 32), np.float32)
    x[:, 9] = -powers
    back = mxfp4.dequantize(mxfp4.quantize(x))
    np.testing.assert_array_equal(back[powers >= 2.0**-128], x[powers >= 2.0**-128])
    assert not back[powers < 2.0**-129].any()


def test_mxfp4_has_room_for_every_finite_weight():
    """What is above 12 times the scale becomes that."""
    x = np.full(32, np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(mxfp4.dequantize(mxfp4.quantize(x)), np.full(32, 12 * 2.0**124, np.float32))


# --- shapes, types, outputs


@written
@pytest.mark.parametrize("shape", [(256,), (3, 256), (2, 3, 512), (1, 2, 1, 256), (0, 256), (4, 0)])
def test_shapes(format, shape):
    x = np.random.default_rng(10).standard_normal(shape).astype(np.float32)
    data = format.quantize(x)
    assert data.dtype == np.uint8
    assert data.shape == (*shape[:-1], shape[-1] // format.block_size * format.type_size)
    assert format.dequantize(data).shape == shape
    np.testing.assert_array_equal(data.reshape(-1), format.quantize(x.reshape(-1)))


@pytest.mark.parametrize("format", BLOCKS, ids=name_of)
def test_rows_that_are_not_whole_blocks_are_refused(format):
    size, n_bytes = format.block_size, format.type_size
    if format in WRITTEN:
        with pytest.raises(
            ModelError, match=f"rows of {size + 1} values are not whole {format.name} blocks of {size} values"
        ):
            format.quantize(np.zeros((size, size + 1), np.float32))  # a whole number of blocks only as a whole
    with pytest.raises(
        ModelError, match=f"rows of {n_bytes - 1} bytes are not whole {format.name} blocks of {n_bytes}"
    ):
        format.dequantize(np.zeros((n_bytes, n_bytes - 1), np.uint8))


def test_a_format_that_is_only_read_is_not_written():
    for format in set(ALL) - set(WRITTEN):
        with pytest.raises(UnsupportedError, match=f"{format.name} blocks are read, but not written by this version"):
            format.quantize(np.zeros(format.block_size, np.float32))


@written
def test_a_single_number_is_refused(format):
    with pytest.raises(ModelError, match="single number"):
        format.quantize(np.float32(1))


@written
@pytest.mark.parametrize("kind", [np.float64, np.int32, np.uint8, ">f4", object])
def test_other_types_are_refused(format, kind):
    with pytest.raises(RequestError, match="weights must be float32, float16, or bfloat16 as uint16, not"):
        format.quantize(np.zeros(256, kind))


@by_name
def test_blocks_must_be_bytes(format):
    with pytest.raises(RequestError, match="uint8, not int8"):
        format.dequantize(np.zeros(format.type_size, np.int8))


@written
def test_float16_and_bfloat16_weights(format):
    x = np.random.default_rng(11).standard_normal((600, 1024)).astype(np.float32)
    narrow = x.astype(np.float16)
    np.testing.assert_array_equal(format.quantize(narrow), format.quantize(narrow.astype(np.float32)))
    upper = (x.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(
        format.quantize(upper, n_threads=2), format.quantize((upper.astype(np.uint32) << 16).view(np.float32))
    )


@written
def test_views_that_are_not_contiguous_or_not_aligned(format):
    x = np.random.default_rng(12).standard_normal((512, 768)).astype(np.float32)
    for view in (x[::2], x[:, 256:512], x.T[:, :256], x[::-1], x.reshape(8, 64, 768).swapaxes(0, 1)):
        np.testing.assert_array_equal(format.quantize(view), format.quantize(np.ascontiguousarray(view)))
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.float32, x.size, offset=1)
    np.testing.assert_array_equal(format.quantize(shifted), format.quantize(x.reshape(-1)))
    data = format.quantize(x)
    some = format.dequantize(data[::3])
    np.testing.assert_array_equal(some, format.dequantize(np.ascontiguousarray(data[::3])))
    shifted = np.frombuffer(b"\0" + data.tobytes(), np.uint8, data.size, offset=1)
    np.testing.assert_array_equal(format.dequantize(shifted), format.dequantize(data).reshape(-1))


@written
def test_out_is_filled_and_returned(format):
    x = np.random.default_rng(13).standard_normal((4, 512)).astype(np.float32)
    x.flags.writeable = False
    data = format.quantize(x)
    out = np.empty_like(data)
    assert format.quantize(x, out) is out
    np.testing.assert_array_equal(out, data)
    back = np.empty(x.shape, np.float32)
    assert format.dequantize(data, back) is back
    np.testing.assert_array_equal(back, format.dequantize(data))


def test_an_unfit_out_is_refused():
    x = np.zeros((4, 64), np.float32)
    locked = np.empty((4, 36), np.uint8)
    locked.flags.writeable = False
    for out in (np.empty((4, 35), np.uint8), np.empty((4, 36), np.int8), np.empty((8, 36), np.uint8)[::2], locked):
        with pytest.raises(RequestError, match="out must be"):
            q4_0.quantize(x, out)
    with pytest.raises(RequestError, match="out must be"):
        q4_0.dequantize(np.zeros((4, 36), np.uint8), np.empty((4, 64), np.float16))


def test_the_threaded_functions_take_names_and_ids():
    x = np.random.default_rng(14).standard_normal((700, 1024)).astype(np.float32)
    data = quants.quantize("Q8_0", x)
    np.testing.assert_array_equal(data, q8_0.quantize(x))
    np.testing.assert_array_equal(quants.dequantize(8, data), q8_0.dequantize(data))
    with pytest.raises(UnsupportedError):
        quants.quantize("iq9", x)


def test_memory_besides_input_and_output_is_small():
    x = np.zeros((4096, 1024), np.uint16)
    q4_0.quantize(x[:1])  # compiled before measuring
    out = np.empty((4096, 576), np.uint8)
    tracemalloc.start()
    q4_0.quantize(x, out, n_threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# --- weights that are not finite, or too large


@written
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(format, value):
    for where in [(0, 0), (1, 700), (2, 255), (2, 1023)]:
        x = np.random.default_rng(15).standard_normal((3, 1024)).astype(np.float32)
        x[where] = value
        with pytest.raises(ModelError) as caught:
            format.quantize(x)
        assert str(caught.value) == f"value {x[where]:g} at [{where[0]}, {where[1]}]: weights must be finite"
        x[:] = value
        with pytest.raises(ModelError, match=r"at \[0, 0\]"):
            format.quantize(x)


@written
@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_first_of_several_is_named_whatever_the_threads(format, n_threads):
    x = np.zeros((40, 64, 1024), np.float16)
    x[39, 63, 1023] = x[31, 0, 2] = x[17, 1, 1] = np.inf
    for view in (x, x[:, :, ::-1][:, :, ::-1], np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)):
        with pytest.raises(ModelError, match=r"value inf at \[17, 1, 1\]: weights must be finite"):
            format.quantize(view, n_threads=n_threads)


@pytest.mark.parametrize(
    "format, largest",
    [(f16, 65519.0), (bf16, 3.396e38), (q8_0, 127 * 65519.0), (q4_0, 8 * 65519.0), (q5_0, 16 * 65519.0),
     (q4_1, 65519.0), (q5_1, 65519.0)],
)  # fmt: skip
def test_a_weight_too_large_for_the_format_is_named(format, largest):
    x = np.random.default_rng(16).standard_normal((2, 256)).astype(np.float32)
    x[1, 77] = -largest
    assert np.all(np.isfinite(format.dequantize(format.quantize(x))))
    x[1, 77] = -largest * 1.001
    with pytest.raises(ModelError) as caught:
        format.quantize(x)
    assert str(caught.value) == f"value {x[1, 77]:g} at [1, 77]: too large for {format.name}"


@pytest.mark.parametrize("format", F16_SCALED, ids=name_of)
def test_the_largest_float32_is_too_large(format):
    x = np.full(512, np.finfo(np.float32).max, np.float32)
    x[256:] = -x[256:]
    with pytest.raises(ModelError, match=rf"value 3.40282e\+38 at \[0\]: too large for {format.name}"):
        format.quantize(x)


def test_f32_takes_any_finite_weight():
    x = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 1e-45, -0.0], np.float32)
    assert f32.quantize(x).tobytes() == x.tobytes()
