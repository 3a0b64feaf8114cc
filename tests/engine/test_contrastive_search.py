"""Contrastive search against a slow NumPy one, on a model that checks its pages, and on tiny real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba import ContrastiveSearchParams, GGUFFile, ModelError, RequestError, SamplingParams
from gumba.engine.engine import Engine
from gumba.engine.search.contrastive import ContrastiveSearch
from gumba.runner.load import Chunk, LoadConfig, load_model
from support.fake_model import END, N_VOCAB, hashed_hidden, hashed_logits

DATA = Path(__file__).parent.parent / "data"
STOPS = tuple(range(0, 256, 9))


def slow_search(prompt, params, ends, limit, logits=hashed_logits, hidden=hashed_hidden):
    """The answer by the paper's formula; every history is computed from its beginning."""
    tokens = list(prompt)
    while len(tokens) < limit:
        row = logits(tokens).astype(np.float64)
        if len(tokens) - len(prompt) < params.min_tokens:
            row[list(ends)] = -np.inf
        chances = np.exp(row) / np.exp(row).sum()
        before = [hidden(tokens[:length]).astype(np.float64) for length in range(1, len(tokens) + 1)]
        best, taken = -np.inf, None
        for token in np.argsort(-chances, kind="stable")[: params.top_k].tolist():
            own = hidden([*tokens, token]).astype(np.float64)
            cosine = max(own @ other / np.linalg.norm(own) / np.linalg.norm(other) for other in before)
            score = (1 - params.penalty_alpha) * chances[token] - params.penalty_alpha * cosine
            if score > best and row[token] > -np.inf:
                best, taken = score, token
        tokens.append(taken)
        if taken in ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("n_prompt", [1, 4, 17, 40])
@pytest.mark.parametrize("alpha, top_k", [(0.6, 4), (0.2, 7), (1.0, 3), (0.0, 5), (0.6, 1), (0.9, 1000)])
def test_answers_are_those_of_the_slow_search(make_llm, n_prompt, alpha, top_k):
    llm = make_llm(n_pages=1000, n_ctx=48)
    params = ContrastiveSearchParams(penalty_alpha=alpha, top_k=min(top_k, 12), max_tokens=20, stop_token_ids=STOPS)
    prompt = [(3 * i) % 50 + 1 for i in range(n_prompt)]
    (result,) = llm.contrastive_search([prompt], params)
    expected = slow_search(prompt, params, (END, *STOPS), min(48, n_prompt + 20))
    assert result.token_ids == expected and result.prompt_token_ids == prompt and result.prompt is None
    assert result.finish_reason == ("stop" if expected[-1] in STOPS else "length")
    assert result.timings.generated_tokens == len(expected)
    if alpha == 0 or top_k == 1:
        greedy = SamplingParams(temperature=0, max_tokens=20, stop_token_ids=STOPS)
        assert llm.generate([prompt], greedy)[0].token_ids == expected


def test_more_candidates_than_tokens(make_llm):
    llm = make_llm(n_pages=1000, max_batch_tokens=400)
    params = ContrastiveSearchParams(penalty_alpha=0.9, top_k=1000, max_tokens=3)
    (result,) = llm.contrastive_search([[1, 2]], params)
    assert result.token_ids == slow_search([1, 2], params, (END,), 5)


def test_it_differs_from_greedy_decoding(make_llm):
    """On a model that would repeat itself."""

    def logits(history):
        row = np.full(N_VOCAB, -9, np.float32)
        row[[1, 2, 3, 4]] = 3, 2, 1, 0
        return row

    llm = make_llm(logits=logits, n_pages=200)
    (result,) = llm.contrastive_search([[1]], ContrastiveSearchParams(max_tokens=8))
    assert result.token_ids == slow_search([1], ContrastiveSearchParams(max_tokens=8), (END,), 9, logits=logits)
    assert len(set(result.token_ids[:3])) == 3


def test_min_tokens_and_text(make_llm):
    def logits(history):
        row = np.full(N_VOCAB, -30, np.float32)
        row[[END, ord("a")]] = 9, 5
        return row

    llm = make_llm(logits=logits)
    (result,) = llm.contrastive_search("x", ContrastiveSearchParams(min_tokens=3, penalty_alpha=0.1))
    assert (result.text, result.finish_reason) == ("aaa", "stop")
    assert result.token_ids == [ord("a")] * 3 + [END]
    assert llm.contrastive_search("x", ContrastiveSearchParams(penalty_alpha=0.1))[0].token_ids == [END]
    (result,) = llm.contrastive_search("x", ContrastiveSearchParams(ignore_eos=True, max_tokens=2, penalty_alpha=0))
    assert (result.token_ids, result.finish_reason) == ([END, END], "length")
    with pytest.raises(RequestError, match="no token is left"):
        llm.contrastive_search("x", ContrastiveSearchParams(min_tokens=3, stop_token_ids=range(N_VOCAB)))


