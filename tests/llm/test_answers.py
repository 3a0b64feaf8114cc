"""Several answers to a prompt, and the methods for event loops."""

from __future__ import annotations

import asyncio
import time

import pytest

from gumba import EngineError, SamplingParams
from gumba.llm.input_processor import _SEED_STEP
from support.fake_model import END, OP, ST, scripted
from support.generation_oracle import GREEDY, oracle


def test_each_answer_depends_on_its_seed_only(make_llm):
    llm = make_llm()
    params = SamplingParams(seed=5, max_tokens=12, n=6)
    prompt = list(range(18))
    (result,) = llm.generate([prompt], params)
    expected = [oracle(prompt, SamplingParams(seed=(5 + i * _SEED_STEP) % 2**64, max_tokens=12), 12) for i in range(6)]
    assert [each.token_ids for each in result.outputs] == expected
    assert [each.index for each in result.outputs] == list(range(6))
    assert len(set(map(tuple, expected))) == 6
    assert result.token_ids == expected[0] == llm.generate([prompt], SamplingParams(seed=5, max_tokens=12))[0].token_ids
    assert result.text == result.outputs[0].text and result.finish_reason == "length"


@pytest.mark.parametrize("n_prompt", [31, 32, 37, 90])
def test_the_prompt_of_several_answers_is_computed_once(make_llm, n_prompt):
    """All answers share full pages (of 16); each copies the partial page, and computes one token of the prompt."""
    seen = []

    def count(model):
        seen.append(model.kv.n_pages - model.kv.n_free)

    llm = make_llm(n_ctx=200, n_pages=60, page_tokens=16, before=count)
    (result,) = llm.generate([list(range(n_prompt))], SamplingParams(seed=1, n=8, max_tokens=2))
    computed = sum(n for step in llm.model.steps for _, n in step)
    assert computed <= n_prompt + 7 * 1 + 8  # the prompt, its last token for the others, and a token each
    assert [each.timings.cached_tokens for each in result.outputs] == [0] + [n_prompt - 1] * 7
    whole = (n_prompt - 1) // 16
    assert max(seen) <= whole + 1 + 8 * 2, "the prompt's pages are not shared"


def test_answers_are_the_same_without_the_prefix_cache(make_llm):
    llm = make_llm()
    prompt = list(range(30))
    one, other = (
        llm.generate([prompt], SamplingParams(seed=2, n=3, max_tokens=9, cache_prompt=cached))[0]
        for cached in (True, False)
    )
    assert [each.token_ids for each in one.outputs] == [each.token_ids for each in other.outputs]
    assert [each.timings.cached_tokens for each in other.outputs] == [0, 0, 0]


def test_a_stream_of_several_answers(make_llm):
    llm = make_llm()
    params = SamplingParams(seed=5, max_tokens=7, n=3)
    steps = list(llm.stream([1, 2], params))
    (result,) = llm.generate([[1, 2]], params)
    for each in result.outputs:
        own = [step for step in steps if step.choice == each.index]
        assert [step.token_id for step in own] == each.token_ids
        assert [step.index for step in own] == list(range(7))
        assert "".join(step.text for step in own) == each.text
        assert [step.finish_reason for step in own] == [None] * 6 + ["length"]


def test_the_stop_string_can_be_included(make_llm):
    llm = make_llm(logits=scripted(*b"go ", ST, OP, *b" on", start=1))
    params = SamplingParams(temperature=0, stop=["stop", "x"], include_stop_str_in_output=True)
    assert llm.generate([[1]], params)[0].text == "go stop"
    assert [step.text for step in llm.stream([1], params)] == ["g", "o", " ", "", "stop"]


def test_special_tokens_can_be_included(make_llm):
    llm = make_llm(logits=scripted(ord("a"), END, start=1))
    assert llm.generate([[1]], SamplingParams(temperature=0, skip_special_tokens=False))[0].token_ids == [97, END]


def test_the_event_loop_continues_meanwhile(make_llm):
    llm = make_llm(before=lambda model: time.sleep(0.002))

    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        several = asyncio.gather(*(llm.agenerate([[i], [i, 7]], GREEDY) for i in range(5)))
        streamed = [step.token_id async for step in llm.astream([9], GREEDY)]
        results = await several
        ticking.cancel()
        return ticks, streamed, results

    ticks, streamed, results = asyncio.run(main())
    assert ticks > 10
    assert streamed == oracle([9], GREEDY, 64)
    for i, pair in enumerate(results):
        assert [each.token_ids for each in pair] == [oracle([i], GREEDY, 64), oracle([i, 7], GREEDY, 64)]


def test_cancelled_tasks_release_their_pages(make_llm):
    llm = make_llm(n_ctx=4000, n_pages=1000, before=lambda model: time.sleep(0.001))

    async def main():
        task = asyncio.ensure_future(llm.agenerate([[1], [2]], GREEDY))
        stream = llm.astream([3], GREEDY)
        await stream.__anext__()
        task.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert llm.kv_usage().in_use == 0


def test_closing_cancels_tasks(make_llm):
    llm = make_llm(n_ctx=4000, n_pages=1000, before=lambda model: time.sleep(0.001))

    async def main():
        task = asyncio.ensure_future(llm.agenerate([[1]], GREEDY))
        await asyncio.sleep(0.01)
        llm.close()
        result = await task
        with pytest.raises(EngineError, match="closed"):
            await llm.agenerate([[1]], GREEDY)
        return result

    (result,) = asyncio.run(main())
    assert result.finish_reason == "cancelled"


def test_prefill_progress_is_reported(make_llm):
    llm = make_llm(max_batch_tokens=8)
    told = []
    params = SamplingParams(temperature=0, max_tokens=3)
    llm.generate([list(range(20)), [1, 2, 3]], params, progress=lambda *numbers: told.append(numbers))
    assert [total for _, total in told] == [23] * len(told) and told[-1][0] == 23 and len(told) > 2
    assert told == sorted(told)
    told.clear()
    list(llm.stream(list(range(50, 79)), SamplingParams(max_tokens=3, n=2), progress=lambda *n: told.append(n)))
    assert told[-1] == (29, 29) and told[0][0] < 29

    def fail(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm.generate([[1]], params, progress=fail)
    assert llm.kv_usage().in_use == 0
