"""Types in the names of GGUF files, and the hub of ids without a site."""

from __future__ import annotations

import pytest

from gumba.hub.gguf_files import PREFERENCE, RemoteFile, is_gguf, is_supported, type_of
from gumba.hub.reference import SWITCHES, parse
from gumba.quants import FORMATS


def test_types_in_names_of_files() -> None:
    types = {
        "qwen2.5-0.5b-instruct-q4_k_m.gguf": "Q4_K_M",
        "model.IQ4_XS.gguf": "IQ4_XS",
        "gemma-3-4b-it-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
        "Q8_0/model-00001-of-00002.gguf": "Q8_0",
        "model.imatrix-Q4_0.gguf": "Q4_0",
        "nomic-embed-text-v1.5.f16.gguf": "F16",
        "model-fp16.gguf": "F16",
        "Phi-3-mini-4k-instruct-q4.gguf": "Q4_K",
        "model-Q4_0_4_4.gguf": "Q4_0_4_4",
        "Qwen2.5.gguf": "",
    }
    assert {path: type_of(path) for path in types} == types
    assert not is_gguf(RemoteFile("mmproj-Q8_0.gguf")) and not is_gguf(RemoteFile("a/imatrix.gguf"))
    assert is_gguf(RemoteFile("model.imatrix-Q4_0.gguf"))
    assert PREFERENCE[0] == "Q4_K_M" and len(set(PREFERENCE)) == len(PREFERENCE)


def test_types_that_run() -> None:
    mixtures = ("", "UD-Q4_K_XL", "UD-IQ2_M", "Q6_K_L", "Q8_K_XL", "MXFP4_MOE", "IQ3_XS")
    blocks = {format.name.upper() for format in FORMATS.values()}
    assert [type for type in (*mixtures, *PREFERENCE, *blocks) if not is_supported(type)] == []
    others = (
        "Q4_0_4_4",
        "Q4_0_8_8",
        "IQ9_X",
        "IQ2_K",
        "IQ4_KS",
        "IQ2_BN",
        "Q4_K_R4",
        "IQ4_NL_R4",
        "Q6_0",
        "Q8_1",
        "Q7_K",
    )
    assert [type for type in others if is_supported(type)] == []


@pytest.mark.parametrize(
    ("environment", "modelscope"),
    [
        ({}, False),
        ({"GUMBA_USE_MODELSCOPE": "1"}, True),
        ({"VLLM_USE_MODELSCOPE": "True"}, True),
        ({"FASTCHAT_USE_MODELSCOPE": "true"}, True),
        ({"VLLM_USE_MODELSCOPE": "False", "FASTCHAT_USE_MODELSCOPE": "1"}, False),
        ({"GUMBA_USE_MODELSCOPE": "0", "VLLM_USE_MODELSCOPE": "True"}, False),
    ],
)
def test_switches_of_other_engines(
    environment: dict[str, str], modelscope: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    references = [parse(text) for text in ("a/b", "hf.co/a/b", "modelscope:a/b")]
    assert [reference is not None and reference.modelscope for reference in references] == [modelscope, False, True]
