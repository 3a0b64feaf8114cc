"""Tiny models with recurrent layers: the same tokens alone, in a batch, after others, forked, preempted and recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gumba import LLM, BeamSearchParams, GGUFFile, RequestError, SamplingParams
from gumba.engine.speculative.draft_model import ModelDrafter
from gumba.runner.load import Chunk, LoadConfig, load_model

DATA = Path(__file__).parent.parent / "data"
PARAMS = SamplingParams(temperature=0.9, seed=5, max_tokens=80, ignore_eos=True)


def prompts() -> list[list[int]]:
    """Prompts with common prefixes: within a page, after one, and one that another continues."""
    rng = np.random.default_rng(1)
    stem = rng.integers(3, 100, 130).tolist()
    return [stem[:70], stem[:130], stem[:20] + [9] * 60, stem[:66] + [8] * 30, [5, 6, 7]]


@pytest.fixture(scope="module", params=["lfm2", "qwen35"])
def path(request: pytest.FixtureRequest) -> Path:
    return DATA / f"arch_{request.param}.gguf"


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[int]]:
    """The answers to every prompt alone, in a model of its own."""
    actual = []
    for prompt in prompts():
        with LLM(path, n_threads=1) as llm:
            actual.append(llm.generate([prompt], PARAMS)[0].token_ids)
    return actual


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=2) as loaded:
        yield loaded
        assert loaded.kv_usage().in_use == 0


def test_together_and_again(llm: LLM, expected: list[list[int]]) -> None:
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    for reused in (0, 64):
        actual = llm.generate(prompts(), PARAMS)
        assert [result.token_ids for result in actual] == expected
        assert actual[1].timings.cached_tokens >= reused


def test_one_after_the_other(llm: LLM, expected: list[list[int]]) -> None:
    for prompt, tokens in zip(prompts(), expected):
        assert llm.generate([prompt], PARAMS)[0].token_ids == tokens


def test_the_next_turn(path: Path, llm: LLM, expected: list[list[int]]) -> None:
    """It starts from the state that the previous turn left."""
    turn = prompts()[0] + expected[0] + [11, 12, 13]
    llm.generate([prompts()[0]], PARAMS)
    (actual,) = llm.generate([turn], PARAMS)
    assert actual.timings.cached_tokens == 70 + 80 - 1
    with LLM(path, n_threads=1) as other:
        assert other.generate([turn], PARAMS)[0].token_ids == actual.token_ids


def test_few_pages_and_small_steps(path: Path, expected: list[list[int]]) -> None:
    """All prompts start; most are preempted and recomputed."""
    with LLM(path, n_threads=1, kv_tokens=5 * 64, max_batch_tokens=24) as llm:
        assert [result.token_ids for result in llm.generate(prompts(), PARAMS)] == expected


def test_several_answers_and_beams(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=20, ignore_eos=True)
    beams = BeamSearchParams(beam_width=3, n=3, max_tokens=20, ignore_eos=True)
    actual = []
    for _ in range(2):
        (several,), (best,) = llm.generate([prompts()[0]], params), llm.beam_search([prompts()[0]], beams)
        actual.append([[result.token_ids for result in ones] for ones in (several.outputs, best.sequences)])
    assert actual[0] == actual[1]
    assert len({tuple(tokens) for tokens in actual[0][0]}) == 3
    # A beam's score is that of its tokens, computed in one step.
    for output in best.sequences:
        logits = llm.logits(prompts()[0] + output.token_ids).astype(np.float64)[69:-1]
        chosen = logits[np.arange(20), output.token_ids] - np.log(np.exp(logits).sum(axis=1))
        assert chosen.sum() == pytest.approx(output.cumulative_logprob, rel=1e-6)


def test_a_session_goes_on(path: Path, llm: LLM, tmp_path: Path) -> None:
    """The session holds the state too: nothing is computed again."""
    file = tmp_path / "a.session"
    first = llm.generate([prompts()[0]], PARAMS)[0]
    said = first.prompt_token_ids + first.token_ids
    assert llm.save_session(file, said) == len(said) - 1
    expected = llm.generate([[*said, 5, 6]], PARAMS)[0].token_ids
    with LLM(path, n_threads=1) as other:
        assert other.load_session(file) == (said, None)
        actual = other.generate([[*said, 5, 6]], PARAMS)[0]
        assert (actual.token_ids, actual.timings.cached_tokens) == (expected, len(said) - 1)
        assert other.kv_usage().in_use == 0
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RequestError, match="damaged"):
        llm.load_session(file)


@pytest.mark.parametrize("draft_tokens", [1, 5])
def test_a_model_that_drafts_for_itself(path: Path, draft_tokens: int, expected: list[list[int]]) -> None:
    """Sampled tokens seldom equal the draft, which is always greedy."""
    with LLM(path, n_threads=1, draft_model=path, draft_tokens=draft_tokens) as llm:
        assert [result.token_ids for result in llm.generate(prompts(), PARAMS)] == expected
        greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        guessed = [result.token_ids for result in llm.generate(prompts(), greedy)]
        draft = llm._models.draft
        assert draft is not None and draft.states is not None
        assert (draft.states.n_free, draft.kv.n_free) == (draft.states.n_slots, draft.kv.n_pages)
    with LLM(path, n_threads=1) as llm:
        assert [result.token_ids for result in llm.generate(prompts(), greedy)] == guessed


def test_a_draft_model_rolls_back_wrong_tokens(path: Path) -> None:
    """It proposes what a new drafter proposes, and computes only the tokens after the verified ones."""
    with GGUFFile(path) as gguf:
        model = load_model(gguf, LoadConfig(n_threads=1))
    forward, seen = model.forward, []

    def counted(chunks: Sequence[Chunk]) -> np.ndarray:
        seen.extend((chunk.position, len(chunk.tokens)) for chunk in chunks)
        return forward(chunks)

    drafter, tokens = ModelDrafter(lambda: model, model.config.n_vocab, 6), prompts()[0]
    for right in (0, 3, 6, 6, 1, 0, 0, 5, 6, 2):
        fresh = ModelDrafter(lambda: model, model.config.n_vocab, 6)
        expected = fresh.propose(tokens, 6)
        fresh.close()
        model.forward = counted  # type: ignore[method-assign]
        guess = drafter.propose(tokens, 6)
        model.forward = forward  # type: ignore[method-assign]
        assert guess == expected
        tokens = tokens + guess[:right] + [5]
    assert [position for position, _ in seen].count(0) == 1
    assert sum(count for _, count in seen) <= len(tokens) + 10 * 6
    drafter.close()
    model.close()


def test_prompt_lookup(llm: LLM) -> None:
    """Greedy answers of such a small model soon repeat themselves."""
    greedy = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    actual = [llm.generate(prompts(), replace(greedy, prompt_lookup_tokens=most)) for most in (0, 8)]
    assert [result.token_ids for result in actual[0]] == [result.token_ids for result in actual[1]]