@pytest.mark.parametrize("max_sequences", [1, 3, 32])
@pytest.mark.parametrize("n_pages", [16, 18, 25])
def test_same_answers_when_pages_or_places_run_out(make_llm, max_sequences, n_pages):
    params = ContrastiveSearchParams(top_k=5, max_tokens=20, penalty_alpha=0.5)
    prompts = [list(range(1, 30)), [5, 6], list(range(60, 7, -2))]
    expected = [slow_search(prompt, params, (END,), len(prompt) + 20) for prompt in prompts]
    llm = make_llm(n_pages=n_pages, max_sequences=max_sequences)
    assert [result.token_ids for result in llm.contrastive_search(prompts, params)] == expected
    assert [
        result.token_ids for result in llm.contrastive_search(prompts, params)
    ] == expected  # its pages are cached now


def test_the_prompt_is_computed_once(make_llm):
    llm = make_llm(n_pages=100, page_tokens=16, n_ctx=200, max_batch_tokens=64)
    llm.contrastive_search([list(range(1, 38))], ContrastiveSearchParams(top_k=4, max_tokens=5))
    assert [[n for _, n in step] for step in llm.model.steps] == [[37]] + [[1] * 4] * 5


def test_cancelled_and_failing(make_llm):
    def cancel(model):
        if len(model.steps) == 5:
            llm.cancel()

    llm = make_llm(n_pages=100, before=cancel)
    params = ContrastiveSearchParams(max_tokens=20)
    (result,) = llm.contrastive_search([[1, 2]], params)
    assert result.finish_reason == "cancelled"
    assert result.token_ids == slow_search([1, 2], params, (END,), 22)[:5]

    def logits(history):
        row = hashed_logits(history)
        if len(history) == 6:
            row[7] = np.nan
        return row

    llm = make_llm(n_pages=100, logits=logits)
    with pytest.raises(ModelError, match="token 7"):
        llm.contrastive_search([[1, 2]], params)
    assert llm.kv_usage().in_use == 0


def test_parameters_are_checked(make_llm):
    for field, value in [("penalty_alpha", 1.1), ("penalty_alpha", "a"), ("top_k", 0), ("max_tokens", 0)]:
        with pytest.raises(RequestError, match=field):
            ContrastiveSearchParams(**{field: value})
    assert (
        ContrastiveSearchParams(stop_token_ids=[5, 5]).stop_token_ids
        == SamplingParams(stop_token_ids=[5, 5]).stop_token_ids
    )
    with pytest.raises(RequestError, match="ContrastiveSearchParams"):
        make_llm().contrastive_search("a", SamplingParams())


@pytest.mark.parametrize("name", ["gqa_tied", "plain", "wide_head"])
def test_real_hidden_states(name):
    """Against a model that computes every history alone; with one thread and two, in one step and in many."""
    with GGUFFile(DATA / f"model_{name}.gguf") as file, np.load(DATA / f"model_{name}.npz") as stored:
        prompt = stored["tokens"][:30].tolist()
        params = ContrastiveSearchParams(top_k=4, max_tokens=12)
        alone = load_model(file, LoadConfig(n_ctx=128, n_threads=1, max_batch_tokens=64, kv_type="f32"))
        pages = alone.kv.allocate(1)

        def rows(history, what):
            logits = alone.forward([Chunk(history, 0, pages, "last")])
            return np.array(logits[0] if what == "logits" else alone.hidden[0])

        expected = slow_search(
            prompt, params, (2,), 42, lambda tokens: rows(tokens, "logits"), lambda tokens: rows(tokens, "hidden")
        )
        alone.close()
        for n_threads, max_batch_tokens in [(1, 64), (2, 7)]:
            model = load_model(
                file, LoadConfig(n_ctx=128, n_threads=n_threads, max_batch_tokens=max_batch_tokens, kv_type="f32")
            )
            engine = Engine(model, model.config.n_vocab, max_sequences=8)
            try:
                search = ContrastiveSearch(prompt, params, end_ids={2}, n_ctx=engine.n_ctx, n_embd=model.config.n_embd)
                engine.finish([search])
                assert search.answer == expected
                assert engine.kv_usage().in_use == 0
            finally:
                engine.close()
