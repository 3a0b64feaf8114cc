"""Hub ids in the forms of vLLM and transformers, with a hub on the loopback interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gumba
from gumba import LLM, SamplingParams
from gumba.compat.transformers import AutoModelForCausalLM, AutoTokenizer
from support.local_sites import Hub, serving
from support.tiny_checkpoints import write_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has a tiny checkpoint as ada/tiny."""
    from huggingface_hub import constants

    write_checkpoint(tmp_path / "server")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(Hub(tmp_path / "server")) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def test_every_way_to_name_a_model_takes_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    with LLM(model="ada/tiny", revision="main", hf_token="secret", download_dir=tmp_path / "there") as llm:
        (expected,) = llm.generate(["abc"], GREEDY)
        ids = llm.tokenizer.encode("abc")
    assert any((tmp_path / "there").rglob("*.safetensors")), "kept where it was wanted"
    tokenizer = AutoTokenizer.from_pretrained("ada/tiny", revision="main", token="secret", cache_dir=tmp_path / "here")
    assert tokenizer("abc").input_ids == ids and any((tmp_path / "here").rglob("*.safetensors"))
    with AutoModelForCausalLM.from_pretrained("ada/tiny", device_map="auto") as model:
        found = model.generate(**tokenizer("abc", return_tensors="np"), max_new_tokens=4)
        assert found.tolist() == [[*ids, *expected.token_ids]]
    with gumba.pipeline("text-generation", "ada/tiny", revision="main") as pipe:
        assert pipe("abc", max_new_tokens=4, return_tensors=True)[0]["generated_token_ids"] == found[0].tolist()


def test_a_file_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(tmp_path / "server") as model:
        data = Path(model.llm.file.path).read_bytes()
        expected = model.generate(np.array([[5, 6, 7]]), max_new_tokens=4)
    (hub.folder / "tiny-Q8_0.gguf").write_bytes(data)
    with AutoModelForCausalLM.from_pretrained("ada/tiny", gguf_file="tiny-Q8_0.gguf") as model:
        assert np.array_equal(model.generate([[5, 6, 7]], max_new_tokens=4), expected)
    with pytest.raises(gumba.RequestError, match=r"none\.gguf"):
        AutoTokenizer.from_pretrained("ada/tiny", gguf_file="none.gguf")


def test_without_the_network_nothing_is_fetched(hub: Hub) -> None:
    with pytest.raises(gumba.UnsupportedError, match=r"local_files_only: .*HF_HUB_OFFLINE"):
        AutoTokenizer.from_pretrained("ada/tiny", local_files_only=True)
    assert hub.requests == []
