"""Selects the block format of each tensor of a file.

A file type names the format of most matrices. Exceptions follow llama.cpp, so that both write files of equal types
(``mixtures.py``): the output matrix gets more bits, in the K types other matrices too. Norms and biases stay F32, and rows that
are not multiples of the block size fall back to another format. One rule is gumba's: matrices that llama.cpp does not quantize,
but copies from its source in F16 or BF16 (``AT_LEAST_8_BITS``, and matrices of one row), are stored in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gumba.errors import ConvertError
from gumba.gguf.types import GGML_TYPES, NAMES
from gumba_convert.quantize.mixtures import Mixture, Sizes, in_order


class FileType(NamedTuple):
    """A file type: its number in ``general.file_type``, and the format of most matrices."""

    number: int
    format: str


#: File types by name.
FILE_TYPES = {
    "f32": FileType(0, "f32"),
    "f16": FileType(1, "f16"),
    "bf16": FileType(32, "bf16"),
    "q8_0": FileType(7, "q8_0"),
    "q6_k": FileType(18, "q6_k"),
    "q5_k_m": FileType(17, "q5_k"),
    "q5_k_s": FileType(16, "q5_k"),
    "q5_1": FileType(9, "q5_1"),
    "q5_0": FileType(8, "q5_0"),
    "q4_k_m": FileType(15, "q4_k"),
    "q4_k_s": FileType(14, "q4_k"),
    "q4_1": FileType(3, "q4_1"),
    "q4_0": FileType(2, "q4_0"),
    "q3_k_l": FileType(13, "q3_k"),
    "q3_k_m": FileType(12, "q3_k"),
    "q3_k_s": FileType(11, "q3_k"),
    "q2_k": FileType(10, "q2_k"),
    "iq4_nl": FileType(25, "iq4_nl"),
    "iq4_xs": FileType(30, "iq4_xs"),
    "mxfp4_moe": FileType(38, "mxfp4"),
    "q2_0": FileType(41, "q2_0"),
    "tq2_0": FileType(37, "tq2_0"),
    "tq1_0": FileType(36, "tq1_0"),
    "q1_0": FileType(40, "q1_0"),
}
#: Types where none is named, as measured (docs/commands.md, "Types of converted files"): of encoders, and of all others.
ENCODER_TYPE, DEFAULT_TYPE = "q8_0", "q6_k"
#: Names of K types without a size mean the medium one, as in llama.cpp.
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
FLOATS = ("f32", "f16", "bf16")

#: Small tensors that stay F32 although they have two axes: norms of heads, routers, position tables, convolutions.
KEPT_F32 = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "attn_rel_b.weight",
    "shortconv.conv.weight",
    "ssm_conv1d.weight",
    "altup_router.weight",
    "altup_predict_coef.weight",
    "altup_correct_coef.weight",
)

#: Small matrices that all layers depend on: at least 8 bits.
AT_LEAST_8_BITS = (
    "per_layer_model_proj.weight",
    "altup_proj.weight",
    "altup_unembd_proj.weight",
    "laurel_l.weight",
    "laurel_r.weight",
)

#: What llama.cpp stores instead of blocks of 64 or 256 weights where these do not divide the row length: blocks of 32. (For
#: Q1_0, with blocks of 128, it ends with an error.)
FALLBACKS = {
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0", "q2_0", "q1_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}


def canonical(name: str) -> str:
    """The name in FILE_TYPES of a name in either case ("Q4_K_M", "q4_k"). Raises ConvertError listing the known ones."""
    lower = name.lower()
    lower = ALIASES.get(lower, lower)
    if lower not in FILE_TYPES:
        raise ConvertError(f"unknown type {name!r}; known are {', '.join(FILE_TYPES)}")
    return lower


def sizes(architecture: str, metadata: Mapping[str, Any]) -> Sizes:
    """What the rules ask about a model, from its metadata: key -> number, or a number for each layer."""

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        return int(value if isinstance(value, int) else value[0])

    heads = number("attention.head_count", 0)
    return Sizes(
        architecture=architecture,
        n_layers=number("block_count", 0),
        n_experts=number("expert_count", 0),
        n_heads=heads,
        n_kv_heads=number("attention.head_count_kv", heads),
    )


def tensor_formats(
    tensors: Sequence[tuple[str, tuple[int, ...]]], file_type: str, model: Sizes, *, pure: bool = False
) -> list[str]:
    """The format ("q4_0") of each tensor.

    Args:
        tensors: GGUF's name and shape (rows first) of every tensor of the file.
        file_type: a name in FILE_TYPES.
        pure: every matrix gets the format of the file type, the output matrix too.
    """
    default = FILE_TYPES[file_type].format
    block_size = GGML_TYPES[NAMES[default]].block_size
    mixture = Mixture(file_type, default, model, [name for name, _ in tensors])
    shapes, chosen = dict(tensors), {}
    for name in in_order(list(shapes)):
        shape = shapes[name]
        if len(shape) < 2 or not name.endswith(".weight") or name.endswith(KEPT_F32):
            chosen[name] = "f32"
        elif default in FLOATS or pure:
            chosen[name] = fallback(default, shape[-1])
        elif name.endswith(AT_LEAST_8_BITS) or math.prod(shape[:-1]) == 1:
            chosen[name] = fallback("q8_0", shape[-1])
        else:
            chosen[name] = fallback(mixture.choose(name, shape, block_size), shape[-1])
    return [chosen[name] for name, _ in tensors]


def fallback(name: str, columns: int) -> str:
    """The format of rows of ``columns`` weights that should have the format ``name``: that, or another with smaller blocks."""
    for candidate in (name, FALLBACKS.get(name, name)):
        if columns % GGML_TYPES[NAMES[candidate]].block_size == 0:
            return candidate
    return "f16"
