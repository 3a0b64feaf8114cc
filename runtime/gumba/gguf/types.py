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

NOT_WEIGHTS: dict[str, str] = {
    **dict.fromkeys(("i8", "i16", "i32", "i64"), "holds integers, not weights"),
    "f64": "holds 64-bit floats, which no engine uses as weights",
    **dict.fromkeys(("q8_1", "q8_k"), "holds activations at run time, not weights"),
}
"""Types that ggml defines, but that neither its quantizer writes as weights nor its matrix products read as such."""

_REMOVED = {
    4: ("q4_2", "q4_0"),
    5: ("q4_3", "q4_1"),
    31: ("q4_0_4_4", "q4_0"),
    32: ("q4_0_4_8", "q4_0"),
    33: ("q4_0_8_8", "q4_0"),
    36: ("iq4_nl_4_4", "iq4_nl"),
    37: ("iq4_nl_4_8", "iq4_nl"),
    38: ("iq4_nl_8_8", "iq4_nl"),
}
"""Types that GGUF once had: name, and the type that replaced it (from 31 on: the same weights in another order)."""

_FORKS = {
    "ik_llama.cpp": {
        97: "q8_0_x4", 98: "q8_1_x4", 99: "q8_2_x4", 133: "q6_0", 134: "iq1_bn", 135: "iq2_bn", 136: "q8_k64", 137: "iq2_k",
        138: "iq3_k", 139: "iq4_k", 140: "iq5_k", 141: "iq6_k", 142: "iq2_tn", 143: "iq1_tn", 144: "iq4_ks", 145: "iq2_ks",
        146: "iq4_kss", 147: "q8_k16", 148: "q8_k32", 149: "q8_kr8", 150: "q8_k128", 151: "q8_kv", 152: "iq5_ks", 153: "iq2_kt",
        154: "iq3_kt", 155: "iq4_kt", 156: "iq3_ks", 157: "iq2_kl", 158: "iq1_kt", 202: "q4_0_r8", 206: "q5_0_r4", 208: "q8_0_r8",
        210: "q2_k_r4", 211: "q3_k_r4", 212: "q4_k_r4", 213: "q5_k_r4", 214: "q6_k_r4", 216: "iq2_xxs_r4", 217: "iq2_xs_r4",
        218: "iq3_xxs_r4", 219: "iq1_s_r4", 220: "iq4_nl_r4", 221: "iq3_s_r4", 222: "iq2_s_r4", 223: "iq4_xs_r8", 229: "iq1_m_r4",
        230: "bf16_r16", 233: "q6_0_r4", 335: "iq2_bn_r4", 337: "iq2_k_r4", 338: "iq3_k_r4", 339: "iq4_k_r4", 340: "iq5_k_r4",
        344: "iq4_ks_r4", 352: "iq5_ks_r4", 353: "mxfp4_r8", 397: "q8_k_r16", 398: "q8_kv_r8", 399: "q8_k_r8",
    },
    "bitnet.cpp": {36: "i2_s"},
    "Prism's llama.cpp": {142: "pq2_0", 143: "ptq1_0"},
}  # fmt: skip
"""Private types of other programs (August 2026): no two of them, and no version of ggml, need to agree on a number."""


def explain_unknown(type_id: int) -> str:
    """Why a file with tensors of this type, which is not in GGML_TYPES, cannot be read, and what to do."""
    forks = [f"{numbers[type_id]} of {program}" for program, numbers in _FORKS.items() if type_id in numbers]
    another = "take a file of the same model in another type"
    if type_id in _REMOVED:
        name, successor = _REMOVED[type_id]
        why = f"{name} has been removed from GGUF" + "".join(f" (or {fork})" for fork in forks)
        another = f"take a file of the same model in {successor}"
    elif forks:
        why = f"{' or '.join(forks)}, which only that program reads"
    else:
        why = "a private type of another program, or newer than this version"
    return f"unknown tensor type {type_id}: {why}; {another}, or convert the original checkpoint with gumba convert"


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
"""How NumPy reads each metadata type of fixed size; all of them little-endian."""
