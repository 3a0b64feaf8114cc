"""Checkpoints with a tied output matrix, in every family that has them, as in transformers 5.24.

Its rule (`tie_weights`): if both matrices are in the file and differ, each is kept; if one is, it serves as both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba.errors import ConvertError
from gumba_convert import convert
from gumba_convert.common import gather
from support.family_checkpoints import checkpoint_tensors, read, write
from support.tiny_families import FAMILIES, V, W

#: Architectures for which llama.cpp reads no output matrix, and refuses one.
TIED_IN_LLAMA_CPP = ("gemma", "gemma2", "command-r", "cohere2")
HEADS_OF = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
TIED = [
    name
    for name, family in FAMILIES.items()
    if "output.weight" not in family.outer and family.config["architectures"][0].endswith(HEADS_OF)
    if "cls.output.weight" not in family.outer
]


def test_most_families_are_here() -> None:
    modules = {FAMILIES[name].module for name in TIED}
    assert {"qwen2", "qwen2vl", "falcon", "gpt2", "gemma", "gemma2", "gemma3", "gemma4", "lfm2", "cohere2"} <= modules


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "COMPARE_CHUNK", 1000)  # several pieces
    family = FAMILIES[name]
    tensors = checkpoint_tensors(family)
    embedding = family.outer["token_embd.weight"][0]
    assert isinstance(embedding, str)
    written = {}
    head = tensors[embedding].copy()
    for case in ("none", "equal", "other"):
        if case != "none":
            tensors["lm_head.weight"] = head
        if case == "other":
            head[-1, -1] += 1
        write(tmp_path / "hf", family, tensors)
        report = convert(tmp_path / "hf", tmp_path / f"{case}.gguf", type="f32")
        written[case] = (tmp_path / f"{case}.gguf").read_bytes()
        warnings = [warning for warning in report.warnings if "ties the output matrix" in warning]
        assert len(warnings) == (case == "other")
    assert written["none"] == written["equal"]
    found = read(tmp_path / "other.gguf")[1]
    np.testing.assert_array_equal(found["output.weight"].data.reshape(V, W), head)
    assert np.any(found["token_embd.weight"].data.reshape(V, W)[-1] != head[-1])
    assert any("llama.cpp" in each for each in report.warnings) == (family.architecture in TIED_IN_LLAMA_CPP)


def test_a_head_without_an_embedding(tmp_path: Path) -> None:
    family = FAMILIES["qwen2 tied"]
    tensors = checkpoint_tensors(family)
    write(tmp_path / "hf", family, tensors)
    convert(tmp_path / "hf", tmp_path / "a.gguf")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write(tmp_path / "hf", family, tensors)
    assert convert(tmp_path / "hf", tmp_path / "b.gguf").warnings == ()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("differs", [False, True])
def test_gpt_neox_always_has_an_output_matrix(tmp_path: Path, differs: bool) -> None:
    family = FAMILIES["gptneox"]
    tensors = checkpoint_tensors(family)
    if not differs:
        tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"]
    write(tmp_path / "hf", family, tensors, tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    found = read(tmp_path / "out.gguf")[1]["output.weight"].data.reshape(V, W)
    np.testing.assert_array_equal(found, tensors["embed_out.weight"])


def test_t5_scales_a_separate_head_too(tmp_path: Path) -> None:
    """transformers' T5 scales by d_model**-0.5 unless tie_word_embeddings is false, with any head."""
    family = FAMILIES["t5"]
    tensors = checkpoint_tensors(family)
    write(tmp_path / "hf", family, tensors, tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    found = read(tmp_path / "out.gguf")[1]["output.weight"].data.reshape(V, W)
    np.testing.assert_array_equal(found, tensors["lm_head.weight"] * np.float32(W**-0.5))


def test_t5_has_one_embedding(tmp_path: Path) -> None:
    family = FAMILIES["t5"]
    tensors = checkpoint_tensors(family)
    for name in ("encoder.embed_tokens", "shared", "decoder.embed_tokens"):
        tensors[f"{name}.weight"] = tensors["encoder.embed_tokens.weight"].copy()
    write(tmp_path / "hf", family, tensors)
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    tensors["decoder.embed_tokens.weight"][0, 0] += 1
    write(tmp_path / "hf", family, tensors)
    with pytest.raises(ConvertError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")
