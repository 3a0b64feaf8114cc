"""Random weights in any block format, for benchmarks: blocks of random bytes with scales as a trained model has.

A scale makes the weights of a block spread about 1/sqrt(columns), as those of a trained model do: logits stay finite, and no
shortcut for zeros can be taken. gguf-py, which dequantizes every format but the newest, tells how widely random bytes spread.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import gguf
import numpy as np

from gumba.gguf.types import GGML_TYPES, NAMES

#: Per format: byte offset of the float16 scale, and of the float16 minimum with its multiple of the scale, for weights around 0.
SCALES: dict[str, tuple[int, int | None, float]] = {
    "q4_0": (0, None, 0),
    "q4_1": (0, 2, -7.5),
    "q5_0": (0, None, 0),
    "q5_1": (0, 2, -15.5),
    "q8_0": (0, None, 0),
    "q2_k": (80, 82, 1.5),
    "q3_k": (108, None, 0),
    "q4_k": (0, 2, 7.5),
    "q5_k": (0, 2, 15.5),
    "q6_k": (208, None, 0),
    "iq1_s": (0, None, 0),
    "iq2_xxs": (0, None, 0),
    "iq2_xs": (0, None, 0),
    "iq2_s": (0, None, 0),
    "iq3_xxs": (0, None, 0),
    "iq3_s": (0, None, 0),
    "iq4_nl": (0, None, 0),
    "iq4_xs": (0, None, 0),
    "tq1_0": (52, None, 0),
    "tq2_0": (64, None, 0),
    "q1_0": (0, None, 0),
    "q2_0": (0, None, 0),
}
#: Standard deviation of the weights at scale 1, of formats that gguf-py does not dequantize.
SPREADS = {"q1_0": 1.0, "q2_0": math.sqrt(1.5)}
FLOATS = ("f32", "f16", "bf16")
#: Every format that these functions know; formats whose scale is no float16 of its own are the branches of ``_set_scale``.
FORMATS = (*FLOATS, *SCALES, "iq1_m", "mxfp4", "nvfp4")
_PIECE = 1 << 23  # bytes


def random_rows(kind: str, rows: int, columns: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The bytes of a random matrix [rows, columns] in the format ``kind``, piece by piece; uint8, flat."""
    block = GGML_TYPES[NAMES[kind]]
    scale = 1 / math.sqrt(columns) / (1.0 if kind in FLOATS else _spread(kind))
    left = rows * (columns // block.block_size)
    while left:
        count = min(left, _PIECE // block.type_size)
        left -= count
        yield _floats(kind, count, scale, rng) if kind in FLOATS else _blocks(kind, count, scale, rng).reshape(-1)


def _floats(kind: str, count: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(count, np.float32) * np.float32(scale)
    if kind == "bf16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    return values.astype(np.float16 if kind == "f16" else np.float32).view(np.uint8)


def _blocks(kind: str, count: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    size = GGML_TYPES[NAMES[kind]].type_size
    blocks = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    _set_scale(kind, blocks, scale)
    return blocks


def _set_scale(kind: str, blocks: np.ndarray, scale: float) -> None:
    """Give every block that scale, or the closest that the format has."""
    if kind == "mxfp4":  # a power of two, of the doubled values
        blocks[:, 0] = round(math.log2(scale)) + 128
    elif kind == "nvfp4":  # four bytes of unsigned E4M3, of the doubled values
        blocks[:, :4] = np.abs(_e4m3(np.arange(127)) - 2 * scale).argmin()
    elif kind == "iq1_m":  # float16, four bits in the top of each of the last four 16-bit words
        bits = int(np.float16(scale).view(np.uint16))
        words = blocks[:, 48:56].view(np.uint16)
        words[:] = (
            words & 0x0FFF | np.array([bits << 12, bits << 8, bits << 4, bits], np.uint32).astype(np.uint16) & 0xF000
        )
    else:
        offset, minimum, multiple = SCALES[kind]
        blocks[:, offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
        if minimum is not None:
            blocks[:, minimum : minimum + 2] = np.array([scale * multiple], np.float16).view(np.uint8)


def _e4m3(codes: np.ndarray) -> np.ndarray:
    """The numbers of E4M3 codes without a sign."""
    exponent, fraction = codes >> 3, codes & 7
    return np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))


@functools.cache
def _spread(kind: str) -> float:
    """The standard deviation of the weights in blocks of random bytes with a scale of 1."""
    if kind in SPREADS:
        return SPREADS[kind]
    blocks = _blocks(kind, 4096, 1.0, np.random.default_rng(0))
    return float(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()]).std())
