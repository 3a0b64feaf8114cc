"""An idle model is unloaded, and loaded again by the next request."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from gumba import LLM, EngineError, GGUFError, RequestError, SamplingParams
from support import tiny_chat

PARAMS = SamplingParams(seed=1, max_tokens=12, ignore_eos=True)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_chat.write(tmp_path / "tiny.gguf")


def unloaded(llm: LLM) -> bool:
    """Whether the model is unloaded within a short time."""
    end = time.monotonic() + 10
    while llm._engine._core.loaded and time.monotonic() < end:
        time.sleep(0.005)
    return not llm._engine._core.loaded


@pytest.mark.parametrize("draft", [False, True])
def test_unloading_and_reloading(tiny: Path, draft: bool) -> None:
    with LLM(tiny, unload_after=0.02, draft_model=tiny if draft else None) as llm:
        before = {thread.name for thread in threading.enumerate()}
        expected = llm.generate([[5, 6, 7]], PARAMS)[0]
        pages = llm.kv_usage().pages
        for _ in range(3):
            first = llm.model
            assert unloaded(llm)
            usage = llm.kv_usage()
            assert (usage.pages, usage.in_use, usage.kept) == (pages, 0, 0)
            llm.clear_cache()
            assert unloaded(llm), "looking does not load it"
            with pytest.raises(EngineError):
                first.forward([])
            assert llm.generate([[5, 6, 7]], PARAMS)[0].token_ids == expected.token_ids
            assert llm.model is not first and llm.kv_usage().pages == pages
        assert unloaded(llm)
        assert [step.token_id for step in llm.stream([5, 6, 7], PARAMS)] == expected.token_ids
        assert {thread.name for thread in threading.enumerate()} <= before | {"gumba-1", "gumba-2", "gumba-3"}


def test_sessions(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    prompt = list(range(3, 90))
    with LLM(tiny, unload_after=0.02) as llm:
        said = prompt + llm.generate([prompt], PARAMS)[0].token_ids
        assert llm.save_session(path, said) == len(said) - 1
        expected = llm.generate([[*said, 4]], PARAMS)[0].token_ids
        assert unloaded(llm)
        llm.load_session(path)
        found = llm.generate([[*said, 4]], PARAMS)[0]
        assert found.token_ids == expected and found.timings.cached_tokens == len(said) - 1


def test_a_file_that_has_changed_meanwhile(tiny: Path) -> None:
    llm = LLM(tiny, unload_after=0.01)
    assert unloaded(llm)
    data = tiny.read_bytes()
    tiny.write_bytes(data)  # the same bytes, but a new file
    with pytest.raises(GGUFError, match="changed"):
        llm.generate([[5]], PARAMS)
    with pytest.raises(GGUFError, match="changed"):
        llm.save_session(tiny.with_name("a"), [5])
    llm.close()
    with pytest.raises(EngineError, match="closed"):
        llm.generate([[5]], PARAMS)


def test_closing_an_unloaded_model(tiny: Path) -> None:
    llm = LLM(tiny, unload_after=0.0)
    assert unloaded(llm)
    llm.close()
    llm.close()


@pytest.mark.parametrize("value", [-1, "1", float("nan"), True])
def test_bad_times(tiny: Path, value: object) -> None:
    with pytest.raises(RequestError, match="unload_after"):
        LLM(tiny, unload_after=value)  # type: ignore[arg-type]


def test_the_draft_model_is_reloaded_at_once(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first request after each reload has drafts, too."""
    with LLM(tiny, unload_after=0.01, draft_model=tiny, draft_tokens=8) as llm:
        for _ in range(2):
            assert unloaded(llm)
            greedy = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
            steps: list[int] = []
            load = llm._engine._core._reload
            assert load is not None

            def counted(load=load, steps=steps):  # type: ignore[no-untyped-def]
                models = load()
                forward = models[0].forward
                models[0].forward = lambda chunks: steps.append(1) or forward(chunks)
                return models

            llm._engine._core._reload = counted
            llm.generate([[5, 6, 7]], greedy)
            llm._engine._core._reload = load
            assert len(steps) < 24, "its own guesses are always right"
    assert not caplog.records


def test_a_relative_path_after_a_change_of_folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    with LLM(tiny.name, unload_after=0.01, draft_model=tiny.name) as llm:
        expected = llm.generate([[5, 6, 7]], PARAMS)[0].token_ids
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        assert unloaded(llm)
        assert llm.generate([[5, 6, 7]], PARAMS)[0].token_ids == expected
        llm.save_session("here", [5, 6, 7])
        assert (tmp_path / "other" / "here").exists()
