"""Session files: resuming a conversation, and refusing files that are damaged or of another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gumba import LLM, RequestError, ResourceError, SamplingParams

PARAMS = SamplingParams(seed=4, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def prompt(tiny: Path) -> list[int]:
    with LLM(tiny) as llm:
        return llm.tokenizer.encode("once upon a time there was a cat. " * 8)[:150]


def load(tiny: Path, **options: object) -> LLM:
    return LLM(tiny, n_ctx=256, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "f32", "q8_0"])
def test_resuming_a_conversation(tiny: Path, prompt: list[int], tmp_path: Path, kv_type: str) -> None:
    path = tmp_path / "a.session"
    with load(tiny, kv_type=kv_type) as llm:
        first = llm.generate([prompt], PARAMS)[0]
        said = first.prompt_token_ids + first.token_ids
        assert llm.save_session(path, said, {"name": "x", "turn": [1, 2]}) == len(said) - 1
        assert llm.kv_usage().in_use == 0
        expected = llm.generate([[*said, 5, 6]], PARAMS)[0]
    assert sorted(tmp_path.iterdir()) == [path]
    with load(tiny, kv_type=kv_type) as llm:
        assert llm.load_session(path) == (said, {"name": "x", "turn": [1, 2]})
        assert llm.kv_usage().in_use == 0
        found = llm.generate([[*said, 5, 6]], PARAMS)[0]
        assert found.token_ids == expected.token_ids
        assert found.timings.cached_tokens == len(said) - 1
        assert llm.load_session(path)[0] == said  # again: no page is stored twice
        assert llm.kv_usage().in_use == 0
    # Without the file the result is the same, only later.
    with load(tiny, kv_type=kv_type) as llm:
        found = llm.generate([[*said, 5, 6]], PARAMS)[0]
        assert (found.token_ids, found.timings.cached_tokens) == (expected.token_ids, 0)


def test_portable_sessions(tiny: Path, prompt: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with load(tiny, kv_type="f16", portable=True) as llm:
        llm.generate([prompt], SamplingParams(max_tokens=1))
        llm.save_session(path, prompt)
    with load(tiny, portable=True) as llm:  # f16 by default
        assert llm.load_session(path)[0] == prompt
    with load(tiny, kv_type="f16") as llm, pytest.raises(RequestError, match="another setting of portable"):
        llm.load_session(path)


def test_tokens_that_were_never_computed(tiny: Path, prompt: list[int], tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with load(tiny) as llm:
        assert llm.save_session(path, prompt) == 0
        assert llm.load_session(path) == (prompt, None)


@pytest.fixture
def saved(tiny: Path, prompt: list[int], tmp_path: Path) -> Path:
    path = tmp_path / "a.session"
    with load(tiny, kv_type="f32") as llm:
        llm.generate([prompt], SamplingParams(max_tokens=1))
        llm.save_session(path, prompt, "notes")
    return path


def test_damaged_files(tiny: Path, saved: Path) -> None:
    data = saved.read_bytes()
    with load(tiny, kv_type="f32") as llm:
        header = data.index(b"}") + 1
        cuts = [0, 1, 7, 8, 15, 16, 17, header - 1, header, header + 1, len(data) // 2, len(data) - 33, len(data) - 1]
        for cut in cuts:
            saved.write_bytes(data[:cut])
            with pytest.raises(RequestError, match=r"damaged|not a session file"):
                llm.load_session(saved)
        saved.write_bytes(data + b"x")
        with pytest.raises(RequestError, match="damaged"):
            llm.load_session(saved)
        for at in [*range(8, 24), header + 2, header + 700, len(data) - 40, len(data) - 1]:
            for flip in (1, 0x80):
                wrong = bytearray(data)
                wrong[at] ^= flip
                saved.write_bytes(bytes(wrong))
                with pytest.raises(RequestError, match=r"damaged|was written with"):
                    llm.load_session(saved)
        for old, new in (
            (b'"n_kept": 1', b'"n_kept": -'),
            (b'"n_tokens": 1', b'"n_tokens": 9'),
            (b'"n_tokens"', b'"m_tokens"'),
        ):
            assert old in data
            saved.write_bytes(data.replace(old, new))
            with pytest.raises(RequestError, match="damaged"):
                llm.load_session(saved)
        usage = llm.kv_usage()
        assert (usage.in_use, usage.kept) == (0, 0)
        saved.write_bytes(data)
        assert llm.load_session(saved)[1] == "notes"


def test_files_of_other_models(tiny: Path, saved: Path, tmp_path: Path) -> None:
    with load(tiny, kv_type="f16") as llm, pytest.raises(RequestError, match=r"another kv_type.*with the same kv_type"):
        llm.load_session(saved)
    with (
        load(tiny, kv_type="f32", portable=True) as llm,
        pytest.raises(RequestError, match=r"another setting of portable.*with the same portable"),
    ):
        llm.load_session(saved)
    other = tmp_path / "other.gguf"
    data = bytearray(tiny.read_bytes())
    data[-9] ^= 4
    other.write_bytes(bytes(data))
    with load(other, kv_type="f32") as llm:
        with pytest.raises(RequestError, match="another model"):
            llm.load_session(saved)
        with pytest.raises(RequestError, match="not a session file"):
            llm.load_session(tiny)
        for missing in (tmp_path / "none", tmp_path):
            with pytest.raises(RequestError, match="cannot be read"):
                llm.load_session(missing)


def test_files_that_cannot_be_written(tiny: Path, prompt: list[int], tmp_path: Path) -> None:
    with load(tiny) as llm:
        llm.generate([prompt], SamplingParams(max_tokens=1))
        with pytest.raises(ResourceError, match="cannot be written"):
            llm.save_session(tmp_path / "no" / "folder", prompt)
        with pytest.raises(RequestError, match="JSON"):
            llm.save_session(tmp_path / "a", prompt, {1, 2})
        with pytest.raises(RequestError, match="tokens"):
            llm.save_session(tmp_path / "a", [])
        assert llm.kv_usage().in_use == 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_kv_cache(tiny: Path, saved: Path) -> None:
    with LLM(tiny, n_ctx=64, kv_tokens=64, kv_type="f32") as llm:
        with pytest.raises(ResourceError, match="KV pages"):
            llm.load_session(saved)
        assert llm.kv_usage().in_use == 0
