"""The block format of each tensor is the one that llama.cpp's quantizer chooses."""

from __future__ import annotations

import functools
import json

import pytest

from gumba.cli.convert import TYPES as TYPES_OF_COMMAND
from gumba.errors import ConvertError
from gumba_convert.quantize.recipe import (
    ALIASES,
    AT_LEAST_8_BITS,
    FILE_TYPES,
    KEPT_F32,
    canonical,
    sizes,
    tensor_formats,
)
from make_mixture_goldens import GOLDENS, LETTERS, TYPES, Model, models

LLAMA = sizes("llama", {"llama.block_count": 2})
LLAMA_CPP = json.loads(GOLDENS.read_text(encoding="utf-8"))


@functools.cache
def all_models() -> dict[str, Model]:
    return dict(models())


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_formats_are_llama_cpps(name: str) -> None:
    model = all_models()[name]
    found = sizes(model.architecture, {key: value.value for key, value in model.metadata.items()})
    for type in LLAMA_CPP[name]:
        for (tensor, shape), format, letter in zip(
            model.tensors, tensor_formats(model.tensors, type, found), LLAMA_CPP[name][type], strict=True
        ):
            if letter == "-":  # llama.cpp copies what its source has
                kept = len(shape) == 1 or tensor.endswith((".bias", *KEPT_F32))
                small = shape[:-1] == (1,) or tensor.endswith(AT_LEAST_8_BITS)
                assert format == ("f32" if kept else "q8_0" if small else None), (type, tensor)
            else:
                assert LETTERS[format] == letter, (type, tensor, format)


def test_every_model_is_recorded_but_those_that_llama_cpp_does_not_load() -> None:
    assert all_models().keys() - LLAMA_CPP.keys() == {"deepseek2", "mpnet"}
    missing = {(name, type) for name, of in LLAMA_CPP.items() for type in TYPES if type not in of}
    # Q1_0 has blocks of 128, and llama.cpp nothing to fall back to.
    assert missing == {("smollm2 135m", "q1_0"), ("rows of 1000", "q1_0")}


EXCEPTIONS = [
    ("q4_0", False, False, "output.weight", 512, "q6_k"),
    ("q4_0", False, False, "output.weight", 576, "q8_0"),
    ("q4_0", False, False, "token_embd.weight", 512, "q4_0"),
    ("q4_0", True, False, "token_embd.weight", 512, "q6_k"),
    ("q4_0", True, False, "token_embd.weight", 576, "q8_0"),
    ("q4_0", True, True, "token_embd.weight", 512, "q4_0"),
    ("q4_0", False, True, "output.weight", 512, "q4_0"),
    ("q4_0", False, False, "blk.0.ffn_down.weight", 80, "f16"),
    ("q4_0", False, False, "output.weight", 80, "f16"),
    ("q8_0", True, False, "token_embd.weight", 512, "q8_0"),
    ("q8_0", True, False, "blk.0.attn_q.weight", 48, "f16"),
    ("bf16", True, False, "token_embd.weight", 77, "bf16"),
    ("q4_0", True, False, "blk.0.laurel_l.weight", 64, "q8_0"),
    ("q4_0", True, False, "altup_proj.weight", 64, "q8_0"),
    ("q4_0", True, True, "altup_proj.weight", 64, "q4_0"),
    ("f16", True, False, "altup_proj.weight", 64, "f16"),
    ("q4_0", True, False, "per_layer_token_embd.weight", 64, "q8_0"),
    ("q4_0", False, False, "per_layer_token_embd.weight", 64, "q4_0"),
    ("q4_k_m", False, True, "blk.0.attn_v.weight", 256, "q4_k"),
    ("q4_k_m", False, True, "output.weight", 256, "q4_k"),
    ("q4_k_m", False, True, "output.weight", 96, "q5_0"),
    ("q4_0", False, False, "cls.output.weight", 64, "q4_0"),
    ("q4_0", True, False, "blk.0.altup_router.weight", 64, "f32"),
    ("q1_0", False, False, "blk.0.attn_q.weight", 128, "q1_0"),
    ("q1_0", False, False, "blk.0.attn_q.weight", 192, "q4_0"),
    ("mxfp4_moe", False, True, "blk.0.attn_q.weight", 64, "mxfp4"),
]


@pytest.mark.parametrize(("type", "tied", "pure", "name", "row", "format"), EXCEPTIONS)
def test_exceptions(type: str, tied: bool, pure: bool, name: str, row: int, format: str) -> None:
    tensors = [(name, (10, row))] + [("output.weight", (10, row))] * (not tied and name != "output.weight")
    assert tensor_formats(tensors, type, LLAMA, pure=pure)[0] == format


@pytest.mark.parametrize(
    "name", ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight"]
)
def test_vectors_stay_f32(name: str) -> None:
    assert tensor_formats([(name, (512,))], "q4_0", LLAMA, pure=True) == ["f32"]


def test_a_matrix_of_one_row_is_stored_in_8_bits() -> None:
    assert tensor_formats([("cls.output.weight", (1, 64))], "q4_0", LLAMA) == ["q8_0"]


@pytest.mark.parametrize(
    ("name", "type"), [("Q4_K_M", "q4_k_m"), ("q4_k", "q4_k_m"), ("Q5_K", "q5_k_m"), ("q3_K", "q3_k_m"), ("F16", "f16")]
)
def test_names_of_file_types(name: str, type: str) -> None:
    assert canonical(name) == type


def test_the_command_line_offers_all_file_types() -> None:
    assert {*TYPES_OF_COMMAND} == {*FILE_TYPES, *ALIASES}


def test_an_unknown_file_type_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConvertError, match=r"unknown type 'q7_k'; known are f32, .*, q4_k_m, "):
        canonical("q7_k")


def test_numbers_of_file_types_are_gguf_pys() -> None:
    from gguf import LlamaFileType

    for name, file_type in FILE_TYPES.items():
        member = f"{'ALL' if name == 'f32' else 'MOSTLY'}_{name.upper()}"
        assert LlamaFileType.__members__.get(member, file_type.number) == file_type.number
