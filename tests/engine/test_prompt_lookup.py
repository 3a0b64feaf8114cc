"""Prompt lookup: exactly the answers of plain decoding, in fewer steps where a text repeats itself."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from gumba import SamplingParams
from gumba.engine.speculative.prompt_lookup import FIRST_LIMIT, MIN_LIMIT, NGRAM_SIZES, PromptLookup
from support.fake_model import END, echo, prompts_of


def visible(results):
    """Everything that a user sees of results, except times."""
    return [replace(completion, timings=None) for result in results for completion in result.outputs]


def streamed(llm, prompt, params):
    return [replace(step, timings=None) for step in llm.stream(prompt, params)]


@pytest.mark.parametrize("most", [2, 40])
@pytest.mark.parametrize("wrong", [1, 3, 10**9])
@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(seed=11, repetition_penalty=1.1)], ids=["greedy", "seeded"]
)
def test_the_same_answers(make_llm, params, wrong, most):
    """Draft tokens that are never, seldom, often and always right; up to the end of the context."""
    llm = make_llm(n_ctx=64, logits=echo(5, wrong))
    prompts = prompts_of(wrong)
    expected = visible(llm.generate(prompts, params))
    plain = len(llm.model.steps)
    assert {completion.finish_reason for completion in expected} == {"length"}
    guessing = replace(params, prompt_lookup_tokens=most)
    assert visible(llm.generate(prompts, guessing)) == expected
    steps, llm.model.steps = llm.model.steps[plain:], []
    assert len(steps) <= plain
    if wrong > 1:
        assert len(steps) < plain, "no draft token was ever right"
        assert any(count > 1 for step in steps for position, count in step if position > 30), "nothing was proposed"
    assert streamed(llm, prompts[0], guessing) == streamed(llm, prompts[0], params)


@pytest.mark.parametrize("seed", range(2))
def test_ends_inside_a_proposal(make_llm, seed):
    """max_tokens, stop strings, stop tokens and the end of generation fall anywhere within a proposal."""
    temperature = 0.9 * seed
    llm = make_llm(n_ctx=120, logits=echo(6, 25))
    (prompt,) = prompts_of(seed, 1)
    free = SamplingParams(temperature=temperature, seed=seed, max_tokens=60)
    (whole,) = llm.generate([prompt], free)
    variants = [replace(free, max_tokens=n) for n in range(1, 24, 3)]
    for at in range(3, 40, 8):
        variants.append(replace(free, stop=[whole.text[at : at + 3], whole.text[at + 4 : at + 6]]))
        variants.append(replace(free, stop=whole.text[at : at + 2], include_stop_str_in_output=True))
        variants.append(replace(free, stop=["#", whole.text[at : at + 4] + "#"]))  # withheld, and emitted in the end
        variants.append(replace(free, stop_token_ids=[whole.token_ids[at]]))
    for params in variants:
        (expected,) = llm.generate([prompt], params)
        before = len(llm.model.steps)
        (actual,) = llm.generate([prompt], replace(params, prompt_lookup_tokens=9))
        assert visible([actual]) == visible([expected])
        assert actual.timings.generated_tokens == len(actual.token_ids)
        assert len(llm.model.steps) - before <= len(actual.token_ids)


def test_the_end_of_generation_inside_a_proposal(make_llm):
    """The model repeats its prompt, including the end token."""
    text = [*b"abcdefgh", END]
    llm = make_llm(logits=echo(len(text), 10**9))
    for prompt in (text + text[:3], text * 2 + text[:5]):
        (expected,), (actual,) = (
            llm.generate([prompt], SamplingParams(temperature=0, prompt_lookup_tokens=most)) for most in (0, 20)
        )
        assert visible([actual]) == visible([expected]) and expected.finish_reason == "stop"
        assert actual.text == bytes(text[len(prompt) % 9 : 8]).decode()
    go_on = SamplingParams(temperature=0, ignore_eos=True, max_tokens=30)
    assert visible(llm.generate([text * 2], go_on)) == visible(
        llm.generate([text * 2], replace(go_on, prompt_lookup_tokens=20))
    )


@pytest.mark.parametrize("n_pages, max_batch_tokens", [(60, 16), (16, 16), (18, 3), (24, 40)])
def test_in_batches_and_with_few_pages(make_llm, n_pages, max_batch_tokens):
    """More sequences than may draft at once, and so few pages that sequences are preempted in between."""
    rng = random.Random(n_pages)
    prompts = prompts_of(n_pages, 18)
    params = [
        SamplingParams(temperature=rng.choice([0, 1.0]), seed=i, max_tokens=rng.randrange(1, 40))
        for i in range(len(prompts))
    ]
    logits = echo(4, 8)
    expected = visible(make_llm(logits=logits).generate(prompts, params))
    llm = make_llm(logits=logits, n_pages=n_pages, max_batch_tokens=max_batch_tokens)
    guessing = [replace(one, prompt_lookup_tokens=i % 3 * 5, priority=i % 2) for i, one in enumerate(params)]
    assert visible(llm.generate(prompts, guessing)) == expected


def test_several_answers(make_llm):
    llm = make_llm(logits=echo(4, 8))
    params = SamplingParams(seed=1, n=4, max_tokens=30)
    (prompt,) = prompts_of(9, 1)
    assert visible(llm.generate([prompt], replace(params, prompt_lookup_tokens=6))) == visible(
        llm.generate([prompt], params)
    )


@pytest.mark.parametrize("most, at_most", [(3, 14), (8, 7), (16, 6)])
def test_a_text_that_repeats_itself_takes_fewer_steps(make_llm, most, at_most):
    llm = make_llm(n_ctx=200, n_pages=8, page_tokens=64, max_batch_tokens=64, logits=echo(10, 10**9))
    prompt = list(range(10)) * 2
    params = SamplingParams(temperature=0, max_tokens=50, prompt_lookup_tokens=most)
    (result,) = llm.generate([prompt], params)
    assert result.token_ids == list(range(10)) * 5
    assert len(llm.model.steps) <= at_most
    assert max(count for step in llm.model.steps[1:] for _, count in step) == min(most, 10) + 1


def test_wrong_proposals_soon_become_short(make_llm):
    """The tokens never follow as they did before: little is computed in vain."""

    def logits(history):
        out = np.zeros(264, np.float32)
        # 1 2 3 4 a, 1 2 3 4 b, ...: proposed after 1 2, wrong at the fifth
        out[len(history) % 5 + 1 if len(history) % 5 < 4 else 10 + len(history) // 5] = 9
        return out

    llm = make_llm(n_ctx=400, n_pages=100, logits=logits)
    (result,) = llm.generate([[1]], SamplingParams(temperature=0, max_tokens=300, prompt_lookup_tokens=64))
    computed = sum(count for step in llm.model.steps for _, count in step)
    assert len(llm.model.steps) < 200 and computed < 2 * len(result.token_ids)


def slow_proposal(tokens, most):
    for length in NGRAM_SIZES:
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                return tokens[place : place + most]
    return []


@pytest.mark.parametrize("seed", range(10))
def test_proposals_are_what_followed_the_latest_longest_match(seed):
    rng = random.Random(seed)
    drafter = PromptLookup(8)
    tokens = rng.choices(range(4), k=rng.randrange(1, 20))
    for _ in range(80):
        most = rng.randrange(-1, 12)
        assert drafter.propose(tokens, most) == (slow_proposal(tokens, min(most, 8)) if most > 0 else [])
        if rng.random() < 0.1:  # another history
            tokens = rng.choices(range(4), k=rng.randrange(1, len(tokens) + 1))
            drafter = PromptLookup(8) if rng.random() < 0.5 else drafter
            if len(tokens) == drafter._n_indexed:
                drafter = PromptLookup(8)
        else:
            tokens = tokens + rng.choices(range(4), k=rng.randrange(1, 6))


@pytest.mark.parametrize("most", [1, 2, 5, 8, 20, 100])
def test_the_length_adapts_to_how_many_were_right(most):
    drafter = PromptLookup(most)
    tokens = list(range(300)) * 2
    sizes, rights = [], [None, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0]
    for right in rights:
        if right is not None:
            drafter.on_verified(len(tokens) + round(right * sizes[-1]))
        sizes.append(len(drafter.propose(tokens, 1000)))
    expected = [min(most, FIRST_LIMIT)]
    for right in rights[1:]:
        last = expected[-1]
        wanted = 2 * last if right == 1.0 else max(MIN_LIMIT, round(right * last) + 1)
        expected.append(min(most, wanted))
    assert sizes == expected


def test_proposals_after_a_cached_prompt(make_llm):
    """All tokens but the last are cached, and its page is nearly full."""
    llm = make_llm(logits=echo(6, 10**9))
    for n in range(12, 18):
        prompt = [*b"abcdef" * 3][:n]
        params = SamplingParams(temperature=0, max_tokens=20)
        expected = visible(llm.generate([prompt], params))
        (actual,) = llm.generate([prompt], replace(params, prompt_lookup_tokens=16))
        assert visible([actual]) == expected
        assert actual.timings.cached_tokens == (n - 1) // 4 * 4
