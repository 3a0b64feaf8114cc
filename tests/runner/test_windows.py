"""Layers with a window have pages for what the window reaches, and no more: the same bits as with pages for everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gumba import LLM, GGUFFile, SamplingParams
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.models.registry import ARCHITECTURES
from gumba.runner import memory_budget
from support.arch_models import FILES as DECODERS
from support.arch_models import architecture
from support.tiny_models import DATA

STEP = 64


def windows(path: Path) -> list[int]:
    """The window of each layer."""
    with GGUFFile(path) as file:
        config = ARCHITECTURES[architecture(path)].read_config(file)
        return [shape.window for shape in config.kv_shapes]


FILES = [path for path in DECODERS if any(windows(path))]


def prompt(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 90, n).tolist()


STEM = prompt(450)
#: Far beyond a window of 40: what is in common ends in the middle, at the end, and nowhere.
PROMPTS = [STEM, STEM[:300] + prompt(200, 1), prompt(280, 2), STEM + prompt(90, 3)]
PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=70, ignore_eos=True)


def load(path: Path) -> LLM:
    return LLM(path, n_ctx=2048, kv_tokens=8192, max_batch_tokens=STEP, n_threads=2)


@pytest.mark.parametrize("path", FILES, ids=[path.stem.removeprefix("arch_") for path in FILES])
def test_the_same_bits_with_fewer_pages(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: dict[tuple[int, ...], bytes]
) -> None:
    monkeypatch.setattr(ARCHITECTURES[architecture(path)], "read_config", longer(path))
    with monkeypatch.context() as all_pages:
        all_pages.setattr(memory_budget, "WINDOW_POOL_FACTOR", 1000)
        with load(path) as llm:
            assert llm.model.kv.window_pool is None
            expected = [llm.generate([one], PARAMS)[0].token_ids for one in PROMPTS]
            assert llm.save_session(tmp_path / "all.session", PROMPTS[3]) >= len(PROMPTS[3]) - 1
    reach = max(windows(path))
    with load(path) as llm:
        window_pool = llm.model.kv.window_pool
        assert window_pool is not None and window_pool.n_pages < llm.model.kv.n_pages
        n_rows = len(rows)
        assert [llm.generate([one], PARAMS)[0].token_ids for one in PROMPTS] == expected
        assert llm.generate([PROMPTS[3]], PARAMS)[0].timings.cached_tokens > 400
        llm.clear_cache()
        assert [each.token_ids for each in llm.generate(PROMPTS, PARAMS)] == expected
        assert len(rows) == n_rows, "tokens that were not given before"
        held = []
        for _ in llm.stream(PROMPTS[0], PARAMS):
            held.append(llm.kv_usage().window_in_use)
        assert max(held) <= -(-(reach + STEP) // PAGE_TOKENS) + 1
        # A conversation saved and loaded goes on with what the window reaches.
        said = PROMPTS[0] + expected[0]
        assert llm.save_session(tmp_path / "a.session", said) >= len(said) - 1
        after = llm.generate([[*said, 7, 8]], PARAMS)[0].token_ids
        llm.clear_cache()
        llm.load_session(tmp_path / "a.session")
        again = llm.generate([[*said, 7, 8]], PARAMS)[0]
        assert (again.token_ids, again.timings.cached_tokens) == (after, len(said) - 1)
        # A session of a cache with other pools is of use as far as it has what is needed.
        llm.clear_cache()
        assert llm.load_session(tmp_path / "all.session")[0] == PROMPTS[3]
        again = llm.generate([PROMPTS[3]], PARAMS)[0]
        assert (again.token_ids, again.timings.cached_tokens) == (expected[3], len(PROMPTS[3]) - 1)
        assert llm.kv_usage().in_use == llm.kv_usage().window_in_use == 0
    with monkeypatch.context() as all_pages:
        all_pages.setattr(memory_budget, "WINDOW_POOL_FACTOR", 1000)
        with load(path) as llm:
            assert llm.load_session(tmp_path / "a.session")[0] == said
            again = llm.generate([[*said, 7, 8]], PARAMS)[0]
            assert (again.token_ids, again.timings.cached_tokens) == (after, 0)


@pytest.mark.parametrize("megabytes", [1, 3, 20])
def test_memory_counts_both_pools(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    path = next(path for path in FILES if path.stem == "arch_gemma3")
    monkeypatch.setattr(ARCHITECTURES[architecture(path)], "read_config", longer(path))
    with LLM(path, n_ctx=4096, kv_memory=megabytes << 20, max_batch_tokens=STEP, max_sequences=2) as llm:
        kv = llm.model.kv
        assert kv.window_pool is not None
        taken = kv.n_pages * kv.page_bytes + kv.window_pool.n_pages * kv.window_pool.page_bytes
        more = kv.page_bytes + 30 * kv.window_pool.page_bytes  # a context more needs more pages for windows, too
        assert (megabytes << 20) - more < taken <= megabytes << 20
        assert llm.kv_usage().window_pages == kv.window_pool.n_pages >= 2 * (1 + 2)


@pytest.mark.parametrize("most", [1, 32])
def test_a_model_without_windows_has_one_pool(most: int) -> None:
    path = DATA / "arch_qwen3.gguf"
    with LLM(path, n_ctx=256, kv_tokens=8192, max_sequences=most) as llm:
        assert llm.model.kv.window_pool is None and llm.kv_usage().window_pages == 0
        assert len(llm.generate([STEM[:200]], SamplingParams(max_tokens=20, ignore_eos=True))[0].token_ids) == 20


def longer(path: Path) -> Any:
    """``read_config`` of a file, as if the model were made for longer contexts."""
    read = ARCHITECTURES[architecture(path)].read_config
    return lambda file: replace(read(file), n_ctx_train=4096)
