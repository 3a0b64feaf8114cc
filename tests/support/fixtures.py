"""Fixtures that the tests of several folders share; a folder's conftest.py imports those that it needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gumba.llm.llm
import gumba.llm.reloadable_model
from gumba.engine.generation import Generation
from support.fake_model import FakeModel, FakeTokenizer


@pytest.fixture
def make_llm(monkeypatch):
    """``make_llm(n_ctx=..., max_queue=..., **fake)``: an LLM on a FakeModel. At the end no request may own a page, and after
    it was closed all pages must be free."""
    llms = []

    def make(*, max_sequences=32, max_queue=None, **fake):
        model = FakeModel(**fake)
        file = SimpleNamespace(
            path="fake.gguf",
            metadata={"general.name": "fake"},
            get=lambda key, kind, default=None: default,
            close=lambda: None,
        )
        tokenizer = SimpleNamespace(from_gguf=lambda gguf: FakeTokenizer())
        monkeypatch.setattr(gumba.llm.llm, "GGUFFile", lambda path: file)
        monkeypatch.setattr(gumba.llm.llm, "Tokenizer", tokenizer)
        monkeypatch.setattr(gumba.llm.reloadable_model, "load_model", lambda gguf, settings, **options: model)
        llm = gumba.llm.llm.LLM("fake.gguf", max_sequences=max_sequences, max_queue=max_queue)
        llms.append(llm)
        return llm

    yield make
    for llm in llms:
        if not llm._engine._closed:
            assert llm.kv_usage().in_use == llm.kv_usage().window_in_use == 0
        llm.close()
        assert llm.model.kv.n_free == llm.model.kv.n_pages
        states = llm.model.states
        assert states is None or states.n_free == states.n_slots
        window_pool = llm.model.kv.window_pool
        assert window_pool is None or window_pool.n_free == window_pool.n_pages
        assert llm.model.closed == 1


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], bytes]:
    """All tokens so far -> the logits that chose the next one: the same tokens must have the same bits."""
    seen: dict[tuple[int, ...], bytes] = {}
    choose: Any = Generation._choose

    def checked(self: Generation, row: np.ndarray, *rest: Any) -> Any:
        assert seen.setdefault(tuple(self.tokens), row.tobytes()) == row.tobytes(), (
            "different bits after the same tokens"
        )
        return choose(self, row, *rest)

    monkeypatch.setattr(Generation, "_choose", checked)
    return seen
