"""The public API: the names of ``import gumba``, and its light import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gumba

PUBLIC = """LLM Conversation SamplingParams BeamSearchParams ContrastiveSearchParams
StructuredOutputsParams StreamOutput RequestOutput CompletionOutput ToolCall ChatTemplate
BeamSearchOutput BeamSearchSequence Timings KVUsage Tokenizer GGUFFile pipeline GumbaError GGUFError
ModelError UnsupportedError TokenizerError TemplateError RequestError QueueFullError ConvertError
DownloadError ResourceError EngineError __version__"""


def test_all_names_are_there_and_no_others():
    assert set(gumba.__all__) == set(PUBLIC.split())
    assert len(gumba.__all__) == len(set(gumba.__all__))
    for name in gumba.__all__:
        assert getattr(gumba, name) is not None
        assert name in dir(gumba)
    assert gumba.LLM.__module__ == "gumba.llm.llm"
    assert dir(gumba) == sorted(gumba.__all__)


def test_every_error_is_public_and_a_gumba_error():
    import gumba.errors

    for name, value in vars(gumba.errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert getattr(gumba, name) is value and issubclass(value, gumba.GumbaError)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"gumba.*'nothing'"):
        _ = gumba.nothing


def test_importing_gumba_loads_nothing_heavy():
    code = "import sys, gumba; gumba.SamplingParams(); gumba.RequestError; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numpy", "numba", "llvmlite", "jinja2", "sentencepiece", "tiktoken", "regex", "huggingface_hub"}
    assert not heavy & set(loaded)


def test_other_names_are_folders_or_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    with pytest.raises(gumba.RequestError, match=r"folder without config\.json"):
        gumba.LLM("folder")
    for name in ("owner/name", "owner/name:Q8_0", "owner/name/a.gguf"):
        with pytest.raises(gumba.DownloadError, match=r"^owner/name: HF_HUB_OFFLINE is set"):
            gumba.LLM(name)
    for name in ("nothing.gguf", tmp_path / "nothing", "folder/a/nothing.gguf"):
        with pytest.raises(gumba.GGUFError, match=r"nothing.*: cannot be opened: No such file"):
            gumba.LLM(name)
