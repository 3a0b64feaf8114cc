"""A draft model changes nothing but the number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from gumba import LLM, ModelError, RequestError, SamplingParams

DATA = Path(__file__).parent.parent / "data"


def steps(llm: LLM) -> list[int]:
    """A list that receives the sizes of all steps from now on."""
    seen: list[int] = []
    forward = llm.model.forward

    def counted(chunks):  # type: ignore[no-untyped-def]
        seen.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks)

    llm.model.forward = counted  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
def test_the_same_answers(tiny: Path, temperature: float, draft_tokens: int) -> None:
    prompts = [[5, 6, 7], list(range(3, 70)), [9]]
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=60, ignore_eos=True, logit_bias={7: 2.0})
    with LLM(tiny) as llm:
        expected = [result.token_ids for result in llm.generate(prompts, params)]
    with LLM(tiny, draft_model=tiny, draft_tokens=draft_tokens) as llm:
        seen = steps(llm)
        assert [result.token_ids for result in llm.generate(prompts, params)] == expected
        assert [step.token_id for step in llm.stream(prompts[1], params)] == expected[1]
        if temperature == 0:  # a model that drafts for itself is always right
            assert len(seen) < 2 * 60 * 1.3 / (1 + draft_tokens) + 8
        assert llm._models.draft is not None and llm._models.draft.kv.n_free == llm._models.draft.kv.n_pages
        assert llm.kv_usage().in_use == 0


def test_a_full_draft_model_stops_drafting_only(tiny: Path) -> None:
    """The draft model's context is shorter than the text, and it has fewer pages than sequences: answers continue without it."""
    params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    prompts = [[i, i + 1] for i in range(1, 9)]
    with LLM(tiny) as llm:
        expected = [result.token_ids for result in llm.generate(prompts, params)]
    with LLM(tiny, draft_model=tiny) as llm:
        assert llm._models.draft is not None
        taken = llm._models.draft.kv.allocate(llm._models.draft.kv.n_pages - 3)
        llm._models.draft.n_ctx = 80
        assert [result.token_ids for result in llm.generate(prompts, params)] == expected
        llm._models.draft.kv.release(taken)
        assert llm._models.draft.kv.n_free == llm._models.draft.kv.n_pages


def test_what_cannot_draft(tiny: Path) -> None:
    with pytest.raises(ModelError, match="same vocabulary"):
        LLM(tiny, draft_model=DATA / "tokenizer_gpt_2.gguf")
    with pytest.raises(ModelError, match="must have logits"):  # a classifier
        LLM(DATA / "arch_qwen3.gguf", draft_model=DATA / "arch_qwen3_labels.gguf")
    with pytest.raises(RequestError, match="draft_tokens"):
        LLM(tiny, draft_model=tiny, draft_tokens=0)
