"""Context shift: a request continues as if it had begun with the tokens that are left."""

from __future__ import annotations

import pytest

from gumba import SamplingParams
from gumba.sampling.sampler import Sampler
from gumba.sampling.sampler_state import SamplerState, UniformStream
from support.fake_model import END, N_VOCAB, hashed_logits


def oracle(prompt, params, n_ctx):
    """Tokens by a plain loop over the tokens in the context."""
    window, answer, numbers, sampler = list(prompt), [], UniformStream(params.seed), Sampler(N_VOCAB)
    state = SamplerState(params, N_VOCAB, prompt, seed=params.seed)
    while len(answer) < params.max_tokens:
        token = sampler.sample(hashed_logits(window), state, numbers[len(answer)]).token
        state.accept(token)
        window.append(token)
        answer.append(token)
        if token == END:
            break
        if len(window) == n_ctx:
            keep = len(prompt) if params.n_keep < 0 else params.n_keep
            if (n_ctx - keep) // 2 < 1:
                break
            del window[keep : keep + (n_ctx - keep) // 2]
    return answer


@pytest.mark.parametrize("n_prompt", [1, 5, 20, 31])
@pytest.mark.parametrize("n_keep", [0, 4, -1, 30, 31])
@pytest.mark.parametrize("guesses", [0, 5])
def test_answers_are_those_of_the_plain_loop(make_llm, n_prompt, n_keep, guesses):
    llm = make_llm(n_ctx=32, n_pages=20, max_batch_tokens=8)
    prompt = [(7 * i) % 256 for i in range(n_prompt)]
    params = SamplingParams(seed=2, max_tokens=100, context_shift=True, n_keep=n_keep, prompt_lookup_tokens=guesses)
    expected = oracle(prompt, params, 32)
    (result,) = llm.generate([prompt], params)
    assert result.token_ids == expected and result.prompt_token_ids == prompt
    assert result.finish_reason == "length" and result.timings.generated_tokens == len(expected)
    steps = list(llm.stream(prompt, params))
    assert [step.token_id for step in steps] == expected and [step.index for step in steps] == list(
        range(len(expected))
    )


def test_in_a_batch_and_with_few_pages(make_llm):
    llm = make_llm(n_ctx=32, n_pages=17, max_batch_tokens=8)
    prompts = [[i] * (3 + i) for i in range(6)]
    params = SamplingParams(seed=2, max_tokens=70, context_shift=True, n=2)
    for prompt, result in zip(prompts, llm.generate(prompts, params)):
        assert result.token_ids == oracle(prompt, params, 32)
        assert len(result.outputs[1].token_ids) == 70
    assert llm.kv_usage().in_use == 0


def test_without_it_the_context_ends_the_answer(make_llm):
    llm = make_llm(n_ctx=32)
    (result,) = llm.generate([[1, 2]], SamplingParams(seed=2, max_tokens=100))
    assert (len(result.token_ids), result.finish_reason) == (30, "length")
