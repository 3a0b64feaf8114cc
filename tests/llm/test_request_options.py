"""Structured outputs, log-probabilities of the prompt, and the best of several answers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from gumba import LLM, RequestError, SamplingParams, StructuredOutputsParams
from support import tiny_chat


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_chat.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def log_softmax(row: np.ndarray) -> np.ndarray:
    wide = row.astype(np.float64) - row.max()
    return wide - np.log(np.exp(wide).sum())


def test_log_probabilities_of_the_prompt(llm: LLM) -> None:
    prompt = [5, 9, 3, 3, 7, 20, 11, 8]
    params = SamplingParams(seed=1, max_tokens=6, prompt_logprobs=3, logprobs=2, n=2)
    for again in range(2):  # the second time the prompt is in the cache
        (result,) = llm.generate([prompt], params)
        rows = llm.logits(prompt + result.token_ids)
        assert result.prompt_logprobs is not None and result.prompt_logprobs[0] is None
        assert len(result.prompt_logprobs) == len(prompt), again
        for i, (token, found) in enumerate(zip(prompt[1:], result.prompt_logprobs[1:])):
            expected = log_softmax(rows[i])
            assert found is not None and found.logprob == pytest.approx(expected[token], abs=1e-9)
            assert found.rank == 1 + int((expected > expected[token]).sum()) and len(found.top) == 3
        assert result.logprobs is not None and len(result.logprobs) == len(result.token_ids)
        for i, (token, chosen) in enumerate(zip(result.token_ids, result.logprobs)):
            assert chosen.logprob == pytest.approx(log_softmax(rows[len(prompt) - 1 + i])[token], abs=1e-9)
        plain = llm.generate([prompt], SamplingParams(seed=1, max_tokens=6, n=2))[0]
        assert [each.token_ids for each in plain.outputs] == [each.token_ids for each in result.outputs]
        assert plain.prompt_logprobs is None and plain.logprobs is None
    (one,) = llm.generate([[5]], SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert one.prompt_logprobs == [None]


def test_scores_of_a_continuation(llm: LLM) -> None:
    rows = llm.logits([5, 9, 3, 7])
    found = llm.score([5, 9], [3, 7])
    assert [each.logprob for each in found] == pytest.approx(
        [log_softmax(rows[1])[3], log_softmax(rows[2])[7]], abs=1e-9
    )
    assert len(llm.score("a b", " c")) == len(llm.tokenizer.encode(" c", add_special=False))
    with pytest.raises(RequestError, match="continuation"):
        llm.score("a", [])


def test_best_of(llm: LLM) -> None:
    several = SamplingParams(seed=3, max_tokens=8, n=6, logprobs=0, ignore_eos=True)
    (all_,) = llm.generate([[5, 6]], several)
    mean = {tuple(each.token_ids): each.cumulative_logprob / len(each.token_ids) for each in all_.outputs}
    params = SamplingParams(seed=3, max_tokens=8, n=2, best_of=6, ignore_eos=True)
    (result,) = llm.generate([[5, 6]], params)
    best = sorted(mean, key=lambda tokens: -mean[tokens])[:2]
    assert [tuple(each.token_ids) for each in result.outputs] == best
    assert [each.index for each in result.outputs] == [0, 1] and result.logprobs is None
    with pytest.raises(RequestError, match=r"best_of.*cannot be streamed"):
        llm.stream([5], params)


@pytest.mark.parametrize("seed", range(8))
def test_texts_match_their_constraint(llm: LLM, seed: int) -> None:
    """The same alone and in a batch, whether or not the model would end by itself."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    forms = [
        StructuredOutputsParams(choice=["yes", "no", "maybe so"]),
        StructuredOutputsParams(regex=r"[a-c]{2,5}-\d"),
        StructuredOutputsParams(json=schema),
    ]
    checks = [
        lambda text: text in ("yes", "no", "maybe so"),
        lambda text: re.fullmatch(r"[a-c]{2,5}-\d", text),
        lambda text: set(json.loads(text)) == {"a", "b"} and isinstance(json.loads(text)["a"], int),
    ]
    for ignore_eos in (False, True):
        params = [
            SamplingParams(seed=seed, structured_outputs=form, max_tokens=150, temperature=1.5, ignore_eos=ignore_eos)
            for form in forms
        ]
        together = llm.generate([[5, 6]] * 3, params)
        for result, check, one in zip(together, checks, params):
            if result.finish_reason == "stop":  # an integer has no maximum length
                assert check(result.text), result.text
            else:
                assert one.structured_outputs is forms[2]
            assert llm.generate([[5, 6]], one)[0].token_ids == result.token_ids
    drafted = SamplingParams(seed=seed, structured_outputs=forms[1], temperature=1.5, prompt_lookup_tokens=4, n=3)
    (several,) = llm.generate([[5, 6]], drafted)
    assert all(checks[1](each.text) for each in several.outputs)
    plain = SamplingParams(seed=seed, structured_outputs=forms[1], temperature=1.5)
    assert several.token_ids == llm.generate([[5, 6]], plain)[0].token_ids
    assert llm.kv_usage().in_use == 0


def test_malformed_constraints(llm: LLM) -> None:
    with pytest.raises(RequestError, match="regex"):
        llm.generate(["a"], SamplingParams(structured_outputs=StructuredOutputsParams(regex="(")))


@pytest.mark.parametrize("stop", ["}", '"', "a"])
def test_a_stop_string_inside_the_constraint_is_reported(llm: LLM, stop: str) -> None:
    form = StructuredOutputsParams(json={"const": {"a": {"b": 1}}})
    (whole,) = llm.generate(["x"], SamplingParams(structured_outputs=form, max_tokens=100, temperature=0))
    assert json.loads(whole.text) == {"a": {"b": 1}} and (whole.finish_reason, whole.stop_reason) == ("stop", None)
    (cut,) = llm.generate(["x"], SamplingParams(structured_outputs=form, max_tokens=100, temperature=0, stop=[stop]))
    assert cut.text == whole.text.partition(stop)[0] and (cut.finish_reason, cut.stop_reason) == ("stop", stop)
