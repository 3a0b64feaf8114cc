"""Selects the block format of each tensor of a file.

A file type names the format of most tensors. Exceptions follow llama.cpp, so that both write equal files: norms and biases stay
F32, q4_0 files store their output matrix (or the tied token embedding) in Q6_K, and rows that are not multiples of the block
size fall back to Q8_0 or F16.
"""

from __future__ import annotations

from gumba import quants
from gumba.errors import ConvertError
from gumba.gguf.types import GGML_TYPES, NAMES

#: File types by name, with their number in `general.file_type`.
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}

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

#: What llama.cpp stores instead of a format of blocks of 64 or 256 weights where rows are no multiple of them: blocks of 32.
FALLBACKS = {
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0", "q2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
}


def file_type(name: str) -> int:
    """The number of a file type. Raises ConvertError listing the known ones."""
    if name not in FILE_TYPES:
        raise ConvertError(f"unknown type {name!r}; known are {', '.join(FILE_TYPES)}")
    return FILE_TYPES[name]


def tensor_format(name: str, shape: tuple[int, ...], file_type: str, *, tied: bool, pure: bool) -> str:
    """The format ("q4_0") of one tensor, by its GGUF name and shape (rows first).

    Args:
        tied: the token embedding is also the output matrix.
        pure: every matrix gets the file type, including the output matrix.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith(KEPT_F32):
        return "f32"
    chosen = file_type
    if file_type == "q4_0" and not pure and name == ("token_embd.weight" if tied else "output.weight"):
        chosen = "q6_k" if _fits(shape, "q6_k") else "q8_0"
    if file_type == "q4_0" and not pure and name.endswith(AT_LEAST_8_BITS):
        chosen = "q8_0"
    return chosen if _fits(shape, chosen) else "f16"


def fallback(name: str, columns: int) -> str:
    """The format of rows of ``columns`` weights that should have the format ``name``: that, or another with smaller blocks."""
    for candidate in (name, FALLBACKS.get(name, name)):
        if columns % GGML_TYPES[NAMES[candidate]].block_size == 0:
            return candidate
    return "f16"


def _fits(shape: tuple[int, ...], name: str) -> bool:
    return shape[-1] % quants.get(name).block_size == 0
