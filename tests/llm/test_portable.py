"""``portable``: results with the same bits on every processor (that they have them: tests/models/test_logit_hashes.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gumba import LLM, GGUFFile, RequestError, backends
from gumba.cli.commands import build_parser
from gumba.llm import reloadable_model
from gumba.runner.load import LoadConfig, Model
from gumba.simd import detect
from support import tiny_chat


@pytest.mark.parametrize("name", detect.available())
def test_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set in use, or the one that it names; the default type of KV cache is the same on all."""
    monkeypatch.setenv("GUMBA_ISA", name)
    portable = detect.known()[name].portable
    backend = backends.get(portable=True)
    assert backend.target == (name if portable is None else portable.name)
    assert backend.default_kv_type == "f16"
    assert backends.get().target == name


def test_model_and_draft_model_are_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_chat.write(tmp_path / "tiny.gguf")
    load, given = reloadable_model.load_model, []

    def recorded(gguf: GGUFFile, settings: LoadConfig, **options: Any) -> Model:
        given.append(settings.portable)
        return load(gguf, replace(settings, portable=False), **options)

    monkeypatch.setattr(reloadable_model, "load_model", recorded)
    for portable in (False, True):
        LLM(tiny, draft_model=tiny, portable=portable).close()
    assert given == [False, False, True, True]
    with pytest.raises(RequestError, match="portable: expected True or False"):
        LLM(tiny, portable="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command", ["run", "chat", "embed m", "perplexity m t", "bench m", "batch f m -o o", "compile"]
)
def test_every_command_that_loads_a_model_takes_it(command: str) -> None:
    parser = build_parser()
    assert not parser.parse_args(command.split()).portable
    assert parser.parse_args([*command.split(), "--portable"]).portable
