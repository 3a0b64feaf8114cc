"""A request has the same tokens, and every row of logits the same bits: alone, in a batch, after a hit of the prefix cache,
preempted and recomputed, with draft tokens, with any number of threads. And cached tokens are not computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gumba import LLM, SamplingParams
from gumba.backends.cpu.kv_pages import PAGE_FORMATS, PAGE_TOKENS
from support.tiny_models import prompt, write_model

#: Common prefixes: two full pages, two and a partial one, none; and the whole prompt.
STEM = prompt(230)
PROMPTS = [STEM, STEM[:140] + prompt(71, 1), STEM[:128] + prompt(50, 2), prompt(101, 3), STEM[:200] + prompt(3, 4)]
PARAMS = [
    SamplingParams(temperature=0 if i % 2 else 0.9, seed=i, max_tokens=9 + 2 * i, ignore_eos=True)
    for i in range(len(PROMPTS))
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bits") / "tiny.gguf", "Q4_0")


def counted(llm: LLM) -> list[int]:
    """A list that receives the number of tokens of every step from now on."""
    sizes: list[int] = []
    forward: Callable[..., Any] = llm.model.forward

    def counting(chunks: Any) -> Any:
        sizes.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    llm.model.forward = counting  # type: ignore[method-assign]
    return sizes


def answers(llm: LLM, prompts: list[list[int]] = PROMPTS, **changes: Any) -> list[list[int]]:
    results = llm.generate(prompts, [replace(one, **changes) for one in PARAMS[: len(prompts)]])
    assert llm.kv_usage().in_use == 0
    return [result.token_ids for result in results]


@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_same_bits_whatever_happens(tiny: Path, rows: dict[tuple[int, ...], bytes], kv_type: str) -> None:
    expected: list[list[int]] = []
    for n_threads in (1, 2, 4):
        with LLM(tiny, n_ctx=320, kv_tokens=1536, kv_type=kv_type, n_threads=n_threads, max_batch_tokens=200) as llm:
            alone = []
            for one, params in zip(PROMPTS, PARAMS):
                llm.clear_cache()
                (result,) = llm.generate([one], params)
                assert result.timings.cached_tokens == 0
                alone.append(result.token_ids)
            expected = expected or alone
            assert alone == expected, "the number of threads matters"
            n_rows = len(rows)
            assert answers(llm, cache_prompt=False) == expected, "the batch matters"
            actual = [llm.generate([one], params)[0] for one, params in zip(PROMPTS, PARAMS)]
            assert [result.token_ids for result in actual] == expected, "the prefix cache matters"
            # Pages that are shared, and one that is copied: STEM ends within a page.
            cached = [result.timings.cached_tokens for result in actual]
            assert cached[1] == 140 and cached[2] == 2 * PAGE_TOKENS and cached[4] == 200, cached
            assert answers(llm) == expected, "the pages of earlier requests matter"
            assert answers(llm, prompt_lookup_tokens=7) == expected, "draft tokens matter"
            assert len(rows) == n_rows, "rows were not compared"
            # The next turn of a chat: all tokens are cached but the last one, which was chosen and never computed.
            turn = PROMPTS[0] + expected[0] + prompt(5, 6)
            (there,) = llm.generate([turn], PARAMS[0])
            llm.clear_cache()
            (fresh,) = llm.generate([turn], PARAMS[0])
            assert there.token_ids == fresh.token_ids and fresh.timings.cached_tokens == 0
            assert there.timings.cached_tokens == len(PROMPTS[0]) + len(expected[0]) - 1
    assert len(rows) == sum(map(len, expected)) + PARAMS[0].max_tokens


@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_same_bits_when_preempted_and_recomputed(tiny: Path, rows: dict[tuple[int, ...], bytes], kv_type: str) -> None:
    with LLM(tiny, n_ctx=320, kv_tokens=2048, kv_type=kv_type, n_threads=2) as llm:
        expected = answers(llm, max_tokens=60)
    n_rows = len(rows)
    with LLM(tiny, n_ctx=320, kv_tokens=13 * PAGE_TOKENS, kv_type=kv_type, n_threads=2, max_batch_tokens=256) as llm:
        sizes = counted(llm)
        assert answers(llm, max_tokens=60, cache_prompt=False) == expected
        assert sum(sizes) > sum(map(len, PROMPTS)) + len(PROMPTS) * 59, "no sequence was preempted"
        assert answers(llm, max_tokens=60) == expected
    assert len(rows) == n_rows


def test_only_the_rest_is_computed(tiny: Path) -> None:
    with LLM(tiny, n_ctx=320, kv_tokens=1024, n_threads=2) as llm:
        sizes = counted(llm)
        first, again, longer, other = (
            llm.generate([one], SamplingParams(temperature=0, max_tokens=1))[0].timings
            for one in (STEM, STEM, STEM + prompt(40, 1), STEM[:150] + prompt(60, 2))
        )
        assert [member.cached_tokens for member in (first, again, longer, other)] == [0, 229, 230, 150]
        assert sizes == [230, 1, 40, 60]
        llm.clear_cache()
        (result,) = llm.generate([STEM], SamplingParams(temperature=0, max_tokens=1))
        assert result.timings.cached_tokens == 0 and sizes[-1] == 230
        # Answers to one prompt, and to a request without the cache.
        del sizes[:]
        (result,) = llm.generate([prompt(100, 5)], SamplingParams(seed=1, n=4, max_tokens=1))
        assert [member.timings.cached_tokens for member in result.outputs] == [0, 99, 99, 99] and sizes == [100, 3]
        (result,) = llm.generate([STEM], SamplingParams(max_tokens=1, cache_prompt=False))
        assert result.timings.cached_tokens == 0 and sizes[-1] == 230
