"""Answers of an encoder-decoder, against a loop over the bare model: alone, in batches, with small steps, by every search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gumba import LLM, BeamSearchParams, ContrastiveSearchParams, GGUFFile, RequestError, SamplingParams
from gumba.runner.load import Chunk, LoadConfig, Model, load_model
from gumba.sampling.sampler import Sampler, SamplerState, UniformStream

PATH = Path(__file__).parent.parent / "data" / "arch_t5_gated.gguf"
N_CTX = 320
RNG = np.random.default_rng(5)
#: Shorter and longer than a page of the KV cache.
SOURCES = [RNG.integers(3, 130, n).tolist() for n in (70, 1, 150, 64, 9)]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.3, seed=7, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(PATH, n_ctx=N_CTX, n_threads=2, max_batch_tokens=32) as opened:
        yield opened


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with GGUFFile(PATH) as file:
        opened = load_model(file, LoadConfig(n_ctx=N_CTX, n_threads=1))
    yield opened
    opened.close()


def next_logits(model: Model, source: list[int], answer: list[int]) -> np.ndarray:
    """Logits after an answer, all of it computed anew."""
    tokens = [*source, model.config.start_token, *answer]
    pages = model.kv.allocate(-(-len(tokens) // model.kv.page_tokens))
    row = model.forward([Chunk(tokens, 0, pages, "last", n_source=len(source))])[0].copy()
    model.kv.release(pages)
    return row


def oracle(model: Model, source: list[int], params: SamplingParams, seed: int | None = None) -> list[int]:
    """An answer, token by token; its sampler sees only the start token and the answer."""
    seed = (params.seed or 0) if seed is None else seed
    sampler, numbers, n_vocab = Sampler(model.config.n_vocab), UniformStream(seed), model.config.n_vocab
    state = SamplerState(params, n_vocab, [model.config.start_token], seed=seed)
    answer: list[int] = []
    for index in range(params.max_tokens or 0):
        answer.append(sampler.sample(next_logits(model, source, answer), state, numbers[index]).token)
        state.accept(answer[-1])
    return answer


@pytest.mark.parametrize(
    "params", [GREEDY, SAMPLED, replace(GREEDY, repetition_penalty=4.0)], ids=["0", "1.3", "penalty"]
)
def test_answers_are_those_of_the_oracle(llm: LLM, model: Model, params: SamplingParams) -> None:
    """Together with other sources, of other lengths; steps are smaller than the sources."""
    expected = [oracle(model, source, params) for source in SOURCES]
    assert len({tuple(completion) for completion in expected}) == len(SOURCES)
    together = llm.generate(SOURCES, params)
    assert [completion.token_ids for completion in together] == expected
    assert [completion.prompt_token_ids for completion in together] == SOURCES
    assert llm.generate([SOURCES[0]], params)[0].token_ids == expected[0]
    assert [completion.token_id for completion in llm.stream(SOURCES[2], params)] == expected[2]


def test_several_answers_to_a_source(llm: LLM) -> None:
    actual = llm.generate([SOURCES[2]], replace(SAMPLED, n=3))[0].outputs
    alone = [llm.generate([SOURCES[2]], SAMPLED)[0].outputs[0]]
    assert actual[0].token_ids == alone[0].token_ids
    assert len({tuple(completion.token_ids) for completion in actual}) == 3


def test_beams(llm: LLM, model: Model) -> None:
    """One beam is greedy; of several, the sums of log-probabilities are those of the bare model, and better."""
    params = BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True)
    greedy = oracle(model, SOURCES[0], replace(GREEDY, max_tokens=8))
    assert llm.beam_search([SOURCES[0]], params)[0].sequences[0].token_ids == greedy
    actual = llm.beam_search(SOURCES, replace(params, beam_width=4, n=4))
    for source, output in zip(SOURCES, actual):
        assert output.prompt_token_ids == source
        for completion in output.sequences:
            total = 0.0
            for i, token in enumerate(completion.token_ids):
                row = next_logits(model, source, completion.token_ids[:i]).astype(np.float64)
                total += row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
            assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)
    assert llm.beam_search([SOURCES[2]], replace(params, beam_width=4, n=4))[0].sequences == actual[2].sequences


def test_the_repetition_penalty_of_beams_ignores_the_source(llm: LLM, model: Model) -> None:
    source, answer = SOURCES[2], [model.config.start_token]
    params = BeamSearchParams(beam_width=1, max_tokens=12, ignore_eos=True, repetition_penalty=3.0)
    for _ in range(12):
        row = next_logits(model, source, answer[1:]).astype(np.float64)
        scores = row - row.max() - np.log(np.exp(row - row.max()).sum())
        scores[sorted(set(answer))] *= 3.0
        answer.append(int(scores.argmax()))
    assert llm.beam_search([source], params)[0].sequences[0].token_ids == answer[1:]


def test_the_same_with_few_pages(llm: LLM) -> None:
    """Preempted sequences are recomputed, the source first."""
    params = replace(SAMPLED, max_tokens=150)
    expected = [completion.token_ids for completion in llm.generate(SOURCES, params)]
    with LLM(PATH, n_ctx=N_CTX, n_threads=1, kv_tokens=N_CTX, max_batch_tokens=16) as small:
        assert [completion.token_ids for completion in small.generate(SOURCES, params)] == expected


def test_only_identical_sources_share_pages(llm: LLM, model: Model) -> None:
    """Cached pages serve requests with exactly the same source, and no others."""
    first = RNG.integers(3, 130, 90).tolist()
    params = replace(GREEDY, max_tokens=50)
    (actual,) = llm.generate([first], params)
    assert actual.timings.cached_tokens == 0
    for source in ([*first[:64]], [*first[:80], 5, 6, 7], [*first, 5], [9, *first[1:]]):
        (other,) = llm.generate([source], GREEDY)
        assert other.token_ids == oracle(model, source, GREEDY) and other.timings.cached_tokens == 0
    (again,) = llm.generate([first], params)
    assert again.token_ids == actual.token_ids == oracle(model, first, params) and again.timings.cached_tokens == 90
    several = llm.generate([[8, *first]], replace(SAMPLED, n=3))[0].outputs
    assert [completion.timings.cached_tokens for completion in several if completion.timings] == [0, 91, 91]
    kept = llm.generate([[7, *first]], replace(GREEDY, cache_prompt=False)) + llm.generate([[7, *first]], GREEDY)
    assert [completion.timings.cached_tokens for completion in kept] == [0, 0]


def test_draft_tokens_change_nothing(llm: LLM) -> None:
    expected = llm.generate(SOURCES, GREEDY)
    guessed = llm.generate(SOURCES, replace(GREEDY, prompt_lookup_tokens=4))
    assert [completion.token_ids for completion in guessed] == [completion.token_ids for completion in expected]


def test_a_context_shift_removes_tokens_of_the_answer_only(llm: LLM) -> None:
    source = RNG.integers(3, 130, 300).tolist()
    params = replace(GREEDY, max_tokens=60, context_shift=True, n_keep=4)
    (actual,) = llm.generate([source], params)
    assert len(actual.token_ids) == 60 and actual.finish_reason == "length"
    (before,) = llm.generate([source], replace(params, context_shift=False))
    assert actual.token_ids[: len(before.token_ids)] == before.token_ids and len(before.token_ids) == N_CTX - 301


def test_text_goes_in_and_out(llm: LLM) -> None:
    (actual,) = llm.generate("abc abc", GREEDY)
    assert actual.prompt_token_ids == llm.tokenizer.encode("abc abc", add_special=True)
    assert isinstance(actual.text, str) and actual.prompt == "abc abc"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda llm: llm.generate([[5] * (N_CTX - 1)]), "leave no room in the context"),
        (lambda llm: llm.generate([[]]), "at least one token"),
        (lambda llm: llm.generate([[5]], SamplingParams(prompt_logprobs=1)), "encoder-decoder"),
        (lambda llm: llm.score([5], [6]), "encoder-decoder"),
        (lambda llm: llm.logits([5, 6]), "encoder-decoder"),
        (lambda llm: llm.embed([[5, 6]]), "encoder-decoder"),
        (lambda llm: llm.contrastive_search([[5, 6]], ContrastiveSearchParams()), "encoder-decoder"),
    ],
)
def test_what_is_refused(llm: LLM, call: Callable[[LLM], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(llm)
