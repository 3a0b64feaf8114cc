"""The type numbers of GGUF files: of tensors (ggml types) and of metadata values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


@dataclass(frozen=True, slots=True)
class BlockType:
    """The block layout of a tensor type: every ``block_size`` elements of a row take ``type_size`` bytes."""

    id: int
    name: str
    block_size: int
    type_size: int


_BLOCKS = (
    BlockType(0, "f32", 1, 4),
    BlockType(1, "f16", 1, 2),
    BlockType(2, "q4_0", 32, 18),
    BlockType(3, "q4_1", 32, 20),
    BlockType(6, "q5_0", 32, 22),
    BlockType(7, "q5_1", 32, 24),
    BlockType(8, "q8_0", 32, 34),
    BlockType(9, "q8_1", 32, 36),
    BlockType(10, "q2_k", 256, 84),
    BlockType(11, "q3_k", 256, 110),
    BlockType(12, "q4_k", 256, 144),
    BlockType(13, "q5_k", 256, 176),
    BlockType(14, "q6_k", 256, 210),
    BlockType(15, "q8_k", 256, 292),
    BlockType(16, "iq2_xxs", 256, 66),
    BlockType(17, "iq2_xs", 256, 74),
    BlockType(18, "iq3_xxs", 256, 98),
    BlockType(19, "iq1_s", 256, 50),
    BlockType(20, "iq4_nl", 32, 18),
    BlockType(21, "iq3_s", 256, 110),
    BlockType(22, "iq2_s", 256, 82),
    BlockType(23, "iq4_xs", 256, 136),
    BlockType(24, "i8", 1, 1),
    BlockType(25, "i16", 1, 2),
    BlockType(26, "i32", 1, 4),
    BlockType(27, "i64", 1, 8),
    BlockType(28, "f64", 1, 8),
    BlockType(29, "iq1_m", 256, 56),
    BlockType(30, "bf16", 1, 2),
    BlockType(34, "tq1_0", 256, 54),
    BlockType(35, "tq2_0", 256, 66),
    BlockType(39, "mxfp4", 32, 17),
    BlockType(40, "nvfp4", 64, 36),
    BlockType(41, "q1_0", 128, 18),
    BlockType(42, "q2_0", 64, 18),
)

GGML_TYPES: dict[int, BlockType] = {block.id: block for block in _BLOCKS}
"""Every tensor type that ggml has now, by its id in files. Removed ids (4, 5, 31-33, 36-38) are absent."""

NAMES: dict[str, int] = {block.name: block.id for block in _BLOCKS}
"""Tensor type ids by lower-case name, such as ``"q4_0"``."""

REMOVED_TYPES: dict[int, str] = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}
"""Ids of old files that ggml no longer reads; errors name them."""


class ValueType(IntEnum):
    """Types of metadata values, with their ids in files."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMPY_DTYPES: dict[ValueType, np.dtype[np.generic]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""How numpy reads each metadata type of fixed size; all of them little-endian."""
